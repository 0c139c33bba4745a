"""Guard the exchange with Detectron2: it reads what is written here, what it holds is checked."""

import pickle
import tracemalloc

import numpy as np
import pytest
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from resnext_det.data.proposal_pickle import proposals_in, write_pickle
from resnext_det.data.proposals import ProposalFile, write_proposals
from resnext_det.errors import InputError

COUNTS = {40: 3, 2: 5, 2**40: 0, 11: 1, 0: 4}


def made():
    rng = np.random.default_rng(0)
    for image_id, count in COUNTS.items():
        boxes = rng.uniform(0, 100, (count, 4)).astype(np.float32)
        yield image_id, boxes, rng.normal(size=count).astype(np.float32)


@pytest.fixture
def stored(tmp_path):
    write_proposals(tmp_path / "made.safetensors", made(), "some set")
    return ProposalFile(tmp_path / "made.safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "proposals.pkl"


def content(**others):
    """Two images, as Detectron2's evaluator writes them."""
    return {
        "ids": [3, 8],
        "boxes": [np.array([[1, 2, 30, 40]], np.float32), np.ones((2, 4), np.float32)],
        "objectness_logits": [np.array([0.5], np.float32), np.array([1, 2], np.float32)],
        "bbox_mode": 0,
        **others,
    }


def taken(found):
    return {image_id: (boxes, logits) for image_id, boxes, logits in proposals_in("p.pkl", found)}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for image_id, arrays in expected.items():
        for ours, theirs in zip(found[image_id], arrays, strict=True):
            assert ours.dtype == np.float32 and ours.shape == theirs.shape
            np.testing.assert_array_equal(ours, theirs)


# ---- writing ----


def test_written_as_documented(stored, path):
    """NumPy arrays under the four names, and nothing else."""
    write_pickle(path, stored)
    found = pickle.loads(path.read_bytes())
    assert list(found) == ["ids", "boxes", "objectness_logits", "bbox_mode"]
    assert found["ids"] == sorted(COUNTS) and found["bbox_mode"] == BoxMode.XYXY_ABS.value
    assert all(type(array) is np.ndarray for array in found["boxes"] + found["objectness_logits"])
    assert_equal(taken(found), {image_id: stored[image_id] for image_id in sorted(COUNTS)})
    found["boxes"][0][:] = 0  # own memory, as after `pickle.dump`


def test_detectron2_reads_it(stored, path):
    write_pickle(path, stored)
    records = load_proposals_into_dataset([{"image_id": i} for i in COUNTS], str(path))
    for record in records:
        boxes, logits = stored[record["image_id"]]
        np.testing.assert_array_equal(record["proposal_boxes"], boxes)
        np.testing.assert_array_equal(record["proposal_objectness_logits"], logits)
        assert record["proposal_bbox_mode"] == BoxMode.XYXY_ABS


def test_any_numpy_reads_it(stored, path):
    """NumPy 2 calls its inner part numpy._core, which NumPy before 1.26 does not know."""
    write_pickle(path, stored)
    assert b"numpy._core" not in path.read_bytes() and b"numpy.core.multiarray" in path.read_bytes()


def test_written_whole_or_not_at_all(stored, path, monkeypatch):
    monkeypatch.setattr(ProposalFile, "__getitem__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_pickle(path, stored)
    assert [p.name for p in path.parent.iterdir()] == ["made.safetensors"]


def test_memory_does_not_grow_with_the_file(tmp_path, path):
    """24 MB are written with less than 2 in Python's hands."""
    boxes, logits = np.ones((4000, 4), np.float32), np.ones(4000, np.float32)
    write_proposals(tmp_path / "m.safetensors", ((i, boxes, logits) for i in range(300)), "m")
    stored = ProposalFile(tmp_path / "m.safetensors")
    tracemalloc.start()
    write_pickle(path, stored)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 24e6 and peak < 2e6


# ---- what a file held ----


def test_content_is_taken():
    given = content()
    arrays = zip(given["boxes"], given["objectness_logits"], strict=True)
    assert_equal(taken(given), dict(zip(given["ids"], arrays, strict=True)))


def test_detectron1s_names():
    found = content(indexes=np.array([3, 8]), scores=content()["objectness_logits"])
    del found["ids"], found["objectness_logits"], found["bbox_mode"]
    assert_equal(taken(found), taken(content()))


@pytest.mark.parametrize("ids", [["3", "8"], (3, 8), np.array([3, 8], np.uint8)], ids=str)
def test_ids_as_detectron2_takes_them(ids):
    assert_equal(taken(content(ids=ids)), taken(content()))


def test_boxes_by_width_and_height():
    found = taken(content(bbox_mode=BoxMode.XYWH_ABS))
    assert found[3][0].tolist() == [[1, 2, 31, 42]]
    assert_equal(taken(content(bbox_mode=np.int64(0))), taken(content()))


def test_other_numbers_become_float32():
    found = taken(content(boxes=[np.array([[1, 2, 30, 40]]), np.ones((2, 4))]))
    assert_equal(found, taken(content()))


@pytest.mark.parametrize("empty", [np.zeros((0, 4)), np.zeros(0), []], ids=repr)
def test_an_image_without_boxes(empty):
    found = taken(content(boxes=[empty, np.ones((2, 4))], objectness_logits=[[], np.ones(2)]))
    assert found[3][0].shape == (0, 4) and found[3][1].shape == (0,)


REFUSALS = {
    "no dict": ([1, 2], ["holds a list, not a dict"]),
    "no logits": ({"ids": [1], "boxes": []}, ["has no field objectness_logits (it has ids, boxes"]),
    "no list": (content(boxes=5), ["its boxes are no list"]),
    "lengths": (content(ids=[1, 2, 3]), ["differ in length", "'ids': 3", "'boxes': 2"]),
    "relative boxes": (content(bbox_mode=BoxMode.XYXY_REL), ["bbox_mode is", "XYWH_ABS (1)"]),
    "mode by name": (content(bbox_mode="XYXY_ABS"), ["bbox_mode is 'XYXY_ABS'"]),
    "id by name": (content(ids=["a.jpg", "b.jpg"]), ["ids[0] is 'a.jpg'", "annotation file"]),
    "real id": (content(ids=[3, 8.5]), ["ids[1] is 8.5"]),
    "id with zeros": (content(ids=["003", "8"]), ["ids[0] is '003'"]),
    "id too large": (content(ids=[2**70, 8]), ["ids[0] is"]),
    "columns": (content(boxes=[np.ones((1, 5)), np.ones((2, 4))]), ["boxes of image 3", "(1, 5)"]),
    "logits' shape": (
        content(objectness_logits=[np.ones((1, 1)), np.ones(2)]),
        ["objectness_logits of image 3 has shape (1, 1)", "(N,)"],
    ),
    "counts": (
        content(objectness_logits=[np.ones(1), np.ones(3)]),
        ["image 8 has 2 boxes and 3 objectness_logits"],
    ),
    "not finite": (
        content(boxes=[np.array([[0, 0, np.nan, 1]]), np.ones((2, 4))]),
        ["boxes of image 3 holds a value that is not finite"],
    ),
    "beyond float32": (
        content(boxes=[np.array([[0, 0, 1e300, 1]]), np.ones((2, 4))]),
        ["boxes of image 3 holds a value that is not finite"],
    ),
    "text": (content(boxes=[np.array(["a"]), np.ones((2, 4))]), ["boxes of image 3 is no array"]),
    "ragged": (content(boxes=[[[1], [2, 3]], np.ones((2, 4))]), ["boxes of image 3 is no array"]),
    "none": (content(boxes=[None, np.ones((2, 4))]), ["boxes of image 3", "NoneType"]),
}


@pytest.mark.parametrize("given, words", REFUSALS.values(), ids=REFUSALS)
def test_refusals(given, words):
    with pytest.raises(InputError) as caught:
        taken(given)
    message = str(caught.value)
    assert message.startswith("p.pkl: ") and "\n" not in message and len(message) < 300
    for word in words:
        assert word in message, message
