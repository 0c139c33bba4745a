"""Guard what people meet in data sets that are unusual and right: they train, score and predict.

What is wrong in a data set is tested in tests/data; docs/field_reports.md lists both.
"""

import copy
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_sets import make_cfg, picture, plain_set, write_set

from resnext_det.data import coco
from resnext_det.detection import pipeline
from resnext_det.detection.loaders import load_records
from resnext_det.detection.predict import Predictor
from resnext_det.errors import InputError
from resnext_det.weights import read_record

EXIF_ORIENTATION, TURNED = 0x0112, 6
MODES = ("RGB", "L", "I;16", "RGBA", "P", "LA", "1", "CMYK")
IDS = {333: "Löffel", 0: "background", 7: "cup"}  # in no order, with gaps, 0 without an object


@pytest.fixture
def catalogs(monkeypatch):
    """Detectron2's catalogues, put back afterwards."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))


def wild_set(folder):
    """Every mode, sub-folders, names not in ASCII, an absolute name, EXIF, background, no sizes."""
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": id_, "name": name} for id_, name in IDS.items()]
    for number, mode in enumerate((*MODES, "turned")):
        path = folder / f"täglich {number % 2}" / f"画像 {number}"
        path = path.with_suffix(".tif" if mode == "CMYK" else ".png")
        path.parent.mkdir(exist_ok=True)
        if mode == "turned":
            image = picture(number)
            image.getexif()[EXIF_ORIENTATION] = TURNED
            path = path.with_suffix(".jpg")
            image.save(path, exif=image.getexif())
        else:
            picture(number, mode).save(path)
        size = {"width": 72, "height": 96} if mode == "turned" else {"width": 96, "height": 72}
        name = str(path) if mode == "L" else path.relative_to(folder).as_posix()
        content["images"].append({"id": 2**40 + number, "file_name": name, **size})
    del content["images"][2]["width"], content["images"][2]["height"]
    for number, image in enumerate(content["images"][:-2]):  # two are background
        entry = {"image_id": image["id"], "category_id": (7, 333)[number % 2], "segmentation": []}
        boxes = [[5.5, 6, 30, 40], [40, 20, 60, 50]]  # the second reaches over the border
        for box in boxes:
            own = {"id": len(content["annotations"]), "bbox": box}  # ids from 0; no iscrowd, area
            content["annotations"].append({**entry, **own})
    return write_set(folder, content)


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """(folder of the run, JSON, content of the JSON): trained, joined and scored."""
    folder = tmp_path_factory.mktemp("wild")
    path = wild_set(folder)
    cfg = make_cfg(folder / "run", [("field_wild", path, folder)])
    (folder / "run").mkdir()
    pipeline.run(cfg, resume=False)
    return folder / "run", path, json.loads(path.read_text())


def detections_of(run):
    return json.loads((run / "inference/field_wild/coco_instances_results.json").read_text())


def test_any_ids_come_back_in_the_results(wild):
    run, _, content = wild
    record = read_record(run / "model_final.safetensors")
    assert dict(zip(record.class_ids, record.class_names, strict=True)) == IDS
    found = detections_of(run)
    assert {one["image_id"] for one in found} == {image["id"] for image in content["images"]}
    assert {7, 333} <= {one["category_id"] for one in found} <= set(IDS)
    results = json.loads((run / "results.json").read_text())["bbox"]
    assert results["AP-background"] is None and results["AP-cup"] is not None


def test_prediction_reads_pictures_as_evaluation_does(wild):
    """The same boxes and scores, whatever the kind of picture."""
    run, path, content = wild
    predict, found = Predictor(run / "model_final.safetensors"), detections_of(run)
    for image in content["images"]:
        ours = predict(path.parent / image["file_name"])
        theirs = [one for one in found if one["image_id"] == image["id"]]
        assert len(ours) == len(theirs) > 0, image
        scores = sorted(one["score"] for one in theirs)
        np.testing.assert_allclose(sorted(ours.scores), scores, atol=1e-4)
        width, height = ours.image.shape[1::-1]
        assert (width, height) == (image.get("width", 96), image.get("height", 72))


def test_what_is_filled_in_is_counted_once(tmp_path, caplog):
    path = wild_set(tmp_path)
    cfg = make_cfg(tmp_path / "run", [("field_counted", path, tmp_path)])
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        pipeline.prepare(cfg)
    for words in ("14 x ", "1 x missing height or width", "2 x image without objects"):
        assert words in caplog.text
    lines = [record.message for record in caplog.records]
    assert sum("iscrowd" in line for line in lines) == 1 == sum(" area" in line for line in lines)


def test_the_map_of_ids_is_logged(tmp_path, caplog):
    path = wild_set(tmp_path)
    cfg = make_cfg(tmp_path / "run", [("field_mapped", path, tmp_path)])
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        pipeline.prepare(cfg)
    lines = [record.message for record in caplog.records]
    assert [line for line in lines if "333" in line and "background" in line]


# ---- built-in names ----


def test_a_built_in_name_for_ones_own_set(tmp_path, catalogs):
    """Named in the config, its classes are those of the file, not COCO's 80."""
    path = plain_set(tmp_path)
    sets = [("coco_2017_train", path, tmp_path), ("coco_2017_val", path, tmp_path)]
    cfg = make_cfg(tmp_path / "run", sets)
    pipeline.prepare(cfg)
    assert coco.class_names("coco_2017_val") == (["cup", "pan"], [1, 2])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2


