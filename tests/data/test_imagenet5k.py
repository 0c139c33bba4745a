"""Guard the set of paper, Sec. 5.2: ILSVRC's classes, then those with the most images.

Here 2 classes stand for ILSVRC's 1,000, 4 for the 5,000 and 6 for ImageNet-22K.
"""

import os

import pytest

from resnext_det.data import imagenet5k
from resnext_det.data.imagenet5k import choose, ilsvrc_classes, make, read_wnids
from resnext_det.data.lists import read_list
from resnext_det.errors import InputError

ILSVRC = ["n00000003", "n00000005"]
COUNTS = {
    "n00000001": 2,
    "n00000002": 4,
    "n00000003": 1,
    "n00000004": 4,
    "n00000005": 3,
    "n00000006": 5,
}
# The most images, then the lower wnid of the two that have four.
CHOSEN = [*ILSVRC, "n00000006", "n00000002"]


def images(folder, number, suffix="JPEG"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in reversed(range(number)):
        (folder / f"{folder.name}_{i}.{suffix}").touch()


@pytest.fixture
def trees(tmp_path):
    """ImageNet-22K and ImageNet-1K, with what else lies about in such folders."""
    big, small = tmp_path / "big", tmp_path / "small"
    for wnid, number in COUNTS.items():
        images(big / wnid, number)
    (big / "n00000006" / "readme.txt").touch()
    images(big / "thumbnails", 9)
    (big / "n00000007").touch()
    for wnid in ILSVRC:
        images(small / "val" / wnid, 2)
    return big, small


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    for word in words:
        assert str(word) in message, message


def listed(path):
    entries, classes = read_list(path)
    return [(entries.path(i), int(entries.labels[i])) for i in range(len(entries))], classes


def test_the_three_files(trees, tmp_path):
    made = make(*trees, tmp_path / "deep" / "5k", total=4)
    folder = tmp_path / "deep" / "5k"
    assert sorted(path.name for path in folder.iterdir()) == ["classes.txt", "train.txt", "val.txt"]
    assert (folder / "classes.txt").read_text().split() == CHOSEN
    found, classes = listed(folder / "train.txt")
    assert classes == CHOSEN
    assert found == [
        (f"{wnid}/{wnid}_{i}.JPEG", label)
        for label, wnid in enumerate(CHOSEN)
        for i in range(COUNTS[wnid])
    ]
    assert all((trees[0] / path).is_file() for path, _ in found)
    found, classes = listed(folder / "val.txt")
    assert classes == CHOSEN  # the same numbers for the same classes
    assert found == [
        (f"val/{wnid}/{wnid}_{i}.JPEG", label)
        for label, wnid in enumerate(ILSVRC)
        for i in range(2)
    ]
    assert (made.classes, made.ilsvrc, made.counts, made.val_images) == (CHOSEN, 2, [1, 3, 5, 4], 4)
    assert list(tmp_path.joinpath("deep").iterdir()) == [folder]  # nothing of the writing is left


def test_the_counts_in_words(trees, tmp_path):
    assert make(*trees, tmp_path / "5k", total=4).lines() == [
        "classes.txt: 4 classes, 2 of ILSVRC; each of the others has 4 images or more",
        "train.txt: 13 images, 4 of ILSVRC's classes",
        "val.txt: 4 images",
    ]
    assert (
        make(*trees, tmp_path / "1k", total=2).lines()[0] == "classes.txt: 2 classes, 2 of ILSVRC"
    )


@pytest.mark.parametrize("threads", [1, 8])
def test_the_same_trees_give_the_same_bytes(trees, tmp_path, threads):
    first, again = tmp_path / "first", tmp_path / "again"
    make(*trees, first, total=4)
    make(*trees, again, total=4, threads=threads)
    for name in ("classes.txt", "train.txt", "val.txt"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_a_tree_below_train(trees, tmp_path):
    """Paths stay relative to the folder that was named, which is DATA.ROOT."""
    whole = tmp_path / "whole"
    whole.mkdir()
    trees[0].rename(whole / "train")
    make(whole, trees[1], tmp_path / "5k", total=4)
    found, _ = listed(tmp_path / "5k" / "train.txt")
    assert found[0] == ("train/n00000003/n00000003_0.JPEG", 0)
    assert len(found) == 13


def test_linked_class_folders(trees, tmp_path):
    """The mend for a class of ILSVRC that a tree lacks."""
    (trees[0] / "n00000003").rename(tmp_path / "elsewhere")
    refusal(lambda: make(*trees, tmp_path / "5k", total=4), "n00000003", "links")
    (trees[0] / "n00000003").symlink_to(tmp_path / "elsewhere")
    assert make(*trees, tmp_path / "5k", total=4).classes == CHOSEN


def test_a_text_file_of_the_classes(trees, tmp_path):
    """No validation images are known then. Names may follow the wnids, in any order."""
    text = tmp_path / "synsets.txt"
    text.write_text("n00000005 goldfish, Carassius auratus\n\nn00000003 tench\n")
    made = make(trees[0], text, tmp_path / "5k", total=4)
    assert made.classes == CHOSEN and made.val_images is None and len(made.lines()) == 2
    assert not (tmp_path / "5k" / "val.txt").exists()


def test_a_fixed_list_keeps_its_order(trees, tmp_path):
    text = tmp_path / "fixed.txt"
    text.write_text("n00000005\nn00000001\nn00000003\nn00000006\n")
    made = make(*trees, tmp_path / "5k", total=4, class_list=text)
    assert made.classes == [*ILSVRC, "n00000001", "n00000006"]
    assert made.counts == [1, 3, 2, 5]


def test_its_own_classes_give_the_same_lists(trees, tmp_path):
    """Though the tree has grown since, and would now give others."""
    make(*trees, tmp_path / "first", total=4)
    images(trees[0] / "n00000001", 9)
    kept = {"class_list": tmp_path / "first" / "classes.txt"}
    make(*trees, tmp_path / "again", total=4, **kept)
    make(*trees, tmp_path / "other", total=4)
    first, again, other = (
        (tmp_path / name / "train.txt").read_bytes() for name in ("first", "again", "other")
    )
    assert first == again != other


def test_choose():
    counts = {"n1": 1, "n2": 0, "n3": 7, "n4": 7, "n5": 8}
    assert choose(counts, ["n1"], 4, "tree") == ["n1", "n5", "n3", "n4"]
    assert choose(counts, ["n1"], 3, "tree") == ["n1", "n5", "n3"]
    assert choose(counts, ["n1"], 1, "tree") == ["n1"]
    refusal(lambda: choose(counts, ["n1"], 5, "tree"), "tree: has 4 classes", "--classes is 5")


# ---- refusals ----


def test_ilsvrc_classes_that_are_missing(trees, tmp_path, monkeypatch):
    """Named before the hours of counting fourteen million files."""
    for number in range(10, 17):
        images(trees[1] / "val" / f"n000000{number}", 1)
    monkeypatch.setattr(imagenet5k, "_scan", None)
    refusal(
        lambda: make(*trees, tmp_path / "5k", total=20),
        f"{trees[0]}: has no images of 7 of the 9 classes of ILSVRC",
        "(n00000010, n00000011, n00000012, n00000013, n00000014, ...)",
        "ImageNet-1K's train/",
    )


def test_an_empty_class_of_ilsvrc(trees, tmp_path):
    (trees[0] / "n00000003" / "n00000003_0.JPEG").rename(trees[0] / "n00000003" / "a.txt")
    refusal(lambda: make(*trees, tmp_path / "5k", total=4), trees[0], "1 of the 2", "n00000003")
    assert not (tmp_path / "5k").exists()


def test_an_empty_validation_class(trees, tmp_path):
    for path in (trees[1] / "val" / "n00000005").iterdir():
        path.unlink()
    refusal(lambda: make(*trees, tmp_path / "5k", total=4), trees[1], "1 of the 2", "n00000005")


@pytest.mark.parametrize("total, word", [(1, "--classes is 1"), (7, "--classes is 7")])
def test_a_number_of_classes_that_cannot_be(trees, tmp_path, total, word):
    refusal(lambda: make(*trees, tmp_path / "5k", total=total), word)


def test_train_and_val_of_imagenet1k_differ(trees):
    images(trees[1] / "train" / "n00000003", 1)
    refusal(lambda: ilsvrc_classes(trees[1]), trees[1], "differ in 1", "n00000005")
    images(trees[1] / "train" / "n00000005", 1)
    assert ilsvrc_classes(trees[1]) == ILSVRC


def test_a_flat_validation_folder(tmp_path):
    images(tmp_path / "val", 3)
    refusal(lambda: ilsvrc_classes(tmp_path), tmp_path / "val", "no class folders", "<wnid>")


def test_no_tree(trees, tmp_path):
    call = lambda: make(tmp_path / "none", trees[1], tmp_path / "5k")  # noqa: E731
    refusal(call, f"{tmp_path / 'none'}: cannot be read", "<root>/<wnid>/<image>")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["names no wnid"]),
        ("n00000003\ntench n00000005\n", ['line 2 is "tench n00000005"', "n01440764"]),
        ("n0000003\n", ['line 1 is "n0000003"']),
        ("n00000003\nn00000005\nn00000003 a\n", ['line 3 is "n00000003 a" (so is line 1)']),
        (None, ["cannot be read"]),
    ],
)
def test_refused_text_files(tmp_path, text, words):
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    refusal(lambda: read_wnids(path), f"{path}: ", *words)


