"""Procedural parts: kinds of surfaces that exist nowhere, for training on variety.

A kind is a seed: it fixes material, colours and features; every image of the kind is a new part of
it, shifted, lit and grained anew. Arrays are BGR f32 (240,240,3) in 0..255 while being made.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 240
MATERIALS = ("metal", "fabric", "board", "coating", "stone", "cells", "turned", "grid")
Array = NDArray[np.float32]


@cache
def _frequencies() -> tuple[Array, Array]:
    fy = np.fft.fftfreq(SIZE)[:, None].astype(np.float32)
    fx = np.fft.rfftfreq(SIZE)[None, :].astype(np.float32)
    return fy, fx


def noise(
    rng: np.random.Generator, slope: float, stretch: float = 1.0, angle: float = 0.0
) -> Array:
    """Zero-mean unit-spread noise (240,240) of power-law `slope`, stretched along `angle` (rad)."""
    fy, fx = _frequencies()
    along = fx * np.cos(angle) + fy * np.sin(angle)
    across = -fx * np.sin(angle) + fy * np.cos(angle)
    radius = np.sqrt((along * stretch) ** 2 + across**2) + 1.0 / SIZE
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE), np.float32)) * radius**-slope
    field = np.fft.irfft2(spectrum, s=(SIZE, SIZE)).astype(np.float32)
    return (field - field.mean()) / (field.std() + 1e-6)


def _grid() -> tuple[Array, Array]:
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    return y, x


@dataclass(frozen=True)
class Kind:
    """One product: `part(rng)` draws a new good part of it."""

    seed: int
    material: str

    @classmethod
    def of(cls, seed: int) -> "Kind":
        """The kind with this seed; materials take turns."""
        return cls(seed, MATERIALS[seed % len(MATERIALS)])

    def part(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A good part, BGR u8 (240,240,3)."""
        own = np.random.default_rng([self.seed, 7])
        height = _HEIGHTS[self.material](own, rng)
        contrast = own.uniform(6, 38)
        base = own.uniform(45, 200) + own.normal(0, 18 * own.integers(0, 2), 3)
        tint = 1.0 + own.normal(0, 0.15, 3) * own.integers(0, 2)
        image = base + height[..., None] * contrast * tint
        image *= _light(own, rng)[..., None]
        image += rng.normal(0, own.uniform(0.5, 5), image.shape)
        image = image * rng.uniform(0.93, 1.07) + rng.uniform(-4, 4)
        return np.clip(image, 0, 255).astype(np.uint8)


def _light(own: np.random.Generator, rng: np.random.Generator) -> Array:
    y, x = _grid()
    strength, angle = own.uniform(0, 0.35), own.uniform(0, 2 * np.pi)
    ramp = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    wobble = rng.normal(0, 0.05) * (x - 0.5) + rng.normal(0, 0.05) * (y - 0.5)
    bow = own.uniform(0, 0.5) * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    return (1.0 + strength * ramp - bow + wobble).astype(np.float32)


def _metal(own: np.random.Generator, rng: np.random.Generator) -> Array:
    angle = own.uniform(0, np.pi) + rng.normal(0, 0.02)
    return noise(rng, own.uniform(0.6, 1.4), own.uniform(4, 14), angle)


def _coating(own: np.random.Generator, rng: np.random.Generator) -> Array:
    fine = own.uniform(0.2, 0.9)
    return fine * noise(rng, own.uniform(0, 0.5)) + (1 - fine) * noise(rng, own.uniform(1.2, 2))


def _stone(own: np.random.Generator, rng: np.random.Generator) -> Array:
    field = noise(rng, own.uniform(0.5, 1.3))
    speck = noise(rng, own.uniform(0.2, 0.6)) > own.uniform(1.2, 2.2)
    return field + speck * own.uniform(-3, 3)