def test_the_file_of_a_built_in_name_written_over(tmp_path, catalogs):
    path = plain_set(tmp_path)
    for name in ("coco_2017_train", "coco_2017_val"):
        meta = copy.copy(MetadataCatalog.get(name))
        assert len(meta.thing_classes) == 80
        meta.__dict__.update(json_file=str(path), image_root=str(tmp_path))
        MetadataCatalog.data[name] = meta
    cfg = make_cfg(tmp_path / "run", [("field_unused", path, tmp_path)])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2017_train",), ("coco_2017_val",)
    pipeline.prepare(cfg)
    assert coco.class_names("coco_2017_train")[0] == ["cup", "pan"]


# ---- images without objects ----


@pytest.mark.parametrize("left_out", [True, False])
def test_images_without_objects_by_a_switch(tmp_path, caplog, left_out):
    path = wild_set(tmp_path)
    key = {"DATALOADER.FILTER_EMPTY_ANNOTATIONS": left_out}
    cfg = make_cfg(tmp_path / "run", [(f"field_empty_{left_out}", path, tmp_path)], **key)
    with caplog.at_level(logging.INFO, logger="resnext_det"):
        pipeline.prepare(cfg)
        records = load_records(cfg)
    assert len(records) == (7 if left_out else 9)
    told = "2 x image without objects" in caplog.text
    assert told and ("leaves it out" if left_out else "keeps it as background") in caplog.text
    assert ("7 of 9 training images have objects" in caplog.text) is left_out


# ---- the table of all kinds ----


def test_the_tables_tests_are_there():
    """Every test that docs/field_reports.md names."""
    tests = Path(__file__).parents[1]
    text = (tests.parent / "docs" / "field_reports.md").read_text()
    named = re.findall(r"`tests/([a-z0-9_/]+\.py)::(test_\w+)`", text)
    assert len(named) > 60
    for file, name in named:
        assert f"def {name}(" in (tests / file).read_text(), f"{file}::{name}"


def test_a_training_without_an_object(tmp_path, catalogs):
    """Background alone teaches nothing; beside a set with objects it is welcome."""
    path = plain_set(tmp_path)
    content = {**json.loads(path.read_text()), "annotations": []}
    sets = [("background", write_set(tmp_path, content, "empty.json"), tmp_path)]
    sets.append(("plain", path, tmp_path))
    with pytest.raises(InputError, match="empty.json: has no object in its 4 images"):
        pipeline.prepare(make_cfg(tmp_path / "run", sets))
