"""Guard the recipes' pictures: the paper's augmentation step by step, and every test view."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnext_det.config import IMAGENET_MEAN, IMAGENET_STD, get_cfg
from resnext_det.data import augment
from resnext_det.data.augment import (
    EIGENVALUES,
    EIGENVECTORS,
    Lighting,
    UniformAspectCrop,
    check_keys,
    collate,
    test_transform,
    training_transform,
)
from resnext_det.errors import InputError

RNG = np.random.default_rng(0)
BICUBIC = v2.InterpolationMode.BICUBIC


def picture(height, width):
    """Noise, so that no two places look alike."""
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def channels_first(pixels):
    """(H, W, 3) uint8 as the transforms give it: float32 (3, H, W)."""
    return torch.tensor(np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))).float()


@pytest.fixture
def cfg():
    """Pixels left as they are, so that views can be compared with the image itself."""
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    cfg.DATA.CROP_SIZE, cfg.DATA.RESIZE_SIZE = 8, 10
    return cfg


@pytest.fixture
def imagenet(cfg):
    cfg.DATA.CROP_ASPECT, cfg.DATA.COLOR_JITTER, cfg.DATA.LIGHTING = "uniform", 0.4, 0.1
    return cfg


@pytest.fixture
def cifar(cfg):
    cfg.DATA.CROP_SIZE = cfg.DATA.RESIZE_SIZE = 32
    cfg.DATA.PAD = 4
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [125.3, 123.0, 113.9], [63.0, 62.1, 66.7]
    return cfg


# ---- the random crop ----


def draws(height, width, number, min_area=0.08, seed=0):
    """(number, 4): top, left, height, width."""
    torch.manual_seed(seed)
    crop = UniformAspectCrop(224, min_area, BICUBIC)
    boxes = [crop.draw(height, width) for _ in range(number)]
    assert all(type(value) is int for box in boxes for value in box)
    return np.array(boxes)


@pytest.mark.parametrize("height, width", [(375, 500), (500, 375), (7, 5), (64, 64), (1, 1)])
def test_crops_lie_inside_the_image(height, width):
    top, left, h, w = draws(height, width, 300).T
    assert h.min() >= 1 and w.min() >= 1 and top.min() >= 0 and left.min() >= 0
    assert (top + h).max() <= height and (left + w).max() <= width


def distance(values, cdf):
    """Kolmogorov-Smirnov's statistic."""
    values = np.sort(values)
    steps = np.arange(len(values) + 1) / len(values)
    expected = cdf(values)
    return max((expected - steps[:-1]).max(), (steps[1:] - expected).max())


BOUND = 1.63 / math.sqrt(2000)  # of the statistic for 2,000 draws, at 1 %
LOG_4_3 = math.log(4 / 3)


def never_swap(monkeypatch):
    """Half the draws are turned, which makes uniform and log-uniform aspects all but equal."""
    draw = augment._uniform
    monkeypatch.setattr(augment, "_uniform", lambda a, b: 0.9 if (a, b) == (0, 1) else draw(a, b))


def test_aspects_are_uniform_and_not_log_uniform(monkeypatch):
    """An image so large that rounding is nothing; crops so small that none is drawn again."""
    never_swap(monkeypatch)
    _, _, h, w = draws(10_000, 10_000, 3500).T
    kept = h * w < 0.7 * 1e8
    aspects = (w / h)[kept][:2000]
    assert len(aspects) == 2000
    assert 0.749 < aspects.min() and aspects.max() < 1.334
    assert distance(aspects, lambda a: (a - 3 / 4) / (4 / 3 - 3 / 4)) < BOUND
    assert distance(aspects, lambda a: (np.log(a) + LOG_4_3) / (2 * LOG_4_3)) > 1.5 * BOUND


@pytest.mark.parametrize("least", [0.08, 0.4])
def test_areas_are_uniform(least):
    _, _, h, w = draws(10_000, 10_000, 7000, least).T
    areas = h * w / 1e8
    kept = areas[areas < 0.7][:2000]  # above 3/4 some shapes do not fit and are drawn again
    assert len(kept) == 2000
    assert distance(kept, lambda area: (area - least) / (0.7 - least)) < BOUND


def test_both_orientations():
    _, _, h, w = draws(10_000, 10_000, 2000).T
    assert abs((w > h).mean() - 0.5) < 0.04
    assert (w / h).min() < 0.77 and (w / h).max() > 1.3


