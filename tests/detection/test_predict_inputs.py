"""Guard what prediction looks at: names, ids, what is left out, and with what reason."""

import json

import numpy as np
import pytest
from PIL import Image
from test_pipeline import refusal

from resnext_det.config import get_cfg
from resnext_det.data.images import read_array
from resnext_det.detection.predict_files import picture_names, predict_images
from resnext_det.detection.predict_inputs import (
    entries_of,
    entries_of_coco,
    readable,
    video_of,
)


def images_in(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(path)


# ---- files and folders ----


def test_what_is_looked_at(tmp_path):
    images_in(tmp_path, "a/2.png", "a/b/1.jpg", "one.bmp")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    found = entries_of([tmp_path / "a", tmp_path / "one.bmp"])
    assert [(e.id, e.name) for e in found] == [(1, "2.png"), (2, "b/1.jpg"), (3, "one.bmp")]


def test_what_cannot_be_looked_at(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    refusal(lambda: entries_of([tmp_path / "none.jpg"]), "none.jpg", "is not there")
    refusal(lambda: entries_of([tmp_path / "empty"]), "holds no image")
    refusal(lambda: entries_of([tmp_path / "notes.txt"]), ".txt")


@pytest.mark.parametrize(
    ("files", "given", "names"),
    [
        (["x/1.png", "y/1.png", "y/2.png"], ["x", "y"], ["x/1.png", "y/1.png", "y/2.png"]),
        # only folders whose names clash, whatever else is given
        (["x/1.png", "y/1.png", "z/2.png"], ["x", "y", "z"], ["x/1.png", "y/1.png", "2.png"]),
        # two folders of one name: as much above as tells them apart
        (["a/x/1.png", "b/x/1.png"], ["a/x", "b/x"], ["a/x/1.png", "b/x/1.png"]),
        # files, by the folder they are in
        (["x/1.png", "y/1.png"], ["x/1.png", "y/1.png"], ["x/1.png", "y/1.png"]),
        (["x/1.png", "y/1.png"], ["x", "y/1.png"], ["x/1.png", "y/1.png"]),
        # a folder in the other looks like the prefix
        (["x/y/1.png", "x/1.png", "y/1.png"], ["x", "y"], ["x/1.png", "x/y/1.png", "y/1.png"]),
        # the same image twice
        (["x/1.png"], ["x", "x/1.png"], ["1.png"]),
        (["x/s/1.png"], ["x", "x/s"], ["s/1.png"]),
    ],
)
def test_names_of_several_folders(tmp_path, files, given, names):
    images_in(tmp_path, *files)
    found = entries_of([tmp_path / each for each in given])
    assert [entry.name for entry in found] == names
    assert [entry.id for entry in found] == list(range(1, len(names) + 1))
    for entry in found:
        assert str(entry.path).endswith(entry.name)
    pictures = [str(name) for name in picture_names(found).values()]
    assert pictures == [name.replace(".png", ".jpg") for name in names]


def test_names_are_told_apart_by_relative_folders(tmp_path, monkeypatch):
    """ "." has no name of its own; what it stands for has."""
    images_in(tmp_path, "here/1.png", "there/1.png")
    monkeypatch.chdir(tmp_path / "here")
    found = entries_of([".", "../there"])
    assert [entry.name for entry in found] == ["here/1.png", "there/1.png"]


def test_other_kinds_of_files_are_counted(tmp_path, caplog):
    images_in(tmp_path, "a/1.png", "b/2.png")
    with caplog.at_level("INFO"):
        entries_of([tmp_path / "a"])
        assert not caplog.messages
        for name in ("a/1.gif", "a/x.txt", "b/y.heic"):
            (tmp_path / name).write_text("")
        entries_of([tmp_path / "a", tmp_path / "b"])
    (said,) = caplog.messages
    assert said.startswith("passed over 3 files") and said.endswith(str(tmp_path / "a" / "1.gif"))


def test_a_broken_link_is_not_passed_over(tmp_path):
    images_in(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "none.png")
    found = entries_of([tmp_path])
    refusal(lambda: readable(found), "2.png", "cannot be opened (No such file or directory)")


def test_which_input_is_a_video(tmp_path):
    (tmp_path / "film.MP4").write_bytes(b"")
    assert video_of([str(tmp_path / "film.MP4")]) == tmp_path / "film.MP4"
    assert video_of([str(tmp_path)]) is None and video_of([]) is None
    refusal(lambda: video_of([str(tmp_path / "none.mp4")]), "none.mp4", "is not there")


# ---- a COCO file ----


def turned_picture(folder, stated, late=False):
    """Entries of a COCO file with a PNG of (width, height) (50, 40), read as (40, 50).

    Args:
        late: the EXIF tag stands behind the pixels.
    """
    exif, path = Image.Exif(), folder / "1.png"
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(path, exif=exif)
    if late:
        content = path.read_bytes()
        begin = content.index(b"eXIf") - 4
        end = begin + 12 + int.from_bytes(content[begin : begin + 4], "big")
        rest = content[:begin] + content[end:]
        path.write_bytes(rest[:-12] + content[begin:end] + rest[-12:])
    image = {"id": 3, "file_name": "1.png", "width": stated[0], "height": stated[1]}
    classes = [{"id": 1, "name": "a"}]
    content = {"images": [image], "annotations": [], "categories": classes}
    (folder / "set.json").write_text(json.dumps(content))
    return entries_of_coco(folder / "set.json", folder)


def change_val(demo_set, tmp_path, change):
    content = json.loads((demo_set / "annotations" / "val.json").read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.pop("file_name"), "images[1] has no file_name"),
        (lambda image: image.update(id="a"), "images[1] has the id 'a'"),
        (lambda image: image.update(file_name="none.png"), "none.png"),
        (lambda image: image.update(file_name="../val.png"), "../val.png"),
    ],
)
def test_a_json_whose_images_are_at_fault(demo_set, tmp_path, change, words):
    path = change_val(demo_set, tmp_path, lambda content: change(content["images"][1]))
    refusal(lambda: entries_of_coco(path, demo_set / "val"), "changed.json", words)


