"""Guard the one reader and class folders: any usual image is read, and every fault is named.

The rules are those of docs/images.md.
"""

import io
import logging
import os

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image
from torchvision.datasets import ImageFolder

from resnext_det.config import get_cfg
from resnext_det.data.augment import collate, test_transform, training_transform
from resnext_det.data.class_folders import check_same_classes, class_folder
from resnext_det.data.images import read_array, read_rgb
from resnext_det.errors import InputError, exit_cleanly

RNG = np.random.default_rng(0)
ORIENTATION = 0x0112  # the EXIF tag


def picture(mode="RGB", size=(12, 10)):
    """A picture of another colour in each quarter; size is PIL's (width, height)."""
    shape = (size[1], size[0], 3)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).convert(mode)


def make_split(root, split, classes=("cat", "dog"), images=2):
    for name in classes:
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(images):
            picture().save(folder / f"{number}.png")


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.DATA.ROOT = str(tmp_path)
    cfg.DATA.CROP_SIZE, cfg.DATA.RESIZE_SIZE = 8, 10
    return cfg


def refusal(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_class_folders(cfg, tmp_path):
    make_split(tmp_path, "train", ("dog", "ant", "cat"))
    data = class_folder(cfg, "train", test_transform(cfg))
    assert data.classes == ["ant", "cat", "dog"]
    assert [label for _, label in data.samples] == [0, 0, 1, 1, 2, 2]
    batch = collate([data[0], data[5]])
    assert batch["image"].shape == (2, 3, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["label"].tolist() == [0, 2]


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_folder(cfg, tmp_path, split):
    """A newcomer without data learns the layout, the place, and the command that needs none."""
    refusal(
        lambda: class_folder(cfg, split, None),
        f"{tmp_path / split}: ",
        "<root>/train/<class>/<image>",
        "DATA.ROOT",
        "make demo",
    )


def test_missing_folder_is_named_in_full(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.DATA.ROOT = "nowhere"
    refusal(lambda: class_folder(cfg, "train", None), f"{tmp_path}/nowhere/train: ")


def test_flat_folder(cfg, tmp_path):
    (tmp_path / "train").mkdir()
    picture().save(tmp_path / "train" / "0.png")
    refusal(
        lambda: class_folder(cfg, "train", None),
        f"{tmp_path / 'train'}: ",
        "1 images, such as 0.png, but no class folders",
        "<class>",
        "folder of its class",
        "DATA.VAL_LIST",
    )


def test_split_folder_that_is_empty(cfg, tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / ".DS_Store").touch()
    refusal(lambda: class_folder(cfg, "val", None), f"{tmp_path / 'val'}: holds no class folders")


def test_images_beside_class_folders_are_counted(cfg, tmp_path, caplog):
    make_split(tmp_path, "train")
    for name in ("a.png", "b.jpg", "notes.txt"):
        (tmp_path / "train" / name).touch()
    with caplog.at_level(logging.WARNING):
        assert len(class_folder(cfg, "train", None)) == 4
    (record,) = caplog.records
    assert f"{tmp_path / 'train'}: 2 images, such as a.png, lie beside" in record.getMessage()


def test_class_folders_without_an_image(cfg, tmp_path):
    """Empty, with other files only, and with hidden ones only."""
    make_split(tmp_path, "train")
    for name in ("emu/notes.txt", "fox/a.gif", "fox/deep/b.heic", "gnu/._0.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    refusal(
        lambda: class_folder(cfg, "train", None),
        f"{tmp_path / 'train'}: ",
        "emu (1 other files, such as notes.txt), fox (2 other files, such as a.gif), gnu (empty)",
        ".webp",
    )


def test_many_class_folders_without_an_image(cfg, tmp_path):
    make_split(tmp_path, "train", [f"c{number}" for number in range(9)], images=0)
    refusal(lambda: class_folder(cfg, "train", None), "c4 (empty) and 4 more;")


def test_hidden_names_are_passed_over(cfg, tmp_path):
    """What macOS, Jupyter and Git leave behind is neither image nor class."""
    make_split(tmp_path, "train")
    for name in (".DS_Store", ".git/a.png", "cat/._0.png", "cat/.ipynb_checkpoints/0.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    data = class_folder(cfg, "train", None)
    assert data.classes == ["cat", "dog"] and [label for _, label in data.samples] == [0, 0, 1, 1]


def test_the_order_of_torchvision(cfg, tmp_path):
    """Labels and positions decide what a seed means, so they are those of `ImageFolder`."""
    names = ("b/2.png", "b/10.PNG", "b/x/1.png", "b/x y/1.png", "b/x/z/1.jpg", "b/a.png", "B/1.png")
    for name in (*names, "a/0.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    ours, theirs = class_folder(cfg, "train", None), ImageFolder(tmp_path / "train")
    assert ours.samples == theirs.samples and len(ours) == 8
    assert ours.classes == theirs.classes and ours.class_to_idx == theirs.class_to_idx


def test_links_in_a_circle_end(cfg, tmp_path):
    """Two of them would be 2^40 folders; a folder is read once, by its first path."""
    make_split(tmp_path, "train")
    cat = tmp_path / "train" / "cat"
    for name in ("up", "up2"):
        (cat / name).symlink_to(cat)
        (tmp_path / "train" / "dog" / name).symlink_to(tmp_path / "train")
    (cat / "itself.png").symlink_to("itself.png")
    data = class_folder(cfg, "train", None)
    found = [os.path.relpath(path, tmp_path / "train") for path, _ in data.samples]
    assert found == ["cat/0.png", "cat/1.png", "cat/itself.png", "dog/0.png", "dog/1.png"]
    refusal(lambda: data[2], "itself.png: cannot be read as an image (Too many levels")


def test_linked_folders_are_read(cfg, tmp_path):
    make_split(tmp_path / "elsewhere", "a")
    (tmp_path / "train").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "elsewhere" / "a" / name)
    assert len(class_folder(cfg, "train", None)) == 4


def test_a_folder_that_cannot_be_listed(cfg, tmp_path, monkeypatch):
    """torchvision takes it for an empty one."""
    make_split(tmp_path, "train")
    scandir = os.scandir

    def denied(folder):
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    path = tmp_path / "train" / "dog"
    refusal(lambda: class_folder(cfg, "train", None), f"{path}: cannot be listed (Permission den")


def test_differing_classes(cfg, tmp_path):
    make_split(tmp_path, "train", ("cat", "dog"))
    make_split(tmp_path, "val", ("cat", "cow"))
    train, val = (class_folder(cfg, split, None) for split in ("train", "val"))
    check_same_classes(train, train)
    refusal(
        lambda: check_same_classes(train, val),
        f"{tmp_path / 'val'}: ",
        "only in train ['dog']",
        "only in val ['cow']",
    )


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.7])
def test_truncated_image_is_named(tmp_path, suffix, kept):
    path = tmp_path / f"broken.{suffix}"
    picture(size=(100, 100)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refusal(lambda: read_rgb(path), f"{path}: ", "cannot be read as an image")


def test_truncated_image_is_named_from_a_data_worker(cfg, tmp_path, capsys):
    """torch turns a worker's error into a page of text; the user still reads one line."""
    make_split(tmp_path, "train")
    broken = tmp_path / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = class_folder(cfg, "train", training_transform(cfg))
    batches = iter(torch.utils.data.DataLoader(data, 4, num_workers=1, collate_fn=collate))
    with pytest.raises(SystemExit) as caught:
        exit_cleanly(lambda: next(batches))()
    batches._shutdown_workers()  # held by the traceback, it would wait for the collector
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {broken}: cannot be read") and message.count("\n") == 1


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "it is empty"),
        (b"<html>404</html>\n", "it begins with b'<html>404</html>'"),
        (b"version https://git-lfs.github.com/spec/v1", "it begins with b'version https://'"),
    ],
)
def test_what_calls_itself_an_image(tmp_path, content, reason):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    message = f"{path}: cannot be read as an image ("
    refusal(lambda: read_rgb(path), message, reason, "replace the file or leave it out")
    refusal(lambda: read_rgb(content, path), message, reason)


