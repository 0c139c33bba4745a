"""Guard which segmentations a network with masks is trained on."""

import json

import pytest
from PIL import Image

from resnext_det.data import coco
from resnext_det.data.coco_checks import STRICT, Rules
from resnext_det.data.coco_images import read_headers
from resnext_det.data.coco_sets import check_set
from resnext_det.data.findings import STOPS
from resnext_det.errors import InputError

POLYGON = [[1.0, 1.0, 8.0, 1.0, 8.0, 6.0]]
RUNS = {"size": [10, 12], "counts": [20, 30, 70]}


def write(folder, segmentation, **fields):
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 7, 5], "iscrowd": 0}
    entry |= {"segmentation": segmentation, **fields}
    if segmentation is None:
        del entry["segmentation"]
    Image.new("RGB", (12, 10)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 12}],
        "annotations": [entry],
        "categories": [{"id": 1, "name": "cell"}],
    }
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("segmentation", "mask_format", "fields"),
    [
        (POLYGON, "polygon", {}),
        (POLYGON, "bitmask", {}),
        (RUNS, "bitmask", {}),
        ({"size": [10, 12], "counts": "d0n0V2"}, "bitmask", {}),
        (RUNS, "polygon", {"iscrowd": 1}),  # no crowd is trained on
    ],
)
def test_masks_that_serve(tmp_path, segmentation, mask_format, fields):
    path = write(tmp_path, segmentation, **fields)
    assert len(coco.read_coco(path, Rules(masks=mask_format))["annotations"]) == 1


@pytest.mark.parametrize(
    ("segmentation", "mask_format", "words"),
    [
        (None, "polygon", "has no segmentation, and MODEL.MASK_ON is True; draw its outline"),
        ([], "polygon", "has no segmentation"),
        (RUNS, "polygon", "INPUT.MASK_FORMAT is polygon; set INPUT.MASK_FORMAT bitmask"),
        ([[1, 1, 8, 1]], "polygon", "no list of polygons"),
        ([[1, 1, 8, 1, 8, float("nan")]], "polygon", "no list of polygons"),
        ([[1, 1, 8, 1, 8, 6, 7]], "bitmask", "no list of polygons"),
        (["1,1,8,1,8,6"], "polygon", "no list of polygons"),
        ([5], "polygon", "no list of polygons"),
        ({"size": [12, 10], "counts": "PPYo0"}, "bitmask", "run lengths for the size"),
        ({"size": [10, 12], "counts": [5]}, "bitmask", "do not add up"),
        ({"size": [10, 12], "counts": [-5, 125]}, "bitmask", "do not add up"),
        ({"size": [10, 12], "counts": ""}, "bitmask", "do not add up"),
        ({}, "bitmask", "run lengths for the size"),
    ],
)
def test_masks_that_do_not(tmp_path, segmentation, mask_format, words):
    path = write(tmp_path, segmentation)
    with pytest.raises(InputError) as caught:
        coco.read_coco(path, Rules(masks=mask_format))
    message = str(caught.value)
    assert words in message and "annotation 1 (image 1)" in message and "a.json" in message
    assert len(coco.read_coco(path)["annotations"]) == 1  # without masks nobody looks


@pytest.mark.parametrize(("masks", "kept"), [("polygon", True), ("", False)])
def test_segmentations_in_records(tmp_path, masks, kept):
    path = write(tmp_path, POLYGON)
    coco.register_coco(f"masks_{masks}", path, tmp_path, Rules(masks=masks))
    (record,) = coco.load_coco(f"masks_{masks}")
    assert ("segmentation" in record["annotations"][0]) == kept


def checked(path, rules):
    options = {"most_detections": 100, "drops_empty_images": False}
    found = check_set(path, path.parent, rules, read=read_headers, **options).findings
    return {finding.kind: finding for finding in found if finding.kind != "missing area"}


def test_an_object_at_fault_does_not_make_its_image_empty(tmp_path):
    """Nor its category: whether they are is known when it is mended."""
    found = checked(write(tmp_path, []), Rules(masks="polygon"))
    assert [(kind, finding.severity) for kind, finding in found.items()] == [
        ("object without segmentation", STOPS)
    ]
    assert not checked(write(tmp_path, []), STRICT)


def test_the_command_that_lists_all_looks_at_masks_too(tmp_path):
    path = write(tmp_path, [])
    content = json.loads(path.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 2})
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        coco.read_coco(path, Rules(masks="bitmask", drop_bad_images=True), image_root=tmp_path)
    words = "DATASETS.DROP_BAD_IMAGES True MODEL.MASK_ON True INPUT.MASK_FORMAT bitmask` lists all"
    assert f"check_data.py {path} {tmp_path} {words}" in str(caught.value)


@pytest.mark.parametrize(
    ("polygon", "fits"),
    [
        (POLYGON[0], True),
        ([7.5, 5, 11, 5, 11, 9], True),  # meets the box
        ([0.1, 0.1, 0.7, 0.1, 0.7, 0.6], False),  # in parts of the image
        ([9, 1, 11, 1, 11, 6], False),
        ([1, 7, 8, 7, 8, 9], False),
    ],
)
def test_polygons_lie_where_their_object_is(tmp_path, polygon, fits):
    path = write(tmp_path, [polygon])
    if fits:
        assert len(coco.read_coco(path, Rules(masks="polygon"))["annotations"]) == 1
        return
    with pytest.raises(InputError, match=r"all outside its bbox \[1, 1, 7, 5\]; mend it"):
        coco.read_coco(path, Rules(masks="polygon"))
