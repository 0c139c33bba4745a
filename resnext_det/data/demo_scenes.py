"""Compose the pictures of the demo data set: textured ground, clutter, objects with their masks.

Colours are float32 in 0..1, channels in OpenCV's order (BGR), until a finished picture leaves as
uint8. Every choice comes from the generator handed in.
"""

from typing import NamedTuple

import cv2
import numpy as np

from .demo_shapes import (
    OUTLINES,
    arc,
    draw_object,
    octaves,
    paint_surface,
    pose_object,
    random_colour,
    turned_axes,
)

_KINDS = list(OUTLINES)
_COUNT_WEIGHTS = np.array([16, 20, 20, 16, 12, 9, 7]) / 100  # scenes with 1, 2, ... 7 objects
_EMPTY_SHARE, _CROWD_SHARE = 0.08, 0.06  # of all scenes
# Square root of an object's filled area in pixels, at COCO's limits 32 and 96.
_SMALL, _MEDIUM, _LARGE = (18, 31), (34, 90), (108, 127)
_SIZE_WEIGHTS = [0.17, 0.46, 0.37]  # large ones become medium, or find no place, where others are
_SUBPIXEL_BITS = 4  # OpenCV draws polygons at 1/16 pixel


class Item(NamedTuple):
    """One annotation of a scene."""

    kind: str  # key of OUTLINES
    mask: np.ndarray  # (H, W) bool, the visible pixels
    is_crowd: bool


def draw_scene(
    image_size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, list[Item]]:
    """A picture (H, W, 3), uint8 BGR, and its Items: 1 to 7 objects, now and then a crowd, or none.

    image_size: (height, width) in pixels. Every object drawn has an Item: a place that would leave
    less than half of any object visible (3/4 of a small or a large one) is not taken.
    """
    scene = Scene(image_size, rng)
    scene.add_clutter(int(rng.integers(1, 7)))
    chance = rng.random()
    if chance >= _EMPTY_SHARE:
        if chance < _EMPTY_SHARE + _CROWD_SHARE:
            scene.add_crowd(rng.choice(_KINDS))
        for side in _draw_sides(image_size, rng):
            kind = rng.choice(_KINDS)
            pose = pose_object(kind, rng)
            scene.add_object(kind, pose, side / np.sqrt(pose.area))
    return scene.develop(), scene.items


def draw_crop(kind: str, crop_size: int, rng: np.random.Generator) -> np.ndarray:
    """A picture (crop_size, crop_size, 3), uint8 BGR, of one object that fills 45 to 95 % of it.

    Two in five are drawn smaller and enlarged, so that they look like the small objects of scenes.
    """
    scale = rng.uniform(0.35, 0.75) if rng.random() < 0.4 else 1.0
    size = max(20, int(round(crop_size * scale)))
    scene = Scene((size, size), rng)
    scene.add_clutter(int(rng.integers(0, 4)))
    pose = pose_object(kind, rng)
    zoom = rng.uniform(0.45, 0.95) * size / max(pose.extent)
    scene.add_object(kind, pose, zoom, at_border=0, min_seen=0.7)
    if rng.random() < 0.2:
        other = pose_object(rng.choice(_KINDS), rng)
        zoom = rng.uniform(0.25, 0.5) * size / max(other.extent)
        scene.add_object("", other, zoom, at_border=1, min_seen=0)
    picture = scene.develop()
    return cv2.resize(picture, (crop_size, crop_size), interpolation=cv2.INTER_LINEAR)


def _draw_sides(image_size, rng):
    """Square roots of the areas of a scene's objects, in pixels, about from large to small."""
    count = 1 + rng.choice(7, p=_COUNT_WEIGHTS)
    limit = 0.66 * min(image_size)  # larger objects would not fit
    bands = [_SMALL, _MEDIUM, _LARGE]
    low, high = np.array([bands[i] for i in rng.choice(3, count, p=_SIZE_WEIGHTS)]).T
    sides = np.minimum(np.exp(rng.uniform(np.log(low), np.log(high))), limit)
    return sides[np.argsort(-sides * rng.uniform(0.6, 1.4, count))]


