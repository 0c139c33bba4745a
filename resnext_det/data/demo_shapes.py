"""Draw the objects of the demo data set: outline, pose, surface, light.

Colours are float32 in 0..1, channels in OpenCV's order (BGR). Every choice comes from the generator
handed in, so one seed gives one picture. A kind is told by its outline alone: colour, surface and
light are drawn from the same distributions for all kinds and for the clutter.
"""

from typing import NamedTuple

import cv2
import numpy as np

_SUBPIXEL_BITS = 4  # OpenCV draws polygons at 1/16 pixel


class Part(NamedTuple):
    """One filled polygon of an object; a later part covers an earlier one."""

    outline: np.ndarray  # (N, 2) x, y; y points down; the object spans about -1..1
    shade: float  # brightness factor of its surface; 0 cuts a hole


class Pose(NamedTuple):
    """An object before it has a size: parts in units of the object, not of pixels."""

    parts: list
    extent: tuple  # (width, height) of the tight box
    area: float  # of the filled part


def arc(center, radii, start=0.0, stop=360.0, count=40):
    angle = np.radians(np.linspace(start, stop, count))
    return np.asarray(center) + np.stack([np.cos(angle), np.sin(angle)], 1) * radii


def _mug(rng):
    half, rim, grip = rng.uniform(0.55, 0.68), rng.uniform(0.12, 0.2), rng.uniform(0.5, 0.6)
    foot = half * rng.uniform(0.75, 1.0)
    body = np.concatenate(
        [arc((0, 0.8), (foot, rim), 0, 180, 20), arc((0, -0.75), (half, rim), 180, 360, 20)]
    )
    return [
        Part(arc((half, 0), (0.5, grip)), 1.0),
        Part(arc((half, 0), (0.27, grip - 0.22)), 0.0),
        Part(body, 1.0),
        Part(arc((0, -0.75), (half, rim)), 1.2),
        Part(arc((0, -0.74), (half * 0.85, rim * 0.8)), 0.4),
    ]


def _leaf(rng):
    t = np.linspace(0, 1, 30)
    bend, width = rng.uniform(-0.25, 0.25), rng.uniform(0.4, 0.55)
    half = width * np.sin(np.pi * t ** rng.uniform(0.75, 0.95)) ** 0.9
    spine = np.stack([bend * np.sin(np.pi * t), 1.7 * t - 0.7], 1)
    side = np.stack([half, np.zeros(30)], 1)
    tone = rng.uniform(0.72, 0.88)
    vein = np.array([[0.03, 0]])
    return [
        Part(np.array([[-0.06, -0.62], [0.06, -0.62], [0.07, -1.1], [-0.07, -1.1]]), 0.8),
        Part(np.concatenate([spine + side, spine[::-1]]), 1.1),
        Part(np.concatenate([spine - side, spine[::-1]]), tone),
        Part(np.concatenate([spine - vein, (spine + vein)[::-1]]), 0.5),
    ]


def _star(rng):
    inner, facet = rng.uniform(0.42, 0.52), rng.choice([0.0, 0.16])
    angle = np.radians(np.arange(10) * 36 - 90)
    rim = (
        np.stack([np.cos(angle), np.sin(angle)], 1) * np.where(np.arange(10) % 2, inner, 1)[:, None]
    )
    halves = [np.stack([rim[i], rim[(i + 1) % 10], np.zeros(2)]) for i in range(10)]
    return [Part(rim, 1.0)] + [Part(h, 1 + facet * (-1) ** i) for i, h in enumerate(halves)]


def _ring(rng):
    tilt, hole = rng.uniform(0.65, 1.0), rng.uniform(0.5, 0.66)
    # the far rim of a tilted ring looks thinner: the hole is flatter than the outline
    return [Part(arc((0, 0), (1, tilt)), 1.0), Part(arc((0, 0), (hole, hole * tilt)), 0.0)]


def _cube(rng):
    """Three faces seen from above a corner, by an orthographic projection."""
    yaw, pitch = np.radians(rng.uniform(25, 65)), np.radians(rng.uniform(25, 42))
    to_left = -np.array([np.cos(yaw), np.sin(yaw) * np.sin(pitch)])
    to_right = -np.array([-np.sin(yaw), np.cos(yaw) * np.sin(pitch)])
    down = np.array([0, np.cos(pitch) * rng.uniform(0.85, 1.15)])
    tones = rng.permutation([0.55, 0.85])
    faces = [(to_left, to_right, 1.2), (to_left, down, tones[0]), (to_right, down, tones[1])]
    return [Part(np.stack([0 * u, u, u + v, v]), shade) for u, v, shade in faces]


def _cross(rng):
    arm, long = rng.uniform(0.25, 0.36), rng.uniform(0.9, 1.1)
    upright = np.array([[-arm, -long], [arm, -long], [arm, long], [-arm, long]])
    return [Part(upright, 1.0), Part(upright[:, ::-1] / long, 1.0)]


OUTLINES = {
    "mug": _mug,
    "leaf": _leaf,
    "star": _star,
    "ring": _ring,
    "cube": _cube,
    "cross": _cross,
}
_MAX_ROLL = {"mug": 40, "cube": 20}  # degrees; the other kinds have no upright position