def test_annotations_do_not_matter(demo_set, tmp_path):
    path = change_val(demo_set, tmp_path, lambda content: content["annotations"][0].pop("bbox"))
    assert len(entries_of_coco(path, demo_set / "val")) == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_name": "none.png"}, "none.png: cannot be opened (No such file or directory)"),
        ({"file_name": "none.png", "height": None}, "none.png: cannot be opened (No such file"),
        ({"width": "h", "height": "w"}, "its entry, swapped, says ("),
        ({"width": 7}, "its entry says (7, "),
    ],
)
def test_images_that_do_not_fit_their_entries(demo_set, tmp_path, change, reason):
    """Refused, or left out by the switch; also one that is missing and states no size."""

    def apply(content):
        image = content["images"][1]
        sides = {"w": image["width"], "h": image["height"]}
        image.update({key: sides.get(value, value) for key, value in change.items()})

    path = change_val(demo_set, tmp_path, apply)
    if "file_name" not in change:
        entries = entries_of_coco(path, demo_set / "val")
        refusal(lambda: readable(entries), reason, "or add --skip-unreadable")
    entries = entries_of_coco(path, demo_set / "val", skip_unreadable=True)
    good, (bad,) = readable(entries, skip_unreadable=True)
    assert [entry.id for entry in good] == [entry.id for entry in entries if entry != entries[1]]
    assert len(good) == 5 and reason in str(bad)


def test_a_size_is_that_of_the_upright_image(tmp_path):
    entries = turned_picture(tmp_path, (40, 50))
    assert readable(entries) == (entries, [])
    refusal(lambda: readable(turned_picture(tmp_path, (50, 40))), "(40, 50)", "swapped", "(50, 40)")
    # also where the tag stands behind the pixels
    late = turned_picture(tmp_path, (40, 50), late=True)
    assert readable(late) == (late, [])


def test_sizes_that_only_decoding_shows(tmp_path):
    """The header says what the entry does; the tag behind the pixels turns the image."""
    entries = turned_picture(tmp_path, (50, 40), late=True)
    assert readable(entries) == (entries, [])

    class Reading:
        """What `predict_images` asks of a Predictor, as far as it comes."""

        cfg = get_cfg()
        class_names, class_ids = ("a",), (1,)
        read = staticmethod(read_array)

        def stream(self, images):
            list(images)
            raise AssertionError("not refused")

    call = lambda: predict_images(Reading(), entries, tmp_path, least=0.5)  # noqa: E731
    refusal(call, "1.png: has (width, height) (40, 50), but its entry, swapped, says (50, 40)")


def test_pixels_without_a_range(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "1.tif")
    images_in(tmp_path, "2.png")
    (tmp_path / "3.png").write_text("no image")
    entries = entries_of([tmp_path])
    refusal(lambda: readable(entries), "1.tif: is of mode F", "(and 1 more images are at fault)")
    good, bad = readable(entries, skip_unreadable=True)
    assert [entry.name for entry in good] == ["2.png"] and len(bad) == 2