@pytest.mark.parametrize("make, reason", [(None, "No such file"), (os.mkdir, "Is a directory")])
def test_what_is_no_file(tmp_path, make, reason):
    path = tmp_path / "0.png"
    if make:
        make(path)
    refusal(lambda: read_rgb(path), f"{path}: cannot be read as an image ({reason}")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_three_channels(tmp_path, cfg, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image = picture(mode)
    image.save(path)
    found = read_rgb(path)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))
    assert test_transform(cfg)(found).shape == (3, 8, 8)


def encoded(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def first_row(content):
    image = read_rgb(content, "picture")
    assert image.mode == "RGB"
    return np.asarray(image)[0].tolist()


def test_content_is_read_as_a_file_is(tmp_path):
    content = encoded(picture(), "PNG")
    (tmp_path / "0.png").write_bytes(content)
    assert read_rgb(content, "picture") == read_rgb(tmp_path / "0.png")


SIXTEEN = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
EIGHT = [[value] * 3 for value in (0, 0, 1, 1, 100, 255)]  # v / 257, rounded


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(SIXTEEN), "PNG"),
        encoded(Image.fromarray(SIXTEEN), "TIFF"),
        encoded(Image.fromarray(SIXTEEN), "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(SIXTEEN.astype(">u2")), "TIFF"),
        b"P5 6 1 65535\n" + SIXTEEN.astype(">u2").tobytes(),
    ],
    ids=["PNG", "TIFF", "TIFF, LZW", "TIFF, big-endian", "PGM"],
)
def test_sixteen_bits_of_grey_are_scaled(content):
    """Pillow's own conversion cuts: every value above 255 would be white."""
    assert first_row(content) == EIGHT


