"""Defects made on good parts, with the mask of what changed.

NSA (Schlueter et al. 2022): a patch with gamma-distributed sides from another part (or elsewhere on
the same one), Poisson-blended or pasted at another place. Drawn defects: scratch, crack, dent,
stain, hole, missing and bent features. Everything is seeded and works on BGR u8 (H,W,3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.procedural import SIZE, noise

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
# A pixel counts as defective where the picture visibly changed: grey levels, any channel.
VISIBLE = 6


@dataclass(frozen=True)
class Defective:
    """A part with a made defect: BGR u8 (240,240,3), mask bool (240,240), its category."""

    image: Image
    mask: Mask
    category: str


def make_defect(
    rng: np.random.Generator, good: Image, donor: Image, category: str | None = None
) -> Defective:
    """One defective part from a good one (240,240,3); `donor` is another picture for NSA patches.

    A defect that cannot be seen is drawn again; after 8 tries a hole is made, which always can.
    """
    for _ in range(8):
        name = category or str(rng.choice(CATEGORIES, p=WEIGHTS))
        image, area = MAKERS[name](rng, good, donor)
        changed = np.abs(image.astype(np.int16) - good).max(2) >= VISIBLE
        mask = _closed(changed & area)
        if mask.sum() >= 12:
            return Defective(image, mask, name)
    area = _blob(rng, 6, 12)
    image = np.where(area[..., None], 255 - good // 4 * 4, good).astype(np.uint8)
    return Defective(image, area, "hole")


def _closed(mask: Mask) -> Mask:
    kernel = np.ones((3, 3), np.uint8)
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    return cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)) > 0


def _place(rng: np.random.Generator, margin: int = 12) -> tuple[int, int]:
    x, y = rng.integers(margin, SIZE - margin, 2)
    return int(x), int(y)


def _blob(rng: np.random.Generator, low: float, high: float) -> Mask:
    """A rough ellipse somewhere, half-axes between low and high pixels."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    axes = np.round(rng.uniform(low, high, 2)).astype(int)
    angle = float(rng.uniform(0, 180))
    cv2.ellipse(canvas, _place(rng), axes.tolist(), angle, 0, 360, 255, -1)
    rough = cv2.GaussianBlur(canvas, (0, 0), 0.25 * low + 0.5) / 255.0 + 0.12 * noise(rng, 1.2)
    grown = cv2.dilate(canvas, np.ones((7, 7), np.uint8)) > 0
    return (rough > 0.5) & grown


def _walk(rng: np.random.Generator, steps: int, stride: float, turn: float) -> NDArray[np.int32]:
    """A wandering line as points (steps,1,2), starting anywhere."""
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, turn, steps))
    moves = np.stack([np.cos(headings), np.sin(headings)], 1) * stride
    return np.round(_place(rng) + np.cumsum(moves, 0)).astype(np.int32)[:, None]


