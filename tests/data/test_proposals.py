"""Guard docs/proposals.md: what goes in comes out, by image id, not all at once."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from resnext_det.data.proposals import (
    ProposalFile,
    ProposalFiles,
    ProposalWriter,
    join_parts,
    open_proposals,
    write_proposals,
)
from resnext_det.errors import InputError

COUNTS = {40: 3, 2: 5, 700: 0, 11: 1, 5: 4, 0: 0, 12: 2}


def proposals(image_id, count):
    """Boxes (count, 4) and logits (count,), unsorted, different for each image."""
    rng = np.random.default_rng(image_id)
    boxes = rng.uniform(0, 100, (count, 4)).astype(np.float32)
    return boxes, rng.normal(size=count).astype(np.float32)


def write(path, images, parts=1):
    """``images`` (ids) dealt out to the parts in turn, as the processes of a run would."""
    for part in range(parts):
        writer = ProposalWriter(path, part)
        for image_id in images[part::parts]:
            writer.add(image_id, *proposals(image_id, COUNTS[image_id]))
        writer.close()
    join_parts(path, parts, "some set")
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "train.safetensors", list(COUNTS), parts=3)


@pytest.mark.parametrize("parts", [1, 2, 3, 9])  # with 9, some processes have no image
def test_file_equals_memory(tmp_path, parts):
    stored = ProposalFile(write(tmp_path / "train.safetensors", list(COUNTS), parts))
    assert len(stored) == len(COUNTS)
    for image_id, count in COUNTS.items():
        boxes, logits = proposals(image_id, count)
        order = np.argsort(-logits)
        found_boxes, found_logits = stored[image_id]
        assert found_boxes.dtype == found_logits.dtype == np.float32
        assert found_boxes.shape == (count, 4) and found_logits.shape == (count,)
        np.testing.assert_array_equal(found_boxes, boxes[order])
        np.testing.assert_array_equal(found_logits, logits[order])


def test_parts_do_not_change_the_file(tmp_path):
    one, three = tmp_path / "one.safetensors", tmp_path / "three.safetensors"
    write(one, list(COUNTS))
    write(three, list(COUNTS)[::-1], parts=3)
    assert one.read_bytes() == three.read_bytes()


def test_nothing_is_left_beside_the_file(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_any_safetensors_reader_can_read_it(path):
    """The table of docs/proposals.md, field by field."""
    with safe_open(path, framework="np") as file:
        fields = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = file.metadata()
    assert meta == {
        "format": "resnext_det proposals 1",
        "bbox_mode": "XYXY_ABS",
        "source": "some set",
    }
    rows = sum(COUNTS.values())
    assert {name: (field.dtype.name, field.shape) for name, field in fields.items()} == {
        "image_ids": ("int64", (len(COUNTS),)),
        "offsets": ("int64", (len(COUNTS) + 1,)),
        "boxes": ("float32", (rows, 4)),
        "objectness_logits": ("float32", (rows,)),
    }
    assert fields["image_ids"].tolist() == sorted(COUNTS)
    for i in range(len(COUNTS)):
        logits = fields["objectness_logits"][fields["offsets"][i] : fields["offsets"][i + 1]]
        assert (np.diff(logits) <= 0).all()


def refuse(path, *words):
    with pytest.raises(InputError) as caught:
        ProposalFile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for word in (*words, "--stage proposals"):
        assert word in message


def test_missing_file(tmp_path):
    refuse(tmp_path / "train.safetensors", "does not exist")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_file(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    refuse(path, "not a whole proposal file")


def test_another_kind_of_file(path):
    save_file({"stem.conv1.weight": np.zeros(3, np.float32)}, path)
    refuse(path, "not a whole proposal file")


@pytest.mark.parametrize(
    "offsets",
    [[0, 2], [0, 2, 5], [1, 2, 4], [0, 5, 4], [0, 2, 3, 4], []],
    ids=str,
)
def test_offsets_that_lie(path, offsets):
    fields = {
        "image_ids": np.array([3, 8]),
        "offsets": np.array(offsets, np.int64),
        "boxes": np.zeros((4, 4), np.float32),
        "objectness_logits": np.zeros(4, np.float32),
    }
    save_file(fields, path)
    refuse(path, "offsets")


def test_logits_that_do_not_fit_the_boxes(path):
    fields = {
        "image_ids": np.array([3]),
        "offsets": np.array([0, 4]),
        "boxes": np.zeros((4, 4), np.float32),
        "objectness_logits": np.zeros(3, np.float32),
    }
    save_file(fields, path)
    refuse(path, "offsets")


def fields(**others):
    return {
        "image_ids": np.array([3, 8]),
        "offsets": np.array([0, 2, 4]),
        "boxes": np.zeros((4, 4), np.float32),
        "objectness_logits": np.zeros(4, np.float32),
        **others,
    }


def test_a_file_by_any_safetensors_writer(path):
    """The four fields are enough."""
    save_file(fields(), path)
    assert ProposalFile(path).image_ids == [3, 8]


@pytest.mark.parametrize(
    "others, metadata, word",
    [
        ({}, {"bbox_mode": "XYWH_ABS"}, "bbox_mode is 'XYWH_ABS'"),
        ({}, {"format": "resnext_det proposals 9"}, "'resnext_det proposals 9'"),
        ({"boxes": np.zeros((4, 4))}, {}, "types ['int64', 'int64', 'F64', 'F32']"),
        ({"image_ids": np.array([3, 3])}, {}, "an image id appears twice"),
    ],
    ids=["box mode", "format", "type", "ids"],
)
def test_another_meaning_is_refused(path, others, metadata, word):
    save_file(fields(**others), path, metadata=metadata)
    refuse(path, word)


def test_image_that_is_not_covered(path):
    stored = ProposalFile(path)
    stored.check_covers([700, 2])
    with pytest.raises(InputError) as caught:
        stored.check_covers([2, 3, 40, 41])
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "2 of the data set's 4" in message
    assert "image 3" in message


@pytest.fixture
def two(tmp_path):
    """The same proposals, dealt out to two files."""
    images = list(COUNTS)
    return [write(tmp_path / f"{n}.safetensors", images[n::2]) for n in (0, 1)]


def test_several_files_are_one(path, two):
    one, both = open_proposals([path]), open_proposals(two)
    assert len(one) == len(both) == len(COUNTS)
    for image_id in COUNTS:
        for ours, theirs in zip(both[image_id], one[image_id], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    both.check_covers(list(COUNTS))
    with pytest.raises(InputError) as caught:
        both.check_covers([2, 3])
    assert str(caught.value).startswith(f"{two[0]}, {two[1]}: ") and "image 3" in str(caught.value)
    copied = pickle.loads(pickle.dumps(both))
    np.testing.assert_array_equal(copied[5][0], one[5][0])


def test_an_image_in_two_files(path, two):
    with pytest.raises(InputError) as caught:
        ProposalFiles([two[0], path])
    message = str(caught.value)
    assert message.startswith(f"{path}: holds image ") and str(two[0]) in message


@pytest.mark.parametrize("cause", ["an id twice", "the source breaks off"])
def test_nothing_is_left_of_a_file_that_failed(tmp_path, cause):
    def given():
        yield 2, *proposals(2, 5)
        if cause == "an id twice":
            yield 2, *proposals(2, 5)
        else:
            raise InputError("source", "ends", "copy it again")

    with pytest.raises(InputError):
        write_proposals(tmp_path / "made.safetensors", given(), "some set")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parts", [1, 2])
def test_image_id_twice(tmp_path, parts):
    path = tmp_path / "train.safetensors"
    with pytest.raises(InputError, match=f"{path}: .*twice"):
        write(path, [2, 40, 11, 2, 40], parts)
    assert not path.exists()


def test_half_written_file_is_never_left(tmp_path):
    path = tmp_path / "train.safetensors"
    writer = ProposalWriter(path)
    writer.add(2, *proposals(2, 5))
    assert not path.exists()
    writer.close()
    with pytest.raises(FileNotFoundError):
        join_parts(path, parts=2, source="the second process is missing")
    assert not path.exists()


def test_reader_survives_pickling(path):
    stored = pickle.loads(pickle.dumps(ProposalFile(path)))
    np.testing.assert_array_equal(stored[5][0], ProposalFile(path)[5][0])
    assert len(pickle.dumps(ProposalFile(path))) < 500  # the path, not the boxes


class Images(torch.utils.data.Dataset):
    def __init__(self, stored):
        self.stored = stored

    def __len__(self):
        return len(COUNTS)

    def __getitem__(self, i):
        return self.stored[list(COUNTS)[i]]


def test_reader_works_in_a_data_worker(path):
    loader = torch.utils.data.DataLoader(
        Images(ProposalFile(path)),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="forkserver",  # nothing inherited: the reader is pickled
    )
    for image_id, (boxes, logits) in zip(COUNTS, loader, strict=True):
        expected, scores = proposals(image_id, COUNTS[image_id])
        order = np.argsort(-scores)
        np.testing.assert_array_equal(np.asarray(boxes), expected[order])
        np.testing.assert_array_equal(np.asarray(logits), scores[order])


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """200 MB of proposals (COCO's 2000 an image would be 4.7 GB) written and read in under 20."""
    path, images, rows = tmp_path / "large.safetensors", 1000, 10_000
    boxes, logits = np.ones((rows, 4), np.float32), np.arange(rows, dtype=np.float32)
    before = resident_bytes()
    writer = ProposalWriter(path)
    for image_id in range(images):
        writer.add(image_id, boxes, logits)
    writer.close()
    join_parts(path, 1, "large")
    written = resident_bytes()
    assert path.stat().st_size > 200e6
    stored = ProposalFile(path)
    held = [stored[image_id] for image_id in range(0, images, 50)]  # 20 images, 4 MB
    read = resident_bytes()
    assert sum(found[0].nbytes + found[1].nbytes for found in held) == 20 * rows * 20
    assert written - before < 20e6
    assert read - written < 20e6