@pytest.mark.parametrize("dtype, depth", [(np.float32, "float"), (np.int32, "32-bit integer")])
def test_pixels_without_a_range_are_refused(tmp_path, dtype, depth):
    path = tmp_path / "depth.tif"
    Image.fromarray(SIXTEEN.astype(dtype)).save(path)
    refusal(lambda: read_rgb(path), f"{path}: ", f"{depth} pixels", "convert it to 8 or 16 bits")


def palette():
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.putdata([0, 1, 2, 3])
    return image


GREY = Image.fromarray(np.array([[10, 20, 30]], np.uint8))
ALPHA = Image.fromarray(np.array([[[200, 100, 50, a] for a in (255, 0, 128)]], np.uint8), "RGBA")
WHITE = [255] * 3


@pytest.mark.parametrize(
    "content, row",
    [
        (encoded(ALPHA, "PNG"), [[200, 100, 50], WHITE, [227, 177, 152]]),
        (encoded(ALPHA.convert("LA"), "PNG"), [[124] * 3, WHITE, [189] * 3]),
        (encoded(ALPHA, "WEBP", lossless=True), [[200, 100, 50], WHITE, [227, 177, 152]]),
        (encoded(ALPHA, "TIFF"), [[200, 100, 50], WHITE, [227, 177, 152]]),
        (encoded(GREY, "PNG", transparency=20), [[10] * 3, WHITE, [30] * 3]),
        (
            encoded(GREY.convert("RGB"), "PNG", transparency=(20, 20, 20)),
            [[10] * 3, WHITE, [30] * 3],
        ),
        (encoded(palette(), "PNG"), [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]),
        (encoded(palette(), "GIF", transparency=1), [[255, 0, 0], WHITE, [0, 0, 255], [9, 9, 9]]),
        (
            encoded(palette(), "PNG", transparency=bytes([255, 0, 128, 255])),
            [[255, 0, 0], WHITE, [127, 127, 255], [9, 9, 9]],
        ),
    ],
    ids=["RGBA", "LA", "WebP", "TIFF", "grey", "RGB", "opaque palette", "palette", "half palette"],
)
def test_what_is_transparent_shows_white(content, row):
    assert first_row(content) == row


def test_grey_gives_three_equal_channels(tmp_path):
    picture("L").save(tmp_path / "grey.png")
    red, green, blue = np.asarray(read_rgb(tmp_path / "grey.png")).transpose(2, 0, 1)
    assert (red == green).all() and (red == blue).all() and red.std() > 0


