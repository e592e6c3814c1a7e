"""Procedural parts: drawn, never photographed, so that a bundle proves itself without any data.

Same seed, same frame on every machine (integers and fixed-size kernels only where it matters: the
bundle keeps the pictures themselves, so drawing is never repeated at boot).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """A full-size frame BGR (H,W,3) and its mask (H,W), 255 = defect (all 0 on a good part)."""

    name: str
    image: U8
    mask: U8

    @property
    def normal(self) -> bool:
        """True for a good part."""
        return not self.mask.any()


def _surface(rng: np.random.Generator, height: int, width: int, kind: int) -> U8:
    """Brushed metal (0), speckled stone (1), a coloured gradient plate with holes (2)."""
    base = np.full((height, width, 3), (150, 140, 128), np.float32)
    if kind == 0:
        grain = cv2.blur(rng.normal(0, 30, (height, width)).astype(np.float32), (61, 1))
        base += grain[..., None]
    elif kind == 1:
        speck = cv2.GaussianBlur(rng.normal(0, 60, (height, width)).astype(np.float32), (0, 0), 2)
        base += speck[..., None]
    else:
        base[..., 0] += np.linspace(-60, 40, width)[None]
        base[..., 2] += np.linspace(-50, 70, height)[:, None]
        for _ in range(6):
            centre = (int(rng.integers(40, width - 40)), int(rng.integers(40, height - 40)))
            cv2.circle(base, centre, int(rng.integers(8, 25)), (60, 70, 80), -1, cv2.LINE_AA)
    return np.clip(base, 0, 255).astype(np.uint8)


def _damage(rng: np.random.Generator, image: U8) -> U8:
    """Draw one defect (scratch, pit or stain) into `image`; returns its mask."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    kind = int(rng.integers(3))
    centre = rng.integers((width // 5, height // 5), (width * 4 // 5, height * 4 // 5))
    if kind == 0:
        steps = rng.integers(-width // 8, width // 8, (4, 2)).cumsum(0)
        cv2.polylines(mask, [(centre + steps).astype(np.int32)], False, 255, 5)
    elif kind == 1:
        cv2.circle(mask, (int(centre[0]), int(centre[1])), int(rng.integers(10, 24)), 255, -1)
    else:
        axes = (int(rng.integers(20, 50)), int(rng.integers(12, 30)))
        cv2.ellipse(mask, (int(centre[0]), int(centre[1])), axes, 30, 0, 360, 255, -1)
    colour = np.array([(25, 25, 30), (235, 240, 245), (30, 60, 120)][kind], np.uint8)
    image[mask > 0] = (0.25 * image[mask > 0] + 0.75 * colour).astype(np.uint8)
    return mask


SIZES = ((480, 640), (300, 800), (700, 500), (180, 420))
"""(H,W): larger than the model, mixed (one axis grows), tall, and wide."""


def draw(index: int, *, defective: bool, seed: int = 42) -> Drawn:
    """Frame `index` of the endless procedural line."""
    rng = np.random.default_rng([seed, index])
    height, width = SIZES[index % len(SIZES)]
    image = _surface(rng, height, width, index % 3)
    mask = _damage(rng, image) if defective else np.zeros((height, width), np.uint8)
    return Drawn(f"drawn{index:03d}", image, mask)


def drawn_line(count: int, seed: int = 42) -> list[Drawn]:
    """`count` frames, every second one defective."""
    return [draw(i // 2, defective=i % 2 == 1, seed=seed) for i in range(count)]
