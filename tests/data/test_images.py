"""Guard the promise for class folders: any usual image file is read, and every fault is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det.config import get_cfg
from resnext_det.data.augment import collate, test_transform, training_transform
from resnext_det.data.images import check_same_classes, class_folder, read_rgb
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
        "<class>",
        "folder of its class",
    )


def test_empty_class_folder(cfg, tmp_path):
    make_split(tmp_path, "train")
    (tmp_path / "train" / "emu").mkdir()
    refusal(lambda: class_folder(cfg, "train", None), f"{tmp_path / 'train'}: ", "emu")


def test_class_folder_without_an_image(cfg, tmp_path):
    make_split(tmp_path, "train")
    (tmp_path / "train" / "emu").mkdir()
    (tmp_path / "train" / "emu" / "notes.txt").write_text("no image")
    refusal(lambda: class_folder(cfg, "train", None), "emu")


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


def test_text_that_calls_itself_an_image(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text("<html>404</html>")
    refusal(lambda: read_rgb(path), f"{path}: ", "cannot be read as an image")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_three_channels(tmp_path, cfg, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image = picture(mode)
    image.save(path)
    found = read_rgb(path)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))
    assert test_transform(cfg)(found).shape == (3, 8, 8)


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
        (6, lambda pixels: np.rot90(pixels, -1)),
        (8, lambda pixels: np.rot90(pixels, 1)),
    ],
)
def test_exif_orientation(tmp_path, orientation, turn):
    """A phone's portrait photograph is stored lying; Detectron2 turns it, and so must we."""
    image, path = picture(), tmp_path / "phone.png"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_rgb(path)), turn(np.asarray(image)))


def test_pixels_are_normalised_in_the_configured_order(cfg):
    flat = Image.new("RGB", (20, 20), (200, 100, 50))
    rgb = test_transform(cfg)(flat)[:, 4, 4]
    expected = (torch.tensor([200.0, 100, 50]) - torch.tensor(cfg.MODEL.PIXEL_MEAN)) / torch.tensor(
        cfg.MODEL.PIXEL_STD
    )
    torch.testing.assert_close(rgb, expected)
    cfg.INPUT.FORMAT = "BGR"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    for transform in (test_transform(cfg), training_transform(cfg)):
        torch.testing.assert_close(transform(flat)[:, 4, 4], torch.tensor([50.0, 100.0, 200.0]))


def test_centre_crop_is_of_the_short_side(cfg):
    """Paper, Sec. 4: the short side to 256, the centre 224 of it; here 10 and 8."""
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 11:19] = 255
    crop = test_transform(cfg)(Image.fromarray(pixels))
    assert crop.shape == (3, 8, 8) and crop.min() == 255