@pytest.mark.parametrize(
    "orientation, turn",
    [
        (1, lambda pixels: pixels),
        (2, lambda pixels: pixels[:, ::-1]),
        (3, lambda pixels: np.rot90(pixels, 2)),
        (4, lambda pixels: pixels[::-1]),
        (5, lambda pixels: pixels.swapaxes(0, 1)),
        (6, lambda pixels: np.rot90(pixels, -1)),
        (7, lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda pixels: np.rot90(pixels, 1)),
        (9, lambda pixels: pixels),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])  # Pillow itself turns the second
def test_exif_orientation(tmp_path, orientation, turn, kind):
    """A phone's portrait photograph is stored lying; Detectron2 turns it, and so must we."""
    image, path = picture(), tmp_path / f"phone.{kind}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_rgb(path)), turn(np.asarray(image)))


def test_damaged_exif_counts_as_none(tmp_path):
    """The pixels are whole."""
    image, path = picture(), tmp_path / "phone.png"
    image.save(path, exif=b"Exif\0\0no header of a TIFF")
    with pytest.raises(SyntaxError):
        Image.open(path).getexif()
    np.testing.assert_array_equal(np.asarray(read_rgb(path)), np.asarray(image))


def test_a_picture_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    """Pillow's guard against images that would fill the memory, here of ten pixels and more."""
    picture(size=(5, 5)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    words = "huge.png: ", "cannot be read", "25 pixels", "shrink it to 20 pixels or fewer"
    for read in (read_rgb, read_array):
        refusal(lambda read=read: read(tmp_path / "huge.png"), *words, "DATASETS.MAX_IMAGE_PIXELS")


@pytest.mark.filterwarnings("error")
def test_half_of_too_many_pixels_is_read(tmp_path, monkeypatch):
    """Pillow would warn, without naming the file."""
    picture(size=(4, 4)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_rgb(tmp_path / "large.png").size == (4, 4)


# ---- the same as arrays ----


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize(
    "name, mode",
    [("a.jpg", "RGB"), ("a.png", "RGB"), ("grey.jpg", "L"), ("grey.png", "L"), ("a.gif", "P")]
    + [("palette.png", "P"), ("bits.png", "1"), ("a.jpg", "CMYK"), ("a.bmp", "RGB")],
)
def test_ordinary_pictures_are_as_detectron2_reads_them(tmp_path, name, mode, order):
    """Bit for bit, so that detectors trained on its reader see the same."""
    path = tmp_path / name
    picture(mode, size=(33, 21)).save(path)
    found = read_array(path, order)
    assert (found.shape, found.dtype) == ((21, 33, 3), np.uint8)
    assert found.flags.c_contiguous and found.flags.writeable  # torch takes it as it is
    np.testing.assert_array_equal(found, read_image(str(path), order))


@pytest.mark.parametrize("orientation", range(1, 10))
def test_turned_pictures_are_as_detectron2_reads_them(tmp_path, orientation):
    path, exif = tmp_path / "phone.jpg", Image.Exif()
    exif[ORIENTATION] = orientation
    picture(size=(33, 21)).save(path, exif=exif)
    np.testing.assert_array_equal(read_array(path, "BGR"), read_image(str(path), "BGR"))


def test_arrays_follow_the_rules(tmp_path):
    """Where Detectron2's reader would cut 16 bits at 255 and leave transparency out."""
    (tmp_path / "deep.png").write_bytes(encoded(Image.fromarray(SIXTEEN), "PNG"))
    (tmp_path / "clear.png").write_bytes(encoded(ALPHA, "PNG"))
    assert read_array(tmp_path / "deep.png")[0].tolist() == EIGHT
    assert read_array(tmp_path / "clear.png", "BGR")[0].tolist() == [
        [50, 100, 200],
        WHITE,
        [152, 177, 227],
    ]


@pytest.mark.parametrize("order", ["L", "bgr", "YUV-BT.601", None])
def test_other_orders_of_channels_are_refused(tmp_path, order):
    refusal(lambda: read_array(tmp_path / "a.png", order), f"INPUT.FORMAT: is {order!r}", "BGR")