@pytest.mark.parametrize(
    "wnids, words",
    [
        (["n00000003", "n00000005", "n00000001"], ["names 3 classes", "--classes is 4"]),
        (
            ["n00000003", "n00000001", "n00000002", "n00000004"],
            ["lacks 1 of the 2 classes", "n00000005"],
        ),
    ],
)
def test_refused_class_list(trees, tmp_path, wnids, words):
    path = tmp_path / "fixed.txt"
    path.write_text("\n".join(wnids))
    call = lambda: make(*trees, tmp_path / "5k", total=4, class_list=path)  # noqa: E731
    refusal(call, f"{path}: ", *words)


def test_a_listed_class_that_the_tree_lacks(trees, tmp_path):
    path = tmp_path / "fixed.txt"
    path.write_text("\n".join([*ILSVRC, "n00000001", "n00000009"]))
    call = lambda: make(*trees, tmp_path / "5k", total=4, class_list=path)  # noqa: E731
    refusal(call, trees[0], "1 of the 4 classes of", path, "n00000009")


def test_a_name_that_no_list_can_hold(trees, tmp_path):
    (trees[0] / "n00000006" / "a\tb.jpg").touch()
    refusal(lambda: make(*trees, tmp_path / "5k", total=4), "n00000006: ", r"a\tb.jpg")


def test_what_is_there_is_kept(trees, tmp_path):
    (tmp_path / "5k").mkdir()
    make(*trees, tmp_path / "5k", total=4)  # an empty folder is no harm
    before = (tmp_path / "5k" / "train.txt").read_bytes()
    refusal(lambda: make(*trees, tmp_path / "5k", total=3), f"{tmp_path / '5k'}: ", "--output")
    assert (tmp_path / "5k" / "train.txt").read_bytes() == before


def test_a_stopped_run_leaves_nothing(trees, tmp_path, monkeypatch):
    def stop(path, *others):
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(imagenet5k, "write_list", stop)
    before = set(os.listdir(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        make(*trees, tmp_path / "5k", total=4)
    assert set(os.listdir(tmp_path)) == before
