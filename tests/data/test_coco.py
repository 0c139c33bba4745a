"""Guard the README's promise for your own data: every fault is found on reading, named, mendable.

Also that the file decides the classes: any ids, with gaps, become 0..K-1 in the order of ids.
"""

import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from resnext_det.config import get_cfg
from resnext_det.data.coco import (
    check_same_classes,
    class_names,
    load_coco,
    read_coco,
    register_coco,
    register_from_config,
)
from resnext_det.data.coco_files import parse
from resnext_det.errors import InputError

GOOD = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "height": 20, "width": 30},
        {"id": 3, "file_name": "sub/b.jpg", "height": 20, "width": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 5]},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0.5, 0, 3, 4.5], "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "cup"}, {"id": 4, "name": "fork"}, {"id": 17, "name": "pan"}],
}


@pytest.fixture
def content():
    return copy.deepcopy(GOOD)


@pytest.fixture
def name(request):
    """A data set name of this test's own, forgotten afterwards."""
    names = (request.node.name, f"{request.node.name}_2")
    yield names[0]
    for used in names:
        if used in DatasetCatalog:
            DatasetCatalog.remove(used)
        MetadataCatalog.pop(used, None)


def write(folder, content, file="data.json"):
    path = folder / file
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_images(folder, content):
    for image in content["images"]:
        path = folder / image["file_name"]
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"")  # reading the list does not open the pictures


def refusal(path, *words):
    """The message of the refusal: one line that names the file and each of ``words``."""
    with pytest.raises(InputError) as caught:
        read_coco(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for word in words:
        assert word in message
    return message


def test_missing_file(tmp_path):
    refusal(tmp_path / "none.json", "does not exist", "DATASETS.COCO_JSON")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00\xff"])
def test_not_json(tmp_path, text):
    refusal(write(tmp_path, text), "JSON")


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {"1": {}}])
def test_no_list(tmp_path, content, part, value):
    content[part] = value
    refusal(write(tmp_path, content), f'no list "{part}"')


def test_not_an_object(tmp_path):
    refusal(write(tmp_path, [1, 2]), "no list")


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_repeated_id(tmp_path, content, part):
    content[part][1]["id"] = content[part][0]["id"]
    refusal(write(tmp_path, content), f"{part}[1]", f"id {content[part][0]['id']}")


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", ["7", 7.5, None, True])
def test_id_that_is_no_whole_number(tmp_path, content, part, value):
    content[part][0]["id"] = value
    refusal(write(tmp_path, content), f"{part}[0]", repr(value))


@pytest.mark.parametrize(
    "part, field",
    [
        ("images", "file_name"),
        ("images", "height"),
        ("categories", "name"),
        ("annotations", "bbox"),
    ],
)
def test_missing_field(tmp_path, content, part, field):
    del content[part][1][field]
    refusal(write(tmp_path, content), f"{part}[1] has no {field}")


def test_undeclared_category(tmp_path, content):
    content["annotations"][1]["category_id"] = 5
    refusal(write(tmp_path, content), "annotation 2 (image 7)", "category 5", "[4, 17, 90]")


def test_unknown_image(tmp_path, content):
    content["annotations"][0]["image_id"] = 8
    refusal(write(tmp_path, content), "annotation 1 (image 8)", "no image")


@pytest.mark.parametrize(
    "box",
    [
        ["1", "2", "3", "4"],
        [1, 2, 3, float("nan")],
        [1, 2, float("inf"), 4],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, True],
        None,
        {"x": 1},
    ],
    ids=str,
)
def test_box_that_is_not_four_finite_numbers(tmp_path, content, box):
    content["annotations"][0]["bbox"] = box
    refusal(write(tmp_path, content), "annotation 1 (image 7)", str(box), "four numbers")


@pytest.mark.parametrize("box", [[1, 2, 0, 4], [1, 2, 3, -1]], ids=str)
def test_box_without_area(tmp_path, content, box):
    content["annotations"][0]["bbox"] = box
    refusal(write(tmp_path, content), "annotation 1 (image 7)", "without area", str(box))


def test_crowd_and_area_are_filled_in(tmp_path, content):
    """Files made by labelling tools often lack both; Detectron2 and pycocotools need them."""
    found = read_coco(write(tmp_path, content))["annotations"]
    assert [(entry["iscrowd"], entry["area"]) for entry in found] == [(0, 50), (1, 13.5)]


def test_given_area_is_kept(tmp_path, content):
    content["annotations"][0].update(iscrowd=0, area=7)
    assert read_coco(write(tmp_path, content))["annotations"][0]["area"] == 7