@pytest.mark.parametrize(
    "numbers, box",
    [
        # area share, aspect, turned?, top, left
        ([0.25, 1.21, 0.9], (0, 0, 45, 55)),
        ([0.25, 1.21, 0.4], (0, 0, 55, 45)),
        # wider than the image, so drawn again
        ([0.95, 1.3, 0.9, 0.16, 1.0, 0.9], (0, 0, 40, 40)),
        # the ten tries of which none fits
        ([0.95, 1.3, 0.9] * 10, (0, 0, 100, 100)),
    ],
)
def test_the_sides_follow_the_formula(monkeypatch, numbers, box):
    """RX transforms.lua: w = sqrt(area * aspect), h = sqrt(area / aspect), rounded."""
    waiting = iter(numbers)
    monkeypatch.setattr(augment, "_uniform", lambda _low, _high: next(waiting))
    monkeypatch.setattr(augment, "_integer", lambda _most: 0)
    assert UniformAspectCrop(8, 0.08, BICUBIC).draw(100, 100) == box
    assert not list(waiting)


@pytest.mark.parametrize("height, width", [(9, 12), (12, 9)])
def test_corners_reach_both_ends_and_all_between(height, width):
    boxes = draws(height, width, 4000, min_area=0.2)
    for first, side, whole in ((0, 2, height), (1, 3, width)):
        slack = whole - boxes[:, side]
        for free in (1, 3):
            found = boxes[slack == free, first]
            counts = np.bincount(found, minlength=free + 1)
            assert len(counts) == free + 1  # nothing beyond the end
            share = len(found) / (free + 1)
            assert len(found) > 60 and np.abs(counts - share).max() < 4 * math.sqrt(share)


@pytest.mark.parametrize(
    "height, width, box",
    [(1000, 10, (495, 0, 10, 10)), (10, 1000, (0, 495, 10, 10)), (11, 1000, (0, 494, 11, 11))],
)
def test_fallback_is_the_centre_square(height, width, box):
    assert (draws(height, width, 20) == box).all()


def test_the_crop_repeats_under_torchs_seed_alone():
    first = draws(300, 400, 30, seed=5)
    np.random.seed(1)
    assert (draws(300, 400, 30, seed=5) == first).all()
    assert (draws(300, 400, 30, seed=6) != first).any()


def test_the_crop_is_cut_and_then_resized():
    """Resizing with pixels from outside the box would be another picture."""
    image, crop = picture(40, 60), UniformAspectCrop(16, 0.08, BICUBIC)
    torch.manual_seed(2)
    top, left, h, w = crop.draw(40, 60)
    torch.manual_seed(2)
    found = crop(image)
    cut = image.crop((left, top, left + w, top + h))
    np.testing.assert_array_equal(found, cut.resize((16, 16), Image.Resampling.BICUBIC))


# ---- lighting ----


def shift_of(lighting):
    """What is added to each channel; it is the same everywhere."""
    image = channels_first(picture(3, 4))
    added = lighting(image) - image
    spread = added.amax((1, 2)) - added.amin((1, 2))
    assert spread.max() < 1e-4
    return added.mean((1, 2)).numpy()


@pytest.mark.parametrize("strength", [0.1, 2.0])
def test_lighting_formula(strength):
    """RX transforms.lua, in 0..1: sum over j of eigvec[c][j] * alpha[j] * eigval[j]."""
    torch.manual_seed(4)
    alpha = torch.randn(3).numpy() * strength
    expected = np.array(
        [
            255 * sum(EIGENVECTORS[c][j] * alpha[j] * EIGENVALUES[j] for j in range(3))
            for c in range(3)
        ]
    )
    torch.manual_seed(4)
    np.testing.assert_allclose(shift_of(Lighting(strength)), expected, atol=2e-4)


def test_lightings_mean_and_spread():
    torch.manual_seed(0)
    lighting, black = Lighting(0.1), torch.zeros(3, 1, 1)
    shifts = np.stack([lighting(black).flatten().numpy() for _ in range(4000)]) / 255
    vectors = np.array(EIGENVECTORS)
    covariance = 0.01 * vectors @ np.diag(np.square(EIGENVALUES)) @ vectors.T
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(shifts.mean(0)) < 4 * deviation / math.sqrt(4000)).all()
    np.testing.assert_allclose(np.cov(shifts.T), covariance, rtol=0.15)


def test_the_components_are_orthonormal():
    """A slip in one of the nine numbers shows here."""
    vectors = np.array(EIGENVECTORS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)


# ---- ImageNet's training recipe ----


def names(transform):
    return [type(step).__name__ for step in transform.transforms]