def pose_object(kind: str, rng: np.random.Generator) -> Pose:
    """Choose shape, roll, aspect, shear and mirroring of an object; `kind` is a key of OUTLINES."""
    roll = np.radians(rng.uniform(-1, 1) * _MAX_ROLL.get(kind, 180))
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    stretch = np.diag([rng.choice([-1, 1]) * rng.uniform(0.85, 1.15), 1.0])
    stretch[0, 1] = rng.uniform(-0.12, 0.12)
    parts = [Part(p.outline @ (turn @ stretch).T, p.shade) for p in OUTLINES[kind](rng)]
    points = np.concatenate([p.outline for p in parts])
    low = points.min(0)
    parts = [Part(p.outline - low, p.shade) for p in parts]
    extent = points.max(0) - low
    fine = 48  # pixels per unit: the area is good to about 1 %
    area = np.count_nonzero(_fill(parts, fine, np.ceil(extent * fine).astype(int) + 1)) / fine**2
    return Pose(parts, tuple(extent), area)


def _fill(parts, zoom, size):
    canvas = np.zeros((size[1], size[0]), np.float32)
    for outline, shade in parts:
        points = np.round(outline * (zoom * 2**_SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [points], float(shade), shift=_SUBPIXEL_BITS)
    return canvas


def draw_object(
    pose: Pose, zoom: float, light: np.ndarray, ground: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a posed object at `zoom` pixels per unit.

    light: (3,) unit vector towards the lamp, x right, y down, z to the viewer.
    ground: (3,) mean colour of the scene; the object's colour is chosen apart from it.
    Returns colour (h, w, 3) and alpha (h, w), float32 in 0..1, tight up to a margin of one pixel.
    """
    fine = 4 if max(pose.extent) * zoom < 60 else 2  # supersampling
    size = np.ceil(np.array(pose.extent) * zoom).astype(int) + 2
    parts = [Part(p.outline + 1 / zoom, p.shade) for p in pose.parts]
    shade = _fill(parts, zoom * fine, size * fine)
    alpha = (shade > 0).astype(np.float32)
    shade[shade == 0] = 1  # the edge pixels mix with it
    shrink = {"dsize": tuple(int(n) for n in size), "interpolation": cv2.INTER_AREA}
    shade, alpha = cv2.resize(shade, **shrink), cv2.resize(alpha, **shrink)
    return paint_surface(alpha > 0.5, light, ground, rng) * shade[..., None], alpha


def paint_surface(mask, light, ground, rng):
    """Colour (h, w, 3) of a rounded, textured, lit body whose outline is `mask` (h, w), bool."""
    base, second = apart_from(ground, rng), random_colour(rng)
    second += (base - second) * rng.uniform(0.2, 0.8)
    mix = _pattern(mask.shape, rng)[..., None]
    colour = base * (1 - mix) + second * mix
    diffuse, gloss = _relief(mask, light, rng)
    return colour * diffuse[..., None] + (gloss * rng.uniform(0, 0.5))[..., None]


def _relief(mask, light, rng):
    """Lambert factor (1 on flat ground) and highlight of a body that bulges from its outline."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    reach = max(1.0, depth.max() * rng.uniform(0.4, 1.0))
    t = np.minimum(depth / reach, 1)
    height = cv2.GaussianBlur(np.sqrt(1 - (1 - t) ** 2) * reach * 0.7, (0, 0), 0.12 * reach + 0.5)
    slope_x, slope_y = cv2.Scharr(height, -1, 1, 0) / 32, cv2.Scharr(height, -1, 0, 1) / 32
    facing = light[2] - slope_x * light[0] - slope_y * light[1]
    facing /= np.sqrt(1 + slope_x**2 + slope_y**2)
    return 0.35 + 0.65 * np.clip(facing, 0, 1) / light[2], np.clip(facing, 0, 1) ** 16 * (t < 1)


def _pattern(shape, rng):
    """Surface texture (h, w) in 0..1: plain, mottled, striped or dotted."""
    kind = rng.integers(4)
    mottle = octaves(shape, max(4.0, max(shape) / 4), rng)
    if kind == 0:
        return mottle * 0.3
    if kind == 1:
        return mottle
    u, v = turned_axes(shape, max(shape) / rng.uniform(3, 7), rng)
    if kind == 2:
        return np.clip(0.5 + 2 * np.sin(2 * np.pi * u), 0, 1) * 0.8 + mottle * 0.2
    return np.clip(4 * np.cos(2 * np.pi * u) * np.cos(2 * np.pi * v) - 1, 0, 1) * 0.8 + mottle * 0.2


def turned_axes(shape, period, rng):
    """Two float32 (h, w) coordinates along random orthogonal axes, in periods."""
    angle, (height, width) = rng.uniform(0, np.pi), shape
    y, x = np.mgrid[:height, :width].astype(np.float32) / np.float32(period)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shift = rng.random(2, np.float32)
    return x * cos + y * sin + shift[0], y * cos - x * sin + shift[1]


def octaves(shape: tuple[int, int], cell: float, rng: np.random.Generator) -> np.ndarray:
    """Cloud noise (h, w), float32 in 0..1: random grids of `cell` pixels and finer ones."""
    total = np.zeros(shape, np.float32)
    weight = 1.0
    while cell >= 1.5:
        grid = rng.random((int(shape[0] / cell) + 2, int(shape[1] / cell) + 2), np.float32)
        total += weight * cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
        cell, weight = cell / 2, weight * 0.6
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, 1e-6)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour (3,): any hue, all grades of saturation, seldom very dark."""
    hsv = np.array([rng.uniform(0, 360), rng.uniform(0.05, 0.85), rng.uniform(0.3, 1)], np.float32)
    return cv2.cvtColor(hsv.reshape(1, 1, 3), cv2.COLOR_HSV2BGR).reshape(3)


def apart_from(colour, rng):
    """The one of three random colours farthest from `colour`: objects show, not always well."""
    choices = [random_colour(rng) for _ in range(3)]
    return max(choices, key=lambda c: float(np.abs(c - colour).sum()))