def _fabric(own: np.random.Generator, rng: np.random.Generator) -> Array:
    y, x = _grid()
    jitter = 0.06 * noise(rng, 2.0)
    tilt = rng.normal(0, 0.015) + own.uniform(-0.6, 0.6)
    fu, fv = own.uniform(12, 55, 2)
    u = (x * np.cos(tilt) + y * np.sin(tilt) + rng.uniform()) * fu + jitter
    v = (-x * np.sin(tilt) + y * np.cos(tilt) + rng.uniform()) * fv + jitter
    weave = np.sin(2 * np.pi * u) * own.uniform(0.3, 1.2) + np.sin(2 * np.pi * v)
    return weave + own.uniform(0.2, 0.8) * noise(rng, 0.5)


def _turned(own: np.random.Generator, rng: np.random.Generator) -> Array:
    y, x = _grid()
    cy, cx = own.uniform(-1.5, 1.5, 2) + rng.normal(0, 0.01, 2)
    radius = np.sqrt((y - cy) ** 2 + (x - cx) ** 2) + 0.002 * noise(rng, 1.5)
    phase, lines = rng.uniform(0, 6.3), own.uniform(4, 40)
    shape = np.tanh(np.sin(2 * np.pi * lines * radius + phase) * own.uniform(0.5, 4))
    return shape + own.uniform(0.1, 0.6) * noise(rng, own.uniform(0.4, 1.2))


def _cells(own: np.random.Generator, rng: np.random.Generator) -> Array:
    count = int(own.integers(30, 240))
    points = rng.uniform(0, SIZE, (count, 2)).astype(np.float32)
    seeds = np.full((SIZE, SIZE), 255, np.uint8)
    seeds[points[:, 1].astype(int) % SIZE, points[:, 0].astype(int) % SIZE] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    shade = rng.normal(0, 1, labels.max() + 1).astype(np.float32)[labels]
    field = shade * own.uniform(0.2, 1) + distance / (distance.max() + 1e-6) * own.uniform(-2, 2)
    blurred = np.asarray(cv2.GaussianBlur(field, (0, 0), 0.8), np.float32)
    return blurred + 0.3 * noise(rng, 0.6)


def _board(own: np.random.Generator, rng: np.random.Generator) -> Array:
    """Features at fixed places (chips, holes, tracks), shifted a little per part."""
    canvas = 0.2 * noise(rng, own.uniform(0.3, 1.0))
    dx, dy = rng.normal(0, 2.5, 2)
    for _ in range(int(own.integers(6, 28))):
        x, y = own.uniform(10, SIZE - 10, 2)
        w, h = own.uniform(4, 45, 2)
        level, kind = float(own.uniform(-3, 3)), own.integers(0, 3)
        at = (int(x + dx), int(y + dy))
        if kind == 0:
            cv2.rectangle(canvas, at, (int(at[0] + w), int(at[1] + h)), level, -1)
        elif kind == 1:
            cv2.circle(canvas, at, int(w / 3) + 2, level, -1)
        else:
            cv2.line(canvas, at, (int(at[0] + 4 * (w - 22)), at[1]), level, int(h / 12) + 1)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.7), np.float32)


def _grid_lines(own: np.random.Generator, rng: np.random.Generator) -> Array:
    y, x = _grid()
    step = own.uniform(0.06, 0.3, 2)
    u, v = (x + rng.uniform()) % step[0], (y + rng.uniform()) % step[1]
    width = own.uniform(0.004, 0.02)
    lines = ((u < width) | (v < width * own.uniform(0.3, 2))).astype(np.float32)
    field = noise(rng, own.uniform(0.5, 1.5))
    return lines * own.uniform(-3, 3) + own.uniform(0.2, 1) * field


_HEIGHTS = {
    "metal": _metal,
    "fabric": _fabric,
    "board": _board,
    "coating": _coating,
    "stone": _stone,
    "cells": _cells,
    "turned": _turned,
    "grid": _grid_lines,
}