def test_imagenet_steps_in_order(imagenet):
    steps = ["UniformAspectCrop", "ToImage", "ColorJitter", "ToDtype", "Lighting", "Normalize"]
    assert names(training_transform(imagenet)) == [*steps, "RandomHorizontalFlip"]
    jitter = training_transform(imagenet).transforms[2]
    for part in (jitter.brightness, jitter.contrast, jitter.saturation):
        assert part == pytest.approx((0.6, 1.4))
    assert jitter.hue is None
    imagenet.DATA.COLOR_JITTER = imagenet.DATA.LIGHTING = 0.0
    imagenet.DATA.CROP_ASPECT = "log"
    steps = ["RandomResizedCrop", "ToImage", "ToDtype", "Normalize", "RandomHorizontalFlip"]
    assert names(training_transform(imagenet)) == steps


def test_values_leave_the_range_of_a_byte(imagenet):
    """Nothing is clamped behind the lighting."""
    imagenet.DATA.COLOR_JITTER, imagenet.DATA.LIGHTING = 0.0, 1.0
    transform = training_transform(imagenet)
    torch.manual_seed(0)
    views = torch.stack([transform(Image.new("RGB", (9, 9), (250, 128, 5))) for _ in range(20)])
    assert views.dtype == torch.float32
    assert views[:, 0].max() > 255 and views[:, 2].min() < 0


def test_imagenet_is_normalised_behind_the_lighting(imagenet):
    imagenet.DATA.COLOR_JITTER = 0.0
    flat = Image.new("RGB", (20, 20), (200, 100, 50))
    torch.manual_seed(1)
    plain = training_transform(imagenet)(flat)
    imagenet.MODEL.PIXEL_MEAN, imagenet.MODEL.PIXEL_STD = [120.0, 110.0, 100.0], [50.0, 60.0, 70.0]
    torch.manual_seed(1)
    normalised = training_transform(imagenet)(flat)
    mean, std = (torch.tensor(x)[:, None, None] for x in ([120.0, 110, 100], [50.0, 60, 70]))
    torch.testing.assert_close(normalised, (plain - mean) / std)
    assert (plain != channels_first(flat)[:, :8, :8]).any()  # there was lighting to normalise


def test_half_the_views_are_mirrored(imagenet):
    """Dark left, bright right; crops of nearly the whole image keep the order."""
    imagenet.DATA.MIN_CROP_AREA, imagenet.DATA.COLOR_JITTER = 0.9, 0.0
    pixels = np.zeros((12, 12, 3), np.uint8)
    pixels[:, 6:] = 255
    image, transform = Image.fromarray(pixels), training_transform(imagenet)
    torch.manual_seed(0)
    mirrored = [bool(transform(image)[0, 4, 0] > 128) for _ in range(200)]
    assert 70 < sum(mirrored) < 130


def test_jitter_changes_brightness_within_its_bounds(imagenet):
    """A grey image has no contrast and no saturation: each is 0.6 to 1.4 times as bright."""
    imagenet.DATA.LIGHTING = 0.0
    transform = training_transform(imagenet)
    torch.manual_seed(0)
    levels = torch.stack(
        [transform(Image.new("RGB", (9, 9), (100, 100, 100))).mean() for _ in range(200)]
    )
    assert 59 <= levels.min() < 65 and 135 < levels.max() <= 141
    assert abs(levels.mean() - 100) < 6


@pytest.mark.parametrize("recipe", ["imagenet", "cifar"])
def test_bgr_is_rgb_in_reverse(request, recipe):
    """The lighting's components are of RGB whatever the order that the trunk wants."""
    cfg = request.getfixturevalue(recipe)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [120.0, 110.0, 100.0], [50.0, 60.0, 70.0]
    image = picture(32, 32)
    torch.manual_seed(7)
    rgb, rgb_test = training_transform(cfg)(image), test_transform(cfg)(image)
    cfg.INPUT.FORMAT = "BGR"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0, 110.0, 120.0], [70.0, 60.0, 50.0]
    torch.manual_seed(7)
    assert torch.equal(training_transform(cfg)(image), rgb.flip(0))
    assert torch.equal(test_transform(cfg)(image), rgb_test.flip(0))


def test_pixels_are_normalised_in_the_configured_order(cfg):
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(IMAGENET_MEAN), list(IMAGENET_STD)
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


# ---- CIFAR's training recipe ----


