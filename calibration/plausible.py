"""Is there such a part in the frame at all? Ranges of light, contrast and focus from good parts."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from engines.preprocess import resize

# One step beyond what was seen: light may double, focus may halve, before a frame is called
# implausible; a real defect moves these three numbers far less.
MEAN_MARGIN, SPREAD_FACTOR, SHARPNESS_FACTOR = 0.5, 2.5, 4.0
_scratch = threading.local()  # pictures in between, one of each for a thread


@dataclass(frozen=True)
class Look:
    """Three figures of a region: grey mean (0..255), spread (std), sharpness (std of Laplacian)."""

    mean: float
    spread: float
    sharpness: float


def measure(region_bgr: NDArray[np.uint8]) -> Look:
    """Look of a region (H,W,3) u8, measured at the model's size so that it is free of scale."""
    return _look(cv2.cvtColor(resize(region_bgr), cv2.COLOR_BGR2GRAY))


def _look(grey: cv2.typing.MatLike) -> Look:
    """Look of a grey tile. cv2's mean and deviation make no temporary arrays, numpy's make four."""
    _scratch.sharp = sharp = cv2.Laplacian(grey, cv2.CV_32F, dst=getattr(_scratch, "sharp", None))
    mean, spread = cv2.meanStdDev(grey)
    return Look(float(mean[0, 0]), float(spread[0, 0]), float(cv2.meanStdDev(sharp)[1][0, 0]))


class Plausibility(BaseModel):
    """Ranges (low, high) outside which no such part is shown: dark, blown out, out of focus."""

    model_config = ConfigDict(frozen=True)

    mean: tuple[float, float] = (0.0, 255.0)
    spread: tuple[float, float] = (0.0, 255.0)
    sharpness: tuple[float, float] = (0.0, 2048.0)

    @classmethod
    def from_looks(cls, looks: Sequence[Look]) -> "Plausibility":
        """Ranges that hold every given look with a margin; at least one look is needed."""
        means = [look.mean for look in looks]
        low, high = min(means), max(means)
        return cls(
            mean=(low * MEAN_MARGIN, 255.0 - (255.0 - high) * MEAN_MARGIN),
            spread=_widened([look.spread for look in looks], SPREAD_FACTOR),
            sharpness=_widened([look.sharpness for look in looks], SHARPNESS_FACTOR),
        )

    def check(self, region_bgr: NDArray[np.uint8]) -> str | None:
        """None when the region (H,W,3) u8 is plausible, else what is wrong in a few words."""
        return self._odd(measure(region_bgr))

    def check_tile(self, tile_rgb: NDArray[np.uint8]) -> str | None:
        """As `check`, of a region that is one tile u8 (240,240,3) RGB: it is not resized twice."""
        grey = cv2.cvtColor(tile_rgb, cv2.COLOR_RGB2GRAY, dst=getattr(_scratch, "grey", None))
        _scratch.grey = grey
        return self._odd(_look(grey))

    def _odd(self, look: Look) -> str | None:
        for field, low_word, high_word in (
            ("mean", "too dark", "too bright"),
            ("spread", "without contrast", "contrast too high"),
            ("sharpness", "out of focus", "too noisy"),
        ):
            low, high = getattr(self, field)
            value = getattr(look, field)
            if not low <= value <= high:
                word = low_word if value < low else high_word
                return f"{word}: {field} {value:.1f}, good parts {low:.1f} to {high:.1f}"
        return None


def _widened(values: Sequence[float], factor: float) -> tuple[float, float]:
    return min(values) / factor, max(values) * factor
