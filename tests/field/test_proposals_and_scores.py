"""Guard what people meet in scoring and in the pipeline of two networks.

docs/field_reports.md lists what the other folders test of it.
"""

import json

import numpy as np
import pytest
from tiny_sets import make_cfg, plain_set, refusal

from resnext_det.data.proposals import write_proposals
from resnext_det.detection import pipeline
from resnext_det.detection.predict import Predictor

SET = "field_scores"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    pipeline.run(make_cfg(folder / "run", [(SET, plain_set(folder), folder)]), resume=False)
    return folder


def score(trained, path, output):
    weights = str(trained / "run" / "model_final.safetensors")
    cfg = pipeline.evaluation_cfg(None, weights)
    cfg.DATASETS.COCO_JSON = [[SET, str(path), str(trained)]]
    cfg.OUTPUT_DIR = str(output)
    output.mkdir(exist_ok=True)
    return pipeline.evaluate_only(cfg, weights)[SET]


def with_boxes(trained, boxes, output):
    """The set's file with other boxes: {image id: [box, ...]}, all of class 1."""
    content = json.loads((trained / "set.json").read_text())
    content["annotations"] = [
        {"id": 10 * image + number, "image_id": image, "category_id": 1, "bbox": list(box)}
        for image, own in boxes.items()
        for number, box in enumerate(own)
    ]
    (output / "edited.json").write_text(json.dumps(content))
    return output / "edited.json"


def test_an_edited_file_is_read_anew(trained, tmp_path):
    """The same path, the same name, the same folder: the figures are those of the new boxes."""
    path = with_boxes(trained, {1: [[0, 0, 3, 3]]}, tmp_path)
    before = score(trained, path, tmp_path / "eval")["bbox"]["AP"]
    found = json.loads(
        (tmp_path / "eval/inference" / SET / "coco_instances_results.json").read_text()
    )
    best = max((one for one in found if one["category_id"] == 1), key=lambda one: one["score"])
    assert before == 0
    with_boxes(trained, {best["image_id"]: [best["bbox"]]}, tmp_path)
    assert score(trained, path, tmp_path / "eval")["bbox"]["AP"] == pytest.approx(100)


def test_fast_rcnn_alone_is_not_asked_for_boxes(trained):
    """It would need proposals with every image; the mend names the file of both networks."""
    path = trained / "run" / "fast_rcnn" / "model_final.safetensors"
    refusal(lambda: Predictor(path), f"{path}: ", "fast_rcnn weights", "model_final.safetensors")


def test_both_networks_together_take_one_image(trained):
    predict = Predictor(trained / "run" / "model_final.safetensors")
    assert len(predict(trained / "1.png")) > 0


def test_proposals_of_another_set(trained, tmp_path):
    """Refused by image id before anything is trained."""
    box, logit = np.array([[0.0, 0, 9, 9]]), np.zeros(1)
    path = tmp_path / "theirs.safetensors"
    write_proposals(path, [(1, box, logit), (99, box, logit)], source="another set")
    files = {"PROPOSALS.FILES": f"('{path}',)"}
    cfg = make_cfg(tmp_path / "run", [(SET, trained / "set.json", trained)], **files)
    refusal(lambda: pipeline.run(cfg, resume=False), path, "image 2")
    assert not (tmp_path / "run").exists()