def offsets(view):
    """Where the padded image was cut, from its zeros: (top, left), each 0..8."""
    places = (view != 0).all(0)
    rows, columns = (places.any(axis).nonzero().flatten() for axis in (1, 0))
    assert torch.equal(places, torch.outer(places.any(1), places.any(0)))  # a rectangle
    found = []
    for kept in (rows, columns):
        first, last = int(kept[0]), int(kept[-1])
        assert first == 0 or last == 31  # padding on one side at most
        found.append(4 - first if first else 4 + 31 - last)
    return tuple(found)


def test_cifars_border_is_exactly_zero(cifar):
    """Padded behind the normalisation: the border has the mean colour, not black."""
    transform = training_transform(cifar)
    torch.manual_seed(0)
    flat = Image.new("RGB", (32, 32), (200, 100, 50))
    expected = (torch.tensor([200.0, 100, 50]) - torch.tensor(cifar.MODEL.PIXEL_MEAN)) / (
        torch.tensor(cifar.MODEL.PIXEL_STD)
    )
    found = set()
    for _ in range(300):
        view = transform(flat)
        assert view.shape == (3, 32, 32)
        found.add(offsets(view))
        inside = view[:, (view != 0).all(0)]
        torch.testing.assert_close(inside, expected[:, None].expand_as(inside))
    assert {top for top, _ in found} == {left for _, left in found} == set(range(9))  # 32 of 40


def test_cifar_flips_and_then_crops(cifar):
    """In the order in which the Lua code draws; the steps written out."""
    assert names(training_transform(cifar))[-3:] == [
        "Normalize",
        "RandomHorizontalFlip",
        "RandomCrop",
    ]
    image, seen = picture(32, 32), set()
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (cifar.MODEL.PIXEL_MEAN, cifar.MODEL.PIXEL_STD)
    )
    for seed in range(8):
        torch.manual_seed(seed)
        view = training_transform(cifar)(image)
        normalised = (channels_first(image) - mean) / std
        torch.manual_seed(seed)
        mirrored = bool(torch.rand(1) < 0.5)
        whole = torch.nn.functional.pad(normalised.flip(2) if mirrored else normalised, [4] * 4)
        windows = whole.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
        assert ((windows - view[:, None, None]).abs().amax((0, 3, 4)) < 1e-6).sum() == 1
        seen.add(mirrored)
    assert seen == {True, False}


# ---- test views ----


@pytest.mark.parametrize(
    "resize, crop, height, width, top, left",
    [
        (256, 224, 256, 300, 16, 38),  # paper, Sec. 4
        (256, 224, 300, 256, 38, 16),
        (320, 320, 320, 352, 0, 16),  # paper, Table 5
    ],
)
def test_single_view_is_the_centre(cfg, resize, crop, height, width, top, left):
    """Of images whose short side is right already, so that every pixel is known."""
    cfg.DATA.RESIZE_SIZE, cfg.DATA.CROP_SIZE = resize, crop
    image = picture(height, width)
    expected = channels_first(image)[:, top : top + crop, left : left + crop]
    assert torch.equal(test_transform(cfg)(image), expected)


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_single_view_is_resized_first(cfg, name):
    cfg.DATA.INTERPOLATION = name
    image = picture(40, 64)
    resized = image.resize((16, 10), Image.Resampling[name.upper()])
    assert torch.equal(test_transform(cfg)(image), channels_first(resized)[:, 1:9, 4:12])


def test_ten_crop_is_five_places_and_their_mirrors(cfg):
    cfg.DATA.TEST_PROTOCOL, cfg.DATA.RESIZE_SIZE, cfg.DATA.CROP_SIZE = "ten_crop", 6, 4
    image = picture(6, 8)
    views = test_transform(cfg)(image)
    assert views.shape == (10, 3, 4, 4)
    pixels = np.asarray(image)
    corners = [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]
    expected = [
        whole[top : top + 4, left : left + 4].tobytes()
        for whole in (pixels, pixels[:, ::-1])
        for top, left in corners
    ]
    found = [view.byte().numpy().transpose(1, 2, 0).tobytes() for view in views]
    assert len(set(found)) == 10 and sorted(found) == sorted(expected)


def test_dense_views_are_whole_images(cfg):
    cfg.DATA.TEST_PROTOCOL, cfg.DATA.TEST_SCALES = "dense", (10, 16)
    image = picture(40, 64)
    views = test_transform(cfg)(image)
    for view, size in zip(views, ((16, 10), (25, 16)), strict=True):  # 25.6 is not rounded up
        expected = image.resize(size, Image.Resampling.BICUBIC)
        assert torch.equal(view, channels_first(expected))


