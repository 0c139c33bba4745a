"""Guard minival == val2017 and trainval35k == train2017, on tiny files in COCO's layout."""

import json

import pytest
from PIL import Image

from resnext_det.config import load_cfg
from resnext_det.data import coco
from resnext_det.data.coco_checks import Rules
from resnext_det.data.splits import (
    MINIVAL,
    TRAIN2014,
    TRAIN2017,
    VAL2014,
    VAL2017,
    VALMINUSMINIVAL,
    make_splits,
)
from resnext_det.detection import pipeline
from resnext_det.errors import InputError

OF_TRAIN2014, OF_VAL2014 = [9, 25, 30, 581921], [139, 285, 391895, 522418, 60623]
OF_MINIVAL = [139, 285]
OF_REST = [391895, 522418, 60623]  # valminusminival
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]


def content(ids, year):
    """Two annotations an image, the first image without any; 2017's entries name no 2014 set."""
    split = "train2017" if set(ids) & set(OF_TRAIN2014) else "val2017"
    images = []
    for i in ids:
        name = f"{i:012d}.jpg" if year == 2017 else f"COCO_val2014_{i:012d}.jpg"
        url = f"http://images.cocodataset.org/{split}/{name}"
        images.append({"id": i, "file_name": name, "coco_url": url, "width": 8, "height": 6})
    annotations = [
        {"id": 10 * i + k, "image_id": i, "category_id": 90, "bbox": [1, 1, 3, 2 + k]}
        | {"area": 6 + 3 * k, "iscrowd": k}
        for i in ids[1:]
        for k in (0, 1)
    ]
    return {
        "info": {"year": year},
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }


def write(path, ids, year=2017, change=None):
    made = content(ids, year)
    if change:
        change(made)
    path.write_text(json.dumps(made))


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def folder(tmp_path):
    """annotations/ as the two archives leave it, without the large rest."""
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    write(folder / TRAIN2017, [391895, 9, 522418, 25, 30, 60623, 581921])
    write(folder / VAL2017, OF_MINIVAL)
    write(folder / VAL2014, OF_VAL2014, 2014)
    return folder


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    for word in words:
        assert str(word) in message, message


@pytest.mark.parametrize("known", [(VAL2014,), (TRAIN2014,), (VAL2014, TRAIN2014)], ids=str)
def test_the_two_files(folder, known):
    """By whichever file of 2014 is there; names of 2014, ids and annotations of 2017."""
    write(folder / TRAIN2014, OF_TRAIN2014, 2014)
    for name in {VAL2014, TRAIN2014} - set(known):
        (folder / name).unlink()
    made = make_splits(folder)
    for name, ids, source in (
        (MINIVAL, OF_MINIVAL, VAL2017),
        (VALMINUSMINIVAL, OF_REST, TRAIN2017),
    ):
        found, original = read(folder / name), read(folder / source)
        assert [entry["id"] for entry in found["images"]] == ids
        assert found["categories"] == CATEGORIES and found["info"] == original["info"]
        for entry in found["images"]:
            assert entry["file_name"] == f"COCO_val2014_{entry['id']:012d}.jpg"
            assert entry["coco_url"].endswith(f"/val2014/{entry['file_name']}")
            assert (entry["width"], entry["height"]) == (8, 6)
        assert found["annotations"] == [
            entry for entry in original["annotations"] if entry["image_id"] in ids
        ]
    assert made.checks == [
        "minival == val2017: 2 image ids",
        "trainval35k == train2017: 4 + 3 = 7 image ids",
    ]
    assert any(TRAIN2014 in notice for notice in made.notices) == (TRAIN2014 not in known)
    assert f"{MINIVAL}: COCO's own has 5,000 images" in made.notices


def test_another_folder(folder, tmp_path):
    make_splits(folder, tmp_path / "deep" / "made")
    assert sorted(p.name for p in (tmp_path / "deep" / "made").iterdir()) == [
        MINIVAL,
        VALMINUSMINIVAL,
    ]
    assert not (folder / MINIVAL).exists()


def test_the_files_of_2017_are_not_enough(folder):
    """Their coco_url says train2017 of an image of val2014, so nothing is guessed from it."""
    (folder / VAL2014).unlink()
    refusal(lambda: make_splits(folder), f"{folder}: ", VAL2014, TRAIN2014, "annotations_trainval")
    assert not (folder / MINIVAL).exists()


@pytest.mark.parametrize("name", [TRAIN2017, VAL2017])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    refusal(lambda: make_splits(folder), f"{folder / name}: does not exist")