def test_ids_with_gaps_become_contiguous(tmp_path, content, name):
    write_images(tmp_path, content)
    register_coco(name, write(tmp_path, content), tmp_path)
    records = DatasetCatalog.get(name)
    assert class_names(name) == (["fork", "pan", "cup"], [4, 17, 90])
    assert [record["image_id"] for record in records] == [7, 3]
    assert [entry["category_id"] for entry in records[0]["annotations"]] == [2, 0]
    assert [entry["iscrowd"] for entry in records[0]["annotations"]] == [0, 1]
    assert records[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    assert records[1]["annotations"] == []
    assert records[1]["file_name"] == str(tmp_path / "sub" / "b.jpg")


def test_missing_image_file(tmp_path, content, name):
    write_images(tmp_path, content)
    (tmp_path / "sub" / "b.jpg").unlink()
    path = write(tmp_path, content)
    register_coco(name, path, tmp_path)
    with pytest.raises(InputError) as caught:
        load_coco(name)
    message = str(caught.value)
    assert message.startswith(f"{path}: image 3 ") and str(tmp_path / "sub" / "b.jpg") in message
    assert name in message


def test_registering_twice_takes_the_second(tmp_path, content, name):
    """A notebook runs its cells again; Detectron2 alone would fail on an assertion."""
    write_images(tmp_path, content)
    register_coco(name, tmp_path / "none.json", tmp_path)
    register_coco(name, write(tmp_path, content), tmp_path)
    assert len(DatasetCatalog.get(name)) == 2
    content["categories"] = content["categories"][:2]
    register_coco(name, write(tmp_path, content), tmp_path)
    assert len(DatasetCatalog.get(name)) == 2
    assert class_names(name) == (["fork", "cup"], [4, 90])


def test_registering_does_not_read(tmp_path, name):
    register_coco(name, tmp_path / "none.json", tmp_path)
    with pytest.raises(InputError, match="none.json"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_name_that_is_registered_nowhere(key):
    cfg = get_cfg()
    cfg.DATASETS[key] = ("no_such_set",)
    with pytest.raises(InputError, match=rf"DATASETS\.{key}: no_such_set .*COCO_JSON"):
        register_from_config(cfg)


def two_sets(folder, name, second):
    write_images(folder, GOOD)
    for set_name, content in ((name, GOOD), (f"{name}_2", second)):
        register_coco(set_name, write(folder, content, f"{set_name}.json"), folder)
        load_coco(set_name)
    return name, f"{name}_2"


def test_same_classes_in_another_order(tmp_path, content, name):
    content["categories"].reverse()
    check_same_classes(*two_sets(tmp_path, name, content))


@pytest.mark.parametrize("field, value", [("name", "spoon"), ("id", 18)])
def test_differing_classes(tmp_path, content, name, field, value):
    content["categories"][2][field] = value
    first, second = two_sets(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        check_same_classes(first, second)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / second}.json: ")
    assert f"{tmp_path / first}.json" in message and str(value) in message and "pan" in message


def test_real_coco(shared_data, name):
    root = shared_data / "coco"
    register_coco(name, root / "annotations" / "instances_val2017.json", root / "val2017")
    records = DatasetCatalog.get(name)
    names, ids = class_names(name)
    assert (len(records), len(names)) == (128, 80)
    assert (names[0], ids[0], names[-1], ids[-1]) == ("person", 1, "toothbrush", 90)
    entries = [entry for record in records for entry in record["annotations"]]
    assert len(entries) == 903 and sum(entry["iscrowd"] for entry in entries) == 5
    assert {entry["category_id"] for entry in entries} <= set(range(80))


@pytest.mark.parametrize("split, images, boxes", [("train", 205, 2805), ("val", 87, 1138)])
def test_real_bccd(shared_data, name, split, images, boxes):
    root = shared_data / "bccd"
    register_coco(name, root / "annotations" / f"instances_{split}.json", root / "images")
    records = DatasetCatalog.get(name)
    assert len(records) == images
    assert sum(len(record["annotations"]) for record in records) == boxes
    assert class_names(name) == (["RBC", "WBC", "Platelets"], [1, 2, 3])


# ---- lists that are there twice ----


def test_a_list_that_is_there_twice(tmp_path):
    """JSON's readers would take the last one, an empty list behind the real one too."""
    path = tmp_path / "a.json"
    path.write_text('{"images": [], "categories": [], "annotations": [{}], "annotations": []}')
    with pytest.raises(InputError, match='a.json: has two lists "annotations", and only one'):
        parse(path)
    inner = '{"images": [], "categories": [], "annotations": [], "info": {"annotations": 5}}'
    path.write_text(inner)
    assert parse(path)["info"] == {"annotations": 5}