class Scene:
    """A picture under construction: `canvas` (H, W, 3) and the `items` placed so far."""

    def __init__(self, size, rng):
        self.rng = rng
        self.canvas = draw_ground(size, rng)
        self.items = []
        self._limits = []  # fewest visible pixels allowed, per item
        self._ground = self.canvas.mean((0, 1))
        side, lift = np.radians(rng.uniform(-160, -20)), np.radians(rng.uniform(40, 65))
        flat = np.cos(lift)
        self._light = np.array([flat * np.cos(side), flat * np.sin(side), np.sin(lift)], np.float32)
        self._shadow = rng.uniform(0.15, 0.6)

    def add_clutter(self, count):
        """Paint `count` unlabelled things on the ground, each with a soft shadow."""
        for _ in range(count):
            shape = self.canvas.shape[:2]
            self._paint(*draw_clutter(shape, self._light, self._ground, self.rng), reach=2)

    def add_object(self, kind, pose, zoom, at_border=1 / 6, min_seen=0.5):
        """Paint a posed object where it fits, with its Item; without one if `kind` is "".

        at_border: share of places that may be cut by the border. min_seen: visible share that must
        remain of this object, under the later ones too. Nothing is painted when 20 places fail.
        """
        patch = draw_object(pose, zoom, self._light, self._ground, self.rng)
        self._place(kind, patch, at_border, min_seen)

    def add_crowd(self, kind):
        """Paint a cluster of 8 to 12 small objects of one kind as one Item."""
        columns, rows = int(self.rng.integers(4, 6)), 2
        if columns == 4 and self.rng.random() < 0.5:
            rows = 3
        pitch = self.rng.uniform(20, 24)
        size = (int(pitch * (rows + 0.6)) + 16, int(pitch * (columns + 0.6)) + 16)
        colour, alpha = np.zeros((*size, 3), np.float32), np.zeros(size, np.float32)
        for cell in range(rows * columns):
            pose = pose_object(kind, self.rng)
            part = draw_object(
                pose, 1.1 * pitch / max(pose.extent), self._light, self._ground, self.rng
            )
            spot = (np.array(divmod(cell, columns)) + self.rng.uniform(0, 0.5, 2)) * pitch
            placed = _on_frame(part, size, spot.astype(int))
            colour += (placed[0] - colour) * placed[1][..., None]
            alpha = np.maximum(alpha, placed[1])
        self._place(kind, (colour, alpha), 0, 0.8, is_crowd=True)

    def develop(self):
        """The finished picture (H, W, 3), uint8: exposure, mild blur and sensor noise."""
        picture = cv2.GaussianBlur(self.canvas, (0, 0), self.rng.uniform(0.3, 0.7))
        picture = (picture - 0.5) * self.rng.uniform(0.85, 1.1) + self.rng.uniform(0.45, 0.55)
        noise = self.rng.standard_normal(picture.shape, np.float32) * self.rng.uniform(0.004, 0.025)
        return np.clip((picture + noise) * 255 + 0.5, 0, 255).astype(np.uint8)

    def _place(self, kind, patch, at_border, min_seen, is_crowd=False):
        full = np.count_nonzero(patch[1] > 0.5)
        if kind and not 32**2 < full < 96**2:
            min_seen = max(0.75, min_seen)  # small: stays visible; large: most of them stay large
        needed = full * min_seen
        for _ in range(20):
            corner = self._draw_corner(patch[1].shape, at_border)
            colour, alpha = _on_frame(patch, self.canvas.shape[:2], corner)
            mask = alpha > 0.5
            if np.count_nonzero(mask) < needed:
                continue
            seen = [item._replace(mask=item.mask & ~mask) for item in self.items]
            if all(np.count_nonzero(s.mask) >= n for s, n in zip(seen, self._limits, strict=True)):
                self._paint(colour, alpha, reach=0.05 * max(patch[1].shape))
                if kind:
                    self.items = seen + [Item(str(kind), mask, is_crowd)]
                    self._limits.append(needed)
                return

    def _draw_corner(self, shape, at_border):
        """Top and left of a patch of `shape`: inside the frame, or perhaps across its border."""
        room = np.array(self.canvas.shape[:2]) - shape
        slack = 0.45 * np.array(shape) if self.rng.random() < at_border else 0
        low, high = np.minimum(0, room) - slack, np.maximum(0, room) + slack
        return np.round(self.rng.uniform(low, high)).astype(int)

    def _paint(self, colour, alpha, reach):
        """Lay a colour over the canvas; its shadow falls `reach` pixels or less from it."""
        x, y, width, height = cv2.boundingRect((alpha > 0).astype(np.uint8))
        margin = int(3 * reach) + 2  # farther away there is no shadow
        block = (
            slice(max(0, y - margin), y + height + margin),
            slice(max(0, x - margin), x + width + margin),
        )
        colour, alpha, canvas = colour[block], alpha[block], self.canvas[block]
        shift = np.float32([[1, 0, 0], [0, 1, 0]])
        shift[:, 2] = -2 * reach * self._light[:2]
        shadow = cv2.warpAffine(alpha, shift, alpha.shape[::-1])
        shadow = cv2.GaussianBlur(shadow, (0, 0), 0.5 + reach * 0.6) * self._shadow
        canvas *= 1 - shadow[..., None]
        canvas += (colour - canvas) * alpha[..., None]


def _on_frame(patch, size, corner):
    """Colour (h, w, 3) and alpha (h, w) of a frame of `size` that hold `patch` at (top, left)."""
    colour, alpha = np.zeros((*size, 3), np.float32), np.zeros(size, np.float32)
    start, stop = np.maximum(corner, 0), np.minimum(corner + patch[1].shape, size)
    if np.all(stop > start):
        to = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        source = tuple(slice(a, b) for a, b in zip(start - corner, stop - corner, strict=True))
        colour[to], alpha[to] = patch[0][source], patch[1][source]
    return colour, alpha