@pytest.mark.parametrize(
    "name, ids, words",
    [
        (VAL2014, [139, 391895], ["lacks 1 image (for instance 285)"]),
        (VAL2014, [*OF_VAL2014, 7, 8], ["also holds 2 images (for instance 7)"]),
        (TRAIN2014, [9, 25], ["lacks 2 images (for instance 30)"]),
        (TRAIN2014, [*OF_TRAIN2014, 139], ["also holds 1 image (for instance 139)"]),
        (TRAIN2017, [*OF_TRAIN2014, *OF_VAL2014], ["holds 2 images (for instance 139)", VAL2017]),
        (VAL2017, [139, 285, 139], ["lists image 139 2 times"]),
    ],
)
def test_sets_that_are_not_equal(folder, name, ids, words):
    write(folder / name, ids, 2017 if "2017" in name else 2014)
    refusal(lambda: make_splits(folder), f"{folder / name}: ", *words)
    assert not (folder / MINIVAL).exists() and not (folder / VALMINUSMINIVAL).exists()


def test_an_id_that_is_no_number(folder):
    def change(made):
        made["images"][1]["id"] = "285"

    write(folder / VAL2017, OF_MINIVAL, change=change)
    refusal(lambda: make_splits(folder), f"{folder / VAL2017}: images[1] has the id '285'")


def test_a_folder_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").touch()
    refusal(lambda: make_splits(folder, tmp_path / "file"), tmp_path / "file" / MINIVAL, "--to")


# ---- a file that is there ----


def old_minival(made):
    """As the file of 2015 is reported to be: objects missing, ids of crowds repeated, as floats."""
    made["annotations"] = [
        {**entry, "id": 908400416500.0 if entry["iscrowd"] else entry["id"]}
        for entry in made["annotations"]
    ] + [{**made["annotations"][1], "id": 908400416500.0}]


def test_the_old_minival_is_kept_and_counted(folder):
    write(folder / MINIVAL, OF_MINIVAL, 2014, old_minival)
    before = (folder / MINIVAL).read_bytes()
    made = make_splits(folder)
    assert (folder / MINIVAL).read_bytes() == before
    assert "(was there, kept)" in made.files[0] and "(was" not in made.files[1]
    text = "\n".join(made.notices)
    assert f"{MINIVAL}: 1 image(s) have no annotation" in text
    assert f"{MINIVAL}: 1 annotation id(s) are used more than once (2 of" in text
    assert f"{MINIVAL}: 2 annotation id(s) are no whole numbers" in text
    assert "DATASETS.RENUMBER_ANNOTATIONS True" in text


def test_what_the_notice_names_is_enough_to_read_it(folder):
    """And without it the reader refuses the file and names the same key."""
    write(folder / MINIVAL, OF_MINIVAL, 2014, old_minival)
    refusal(lambda: coco.read_coco(folder / MINIVAL), MINIVAL, "RENUMBER_ANNOTATIONS")
    found = coco.read_coco(folder / MINIVAL, Rules(renumber_annotations=True))
    assert len({entry["id"] for entry in found["annotations"]}) == 3


@pytest.mark.parametrize("name", [MINIVAL, VALMINUSMINIVAL])
def test_another_file_is_never_written_over(folder, name):
    write(folder / name, [139, 8], 2014)
    before = (folder / name).read_bytes()
    refusal(lambda: make_splits(folder), f"{folder / name}: is there already", "lacks", "remove it")
    assert (folder / name).read_bytes() == before


def test_twice_gives_the_same(folder):
    make_splits(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    made = make_splits(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert all("kept" in line for line in made.files)


# ---- Detectron2's own names ----


NAMES = {
    "coco_2014_train": OF_TRAIN2014,
    "coco_2014_valminusminival": OF_REST,
    "coco_2014_minival": OF_MINIVAL,
}


@pytest.fixture
def found_here(folder):
    """Detectron2 joins $DETECTRON2_DATASETS when it is imported; for this test it is our folder."""
    places = {}
    for name in NAMES:
        meta = coco.MetadataCatalog.get(name)
        places[name] = meta.json_file, meta.image_root
        assert all("coco/" in place for place in places[name])
        for key, place in zip(("json_file", "image_root"), places[name], strict=True):
            meta.__dict__[key] = str(folder.parent / place.split("coco/", 1)[1])
    yield
    for name, place in places.items():
        coco.register_coco(name, *place)


def test_the_names_of_2014_can_be_trained_on(folder, found_here):
    """Through registration and every check, with pictures in the layout of 2014."""
    write(folder / TRAIN2014, OF_TRAIN2014, 2014, name_as_train)
    make_splits(folder)
    for split, ids in (("train2014", OF_TRAIN2014), ("val2014", OF_VAL2014)):
        (folder.parent / split).mkdir()
        for i in ids:
            Image.new("RGB", (8, 6)).save(folder.parent / split / f"COCO_{split}_{i:012d}.jpg")
    cfg = load_cfg(None, ["MODEL.DEVICE", "cpu"])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(NAMES)[:2], tuple(NAMES)[2:]
    pipeline.prepare(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    for name, ids in NAMES.items():
        records = coco.load(name)
        assert [record["image_id"] for record in records] == ids
        assert [len(record["annotations"]) for record in records][1:] == [2] * (len(ids) - 1)
        assert all(record["file_name"].startswith(str(folder.parent)) for record in records)


def name_as_train(made):
    for entry in made["images"]:
        entry["file_name"] = f"COCO_train2014_{entry['id']:012d}.jpg"
