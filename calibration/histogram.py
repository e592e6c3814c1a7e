"""A picture of held-out scores and the threshold, drawn with OpenCV alone (runs on the station)."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, PAD, BINS = 720, 360, 44, 40
INK, BAR, LINE = (40, 40, 40), (170, 140, 90), (40, 40, 200)


def draw_histogram(
    scores: Sequence[float], threshold: float, title: str, note: str
) -> NDArray[np.uint8]:
    """BGR u8 (360,720,3): histogram of `scores` around their own range, threshold as a red line."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    _write(image, f"{title}: scores of {len(scores)} held-out good parts", (PAD, 24), 0.55)
    _write(image, note, (PAD, HEIGHT - 8), 0.4)
    low, high = _range(scores, threshold)
    floor, wide = HEIGHT - PAD, WIDTH - 2 * PAD
    counts, _ = np.histogram(np.asarray(scores, float), bins=BINS, range=(low, high))
    most = max(1, int(counts.max()))
    step = wide / BINS
    for index, count in enumerate(counts):
        up = int((floor - PAD) * count / most)
        left = int(PAD + index * step)
        cv2.rectangle(image, (left, floor - up), (int(left + step) - 1, floor), BAR, -1)
    _write(image, f"{most} parts", (4, PAD - 6), 0.38)
    if np.isfinite(threshold):
        at = int(PAD + wide * (threshold - low) / (high - low))
        cv2.line(image, (at, PAD), (at, floor), LINE, 2)
        _write(image, f"limit {threshold:.4f}", (min(at + 6, WIDTH - 110), PAD + 14), 0.45)
    cv2.line(image, (PAD, floor), (WIDTH - PAD, floor), INK, 1)
    for part in range(6):
        x = int(PAD + wide * part / 5)
        _write(image, f"{low + (high - low) * part / 5:.3f}", (x - 16, floor + 16), 0.38)
    return image


def _range(scores: Sequence[float], threshold: float) -> tuple[float, float]:
    """What to show: scores of one product often lie close together, far from 0."""
    shown = [s for s in (*scores, threshold) if np.isfinite(s)] or [0.0]
    margin = max(0.4 * (max(shown) - min(shown)), 1e-4)
    low = min(shown) - margin
    # No score of the detector is negative; where one is (another detector), it is shown as it is.
    return (max(0.0, low) if min(shown) >= 0 else low), max(shown) + margin


def _write(image: NDArray[np.uint8], text: str, at: tuple[int, int], size: float) -> None:
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