def draw_ground(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A textured ground (h, w, 3): clouds, wood, tiles, cloth, pebbles or a plain gradient."""
    kind = rng.integers(len(_GROUNDS))
    mix = _GROUNDS[kind](shape, rng)[..., None]
    first = random_colour(rng)
    first += (first.mean() - first) * rng.uniform(0, 0.9)  # grounds are duller than objects
    second = np.clip(first + rng.normal(0, 0.2, 3), 0.05, 1).astype(np.float32)
    lamp_u, _ = turned_axes(shape, max(shape), rng)
    light = 0.85 + rng.uniform(0, 0.35) * (lamp_u - lamp_u.min())
    grain = 0.9 + 0.2 * octaves(shape, rng.uniform(4, 12), rng)
    return np.clip((first + (second - first) * mix) * (light * grain)[..., None], 0, 1)


def _clouds(shape, rng):
    return octaves(shape, rng.uniform(12, 64), rng)


def _wood(shape, rng):
    u, v = turned_axes(shape, rng.uniform(14, 40), rng)
    warp = octaves(shape, rng.uniform(30, 60), rng) * rng.uniform(0.5, 2.5)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (u + warp)) * (0.7 + 0.3 * np.sin(v))


def _tiles(shape, rng):
    u, v = turned_axes(shape, rng.uniform(18, 56), rng)
    seam = np.minimum(np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5))
    tone = rng.random((64, 64), np.float32)[
        np.floor(u + 0.5).astype(int) % 64, np.floor(v + 0.5).astype(int) % 64
    ]
    return np.where(seam < 0.035, 1.2, tone * rng.uniform(0.2, 0.8)).astype(np.float32)


def _cloth(shape, rng):
    u, v = turned_axes(shape, rng.uniform(4, 9), rng)
    weave = 0.5 + 0.25 * (np.sin(2 * np.pi * u) + np.sin(2 * np.pi * v))
    return 0.6 * weave + 0.6 * octaves(shape, rng.uniform(20, 60), rng)


def _pebbles(shape, rng):
    seeds = np.ones(shape, np.uint8)
    count = max(4, int(shape[0] * shape[1] / rng.uniform(10, 26) ** 2))
    seeds[rng.integers(shape[0], size=count), rng.integers(shape[1], size=count)] = 0
    depth, label = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    tone = rng.random(count + 1, np.float32)[label]
    return 0.6 * tone + 0.5 * depth / depth.max()


def _gradient(shape, rng):
    u, _ = turned_axes(shape, max(shape), rng)
    return u - u.min() + 0.15 * octaves(shape, 4, rng)


_GROUNDS = [_clouds, _wood, _tiles, _cloth, _pebbles, _gradient]


def draw_clutter(shape, light, ground, rng):
    """Colour (h, w, 3) and alpha (h, w) of a rod, a scribble, a blob, a chip or crumbs."""
    kind, reach = rng.integers(5), min(shape)
    center = rng.uniform(0, 1, 2) * shape[::-1]
    canvas = np.zeros(shape, np.uint8)
    thick = int(rng.integers(1, max(2, reach // 24) + 1))
    if kind == 0:
        _stroke(canvas, center + np.outer([-0.5, 0.5], rng.normal(0, 0.5, 2)) * reach, thick)
    elif kind == 1:
        steps = np.cumsum(rng.normal(0, 0.06 * reach, (int(rng.integers(6, 20)), 2)), 0)
        _stroke(canvas, center + np.cumsum(steps, 0) * 0.3, thick)
    elif kind == 2:
        wobble = 1 + 0.35 * np.sin(np.linspace(0, 2 * np.pi, 40) * rng.integers(1, 4))
        radii = rng.uniform(0.03, 0.16, 2) * reach
        _polygon(canvas, center + (arc((0, 0), radii) * wobble[:, None]))
    elif kind == 3:
        angle = np.sort(rng.uniform(0, 360, int(rng.integers(3, 5))))
        spokes = np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle))], 1)
        _polygon(canvas, center + spokes * rng.uniform(0.05, 0.18) * reach)
    else:
        for spot in center + rng.normal(0, 0.1 * reach, (int(rng.integers(4, 14)), 2)):
            _polygon(canvas, spot + arc((0, 0), rng.uniform(0.008, 0.022) * reach + 0.5, count=12))
    x, y, width, height = cv2.boundingRect(canvas)
    colour = np.zeros((*shape, 3), np.float32)
    if width:
        block = slice(y, y + height), slice(x, x + width)
        colour[block] = paint_surface(canvas[block] > 127, light, ground, rng)
    return colour, canvas.astype(np.float32) / 255


def _fixed(points):
    return [np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)]


def _polygon(canvas, points):
    cv2.fillPoly(canvas, _fixed(points), 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def _stroke(canvas, points, thickness):
    cv2.polylines(
        canvas, _fixed(points), False, 255, thickness, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS
    )