def _stroke(rng: np.random.Generator, points: NDArray[np.int32], width: int) -> NDArray[np.float32]:
    """Coverage f32 (240,240) of a polyline with a soft edge."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    cv2.polylines(canvas, [points], False, (255,), width, cv2.LINE_AA)
    soft = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 1.0)))
    return np.asarray(soft, np.float32) / np.float32(255)


def _shade(good: Image, cover: NDArray[np.float32], delta: NDArray[np.float64] | float) -> Image:
    mixed = good + cover[..., None] * np.asarray(delta)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _signed(rng: np.random.Generator, low: float, high: float, dark: float = 0.7) -> float:
    return float(rng.uniform(low, high) * (-1 if rng.uniform() < dark else 1))


def _scratch(rng: np.random.Generator, good: Image, _donor: Image) -> tuple[Image, Mask]:
    points = _walk(rng, int(rng.integers(4, 20)), float(rng.uniform(4, 12)), 0.06)
    cover = _stroke(rng, points, int(rng.integers(1, 4)))
    return _shade(good, cover, _signed(rng, 15, 90, dark=0.4)), cover > 0.15


def _crack(rng: np.random.Generator, good: Image, _donor: Image) -> tuple[Image, Mask]:
    points = _walk(rng, int(rng.integers(8, 50)), float(rng.uniform(2, 5)), 0.5)
    cover = _stroke(rng, points, int(rng.integers(1, 4)))
    for _ in range(int(rng.integers(0, 3))):
        branch = _walk(rng, int(rng.integers(4, 16)), 3.0, 0.5)
        start = points[int(rng.integers(0, len(points)))] - branch[0]
        cover = np.maximum(cover, _stroke(rng, branch + start, 1))
    return _shade(good, cover, _signed(rng, 15, 80, dark=0.85)), cover > 0.15


def _dent(rng: np.random.Generator, good: Image, _donor: Image) -> tuple[Image, Mask]:
    """A shaded bump: bright on one side, dark on the other."""
    cx, cy = _place(rng)
    sx, sy = rng.uniform(3, 18, 2)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    u, v = (x - cx) / sx, (y - cy) / sy
    bump = np.exp(-(u * u + v * v) / 2).astype(np.float32)
    angle = rng.uniform(0, 6.3)
    slope = (u * np.cos(angle) + v * np.sin(angle)) * bump * 1.65
    return _shade(good, slope, rng.uniform(15, 80)), bump > 0.15


def _stain(rng: np.random.Generator, good: Image, _donor: Image) -> tuple[Image, Mask]:
    area = _blob(rng, 4, 30)
    soft = cv2.GaussianBlur(area.astype(np.float32), (0, 0), float(rng.uniform(0.6, 4)))
    texture = 1.0 + 0.35 * noise(rng, 1.0)
    tint = _signed(rng, 12, 70) * (1 + 0.5 * rng.normal(0, 1, 3) * rng.integers(0, 2))
    return _shade(good, soft * texture, tint), soft > 0.2


def _hole(rng: np.random.Generator, good: Image, _donor: Image) -> tuple[Image, Mask]:
    area = _blob(rng, 1.5, 12)
    soft = cv2.GaussianBlur(area.astype(np.float32), (0, 0), 0.7)[..., None]
    level = rng.uniform(0, 60) if rng.uniform() < 0.75 else rng.uniform(190, 255)
    mixed = good * (1 - soft) + level * soft
    return np.clip(mixed, 0, 255).astype(np.uint8), soft[..., 0] > 0.2


def _window(rng: np.random.Generator, scale: float) -> tuple[int, int, int, int]:
    """x, y, w, h with gamma-distributed sides (NSA), inside the picture."""
    w, h = np.clip(rng.gamma(2.0, scale, 2) * SIZE, 6, 110).astype(int)
    x, y = rng.integers(2, SIZE - 2 - w), rng.integers(2, SIZE - 2 - h)
    return int(x), int(y), int(w), int(h)


def _nsa(rng: np.random.Generator, good: Image, donor: Image) -> tuple[Image, Mask]:
    x, y, w, h = _window(rng, 0.05)
    sx, sy = int(rng.integers(0, SIZE - w)), int(rng.integers(0, SIZE - h))
    patch = donor[sy : sy + h, sx : sx + w]
    area = np.zeros((SIZE, SIZE), bool)
    shape = np.zeros((h, w), np.uint8)
    cv2.ellipse(shape, (w // 2, h // 2), (w // 2, h // 2), 0, 0, 360, 255, -1)
    if rng.uniform() < 0.4:
        shape[:] = 255
    area[y : y + h, x : x + w] = shape > 0
    if rng.uniform() < 0.6:
        mode = cv2.NORMAL_CLONE if rng.uniform() < 0.5 else cv2.MIXED_CLONE
        where = (x + w // 2, y + h // 2)
        return np.asarray(cv2.seamlessClone(patch, good, shape, where, mode), np.uint8), area
    image = good.copy()
    image[y : y + h, x : x + w][shape > 0] = patch[shape > 0]
    return image, area


def _foreign(rng: np.random.Generator, good: Image, donor: Image) -> tuple[Image, Mask]:
    """Another surface shows through a rough area (DRAEM style)."""
    area = _blob(rng, 4, 28)
    soft = cv2.GaussianBlur(area.astype(np.float32), (0, 0), 0.8)[..., None]
    strength = rng.uniform(0.35, 1.0)
    other = np.roll(donor, rng.integers(0, SIZE, 2).tolist(), (0, 1))
    mixed = good + soft * strength * (other.astype(np.float32) - good)
    return np.clip(mixed, 0, 255).astype(np.uint8), soft[..., 0] > 0.2


def _missing(rng: np.random.Generator, good: Image, _donor: Image) -> tuple[Image, Mask]:
    """What was there is gone: the area is filled smoothly from its rim."""
    area = _blob(rng, 5, 20)
    image = good.copy()
    low = cv2.GaussianBlur(good, (0, 0), float(rng.uniform(5, 12)))
    image[area] = low[area]
    return image, area


def _bent(rng: np.random.Generator, good: Image, _donor: Image) -> tuple[Image, Mask]:
    """Local warp: features are pushed aside inside a disc."""
    cx, cy = _place(rng)
    radius = float(rng.uniform(10, 35))
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    push = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * (radius / 2) ** 2)).astype(np.float32)
    angle, amount = rng.uniform(0, 6.3), rng.uniform(4, 11)
    map_x = x + push * np.float32(amount * np.cos(angle))
    map_y = y + push * np.float32(amount * np.sin(angle))
    warped = cv2.remap(good, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(warped, np.uint8), push > 0.2


Maker = Callable[[np.random.Generator, Image, Image], tuple[Image, Mask]]
MAKERS: dict[str, Maker] = {
    "scratch": _scratch,
    "crack": _crack,
    "dent": _dent,
    "stain": _stain,
    "hole": _hole,
    "patch": _nsa,
    "foreign": _foreign,
    "missing": _missing,
    "bent": _bent,
}
CATEGORIES = tuple(MAKERS)
WEIGHTS = (0.12, 0.16, 0.1, 0.14, 0.12, 0.18, 0.08, 0.05, 0.05)