def test_cifars_test_image_is_normalised_and_nothing_else(cifar):
    cifar.DATA.RESIZE_SIZE = 48  # has no effect
    image = picture(32, 32)
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (cifar.MODEL.PIXEL_MEAN, cifar.MODEL.PIXEL_STD)
    )
    view = test_transform(cifar)(image)
    torch.testing.assert_close(view, (channels_first(image) - mean) / std)


def test_cifars_ten_crops_are_the_image_and_its_mirror(cifar):
    image = picture(32, 32)
    single = test_transform(cifar)(image)
    cifar.DATA.TEST_PROTOCOL = "ten_crop"
    views = test_transform(cifar)(image)
    assert torch.equal(views[:5], single.expand(5, 3, 32, 32))
    assert torch.equal(views[5:], single.flip(2).expand(5, 3, 32, 32))


# ---- for the data loader ----


@pytest.mark.parametrize("recipe", ["imagenet", "cifar"])
@pytest.mark.parametrize("protocol", ["training", "single", "ten_crop", "dense"])
def test_transforms_are_picklable(request, recipe, protocol):
    """Data workers that are spawned (macOS, Windows) get them as pickles."""
    cfg = request.getfixturevalue(recipe)
    cfg.DATA.TEST_SCALES = (10, 12)
    if protocol != "training":
        cfg.DATA.TEST_PROTOCOL = protocol
    transform = training_transform(cfg) if protocol == "training" else test_transform(cfg)
    image, views = picture(32, 32), []
    for one in (transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(0)
        views.append(one(image))
    if protocol == "dense":
        assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))
    else:
        assert torch.equal(*views)


def test_collate():
    single = collate([(torch.zeros(3, 4, 5), 2), (torch.ones(3, 4, 5), 0)])
    assert single["image"].shape == (2, 3, 4, 5) and type(single["image"]) is torch.Tensor
    assert single["label"].tolist() == [2, 0] and single["label"].dtype == torch.int64
    assert collate([(torch.zeros(10, 3, 4, 4), 1)] * 3)["image"].shape == (3, 10, 3, 4, 4)
    scales = [torch.zeros(3, 4, 5), torch.ones(3, 8, 10)]
    dense = collate([(scales, 1), (scales, 0)])
    assert [tuple(x.shape) for x in dense["image"]] == [(2, 3, 4, 5), (2, 3, 8, 10)]


def test_an_image_of_a_transform_is_a_plain_tensor_in_the_batch(cfg):
    view = test_transform(cfg)(picture(12, 12))
    assert type(collate([(view, 0)])["image"]) is torch.Tensor


# ---- keys ----

REFUSED = [
    ("TEST_PROTOCOL", "multi", "single, ten_crop, dense"),
    ("CROP_ASPECT", "square", "uniform, log"),
    ("INTERPOLATION", "cubic", "bicubic"),
    ("CROP_SIZE", 0, "1 or more"),
    ("RESIZE_SIZE", 7, "CROP_SIZE, 8, or more"),
    ("MIN_CROP_AREA", 0.0, "above 0"),
    ("MIN_CROP_AREA", 1.5, "at most 1"),
    ("MIN_CROP_AREA", math.nan, "above 0"),
    ("COLOR_JITTER", -0.4, "0 or more"),
    ("LIGHTING", -0.1, "0 or more"),
    ("PAD", -4, "0 or more"),
    ("TEST_BATCH_SIZE", 0, "1 or more"),
    ("TEST_SCALES", (), "one short side"),
    ("TEST_SCALES", (224, 0), "one short side"),
    ("TEST_SCALES", ("224",), "one short side"),
]


@pytest.mark.parametrize("key, value, mend", REFUSED)
def test_a_value_that_no_transform_knows(cfg, key, value, mend):
    check_keys(cfg)
    cfg.DATA[key] = value
    with pytest.raises(InputError) as caught:
        check_keys(cfg)
    message = str(caught.value)
    assert message.startswith(f"config: DATA.{key} is ") and str(value) in message
    assert mend in message and "\n" not in message


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_every_interpolation_that_passes_the_check_works(imagenet, mode):
    imagenet.DATA.INTERPOLATION = mode
    check_keys(imagenet)
    assert training_transform(imagenet)(picture(20, 30)).shape == (3, 8, 8)
    assert test_transform(imagenet)(picture(20, 30)).shape == (3, 8, 8)


@pytest.mark.parametrize("protocol, pad", [("dense", 0), ("single", 4)])
def test_a_short_side_that_is_not_used_may_be_small(cfg, protocol, pad):
    cfg.DATA.TEST_PROTOCOL, cfg.DATA.PAD, cfg.DATA.RESIZE_SIZE = protocol, pad, 1
    check_keys(cfg)
