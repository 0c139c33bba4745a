"""Guard refusals that other tests do not come to: rare faults of files and disks."""

import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_sets import refusal

from resnext_det.classification.weights_setup import check_classes, require_weights
from resnext_det.config import get_cfg, load_cfg
from resnext_det.data import coco_images, demo, imagenet5k
from resnext_det.data.proposals import ProposalFile, ProposalWriter, join_parts
from resnext_det.detection import pipeline, predict_files
from resnext_det.detection.loaders import load_records
from resnext_det.detection.proposals import dump_from_weights
from resnext_det.engine.folders import check_place, new_folder
from resnext_det.weights import kinds, torch7

# ---- configs and weights ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SOLVER: {BASE_LR: .nan}", ("SOLVER.BASE_LR is nan",)),
        ("SOLVER: {STEPS: [a, b]}", ("SOLVER.STEPS is ('a', 'b')",)),
        ("DATASETS: {TRAIN: [3]}", ("DATASETS.TRAIN is (3,)",)),
    ],
)
def test_values_that_no_key_can_have(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refusal(lambda: load_cfg(path), path, "its default is", *words)


def test_evaluation_wants_weights():
    refusal(lambda: require_weights(get_cfg()), "MODEL.WEIGHTS", "needs trained weights")


def test_weights_without_a_classification_head():
    record = SimpleNamespace(kind="rpn", class_names=())
    call = lambda: check_classes("w.safetensors", {}, record, None)  # noqa: E731
    refusal(call, "w.safetensors", "holds rpn weights without a classification head")


def test_a_path_that_is_no_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refusal(lambda: kinds.require_file(pipe), pipe, "is no file")


def test_a_torch7_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.t7"
    path.write_bytes(b"1234")

    def no_map(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr(torch7.mmap, "mmap", no_map)
    refusal(lambda: torch7.read_torch7(path), path, "cannot be read (No such device)")


# ---- data ----


def test_a_process_that_the_system_ends_while_it_decodes(monkeypatch, tmp_path):
    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def map(self, *_):
            raise BrokenProcessPool("ended")
            yield

    monkeypatch.setattr(coco_images, "_pool", lambda *_: Pool())
    call = lambda: coco_images.read_headers(["a.jpg", "b.jpg"], decode=True)  # noqa: E731
    refusal(call, "a.jpg", "was ended while it decoded", "--workers")


def test_a_demo_set_that_is_none(tmp_path):
    (tmp_path / "demo.json").write_text("{")
    refusal(lambda: demo.write_demo(tmp_path), tmp_path / "demo.json", "is not JSON")
    (tmp_path / "file").touch()
    refusal(lambda: demo.write_demo(tmp_path / "file"), tmp_path / "file", "is not a folder")


def test_imagenet5k_on_a_disk_that_does_not_serve(tmp_path):
    (tmp_path / "n01").touch()
    refusal(lambda: imagenet5k._images_in(tmp_path / "n01"), "n01", "cannot be read")
    output = tmp_path / "n01" / "lists"
    call = lambda: imagenet5k._write(output, [], (Path("train"), {}), None)  # noqa: E731
    refusal(call, output, "cannot be written", "--output")


def test_proposals_that_are_no_numbers(tmp_path):
    path = tmp_path / "train.safetensors"
    writer = ProposalWriter(path, 0)
    writer.add(7, np.ones((2, 4), np.float32), np.zeros(2, np.float32))
    writer.close()
    join_parts(path, 1, "some set")
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name).copy() for name in file.keys()}
        metadata = file.metadata()
    name = next(name for name, tensor in tensors.items() if tensor.shape == (2, 4))
    tensors[name][1, 2] = np.inf
    save_file(tensors, path, metadata)
    refusal(lambda: ProposalFile(path)[7], path, "image 7", "not finite")


def test_training_data_of_crowds_alone():
    record = {"image_id": 1, "annotations": [{"iscrowd": 1}]}
    DatasetCatalog.register("crowds_alone", lambda: [record])
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("crowds_alone",)
    try:
        refusal(lambda: load_records(cfg), "crowds_alone", "no image with an object", "iscrowd")
    finally:
        DatasetCatalog.remove("crowds_alone")


def test_no_data_set_to_score_or_to_propose_for(tmp_path):
    cfg = get_cfg()
    refusal(lambda: pipeline.evaluate_only(cfg, "w"), "DATASETS.TEST is empty", "--val-json")
    cfg.SEED = 0
    call = lambda: dump_from_weights(cfg, "w", tmp_path / "a", "resnext_det")  # noqa: E731
    refusal(call, "DATASETS.TRAIN is empty", "--dataset")


def test_a_number_of_workers_that_is_none():
    refusal(lambda: coco_images.read_headers(["a.jpg"], workers=-3), "--workers: is -3", "give 0")


# ---- what is written ----


@pytest.mark.parametrize("name", ["pictures", "inference"])
def test_a_file_in_the_place_of_a_folder_of_results(tmp_path, name):
    """Told before the hours of work that end in it."""
    (tmp_path / name).touch()
    refusal(lambda: check_place(tmp_path), tmp_path / name, "is no folder", "remove or rename it")


def test_a_film_that_opencv_cannot_write(tmp_path, monkeypatch):
    class Closed:
        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoWriter", lambda *_: Closed())
    film, frame = tmp_path / "film.mp4", np.zeros((4, 4, 3), np.uint8)
    refusal(lambda: predict_files._writer(film, 25.0, frame), film, "--json-only")


def test_a_folder_that_the_system_does_not_make(tmp_path, monkeypatch):
    make = Path.mkdir

    def refuse(path, *args, **kwargs):
        if path.name == "a":
            raise OSError(5, "Input/output error")
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    refusal(lambda: new_folder(tmp_path / "a"), tmp_path / "a", "cannot be made (Input/output")
