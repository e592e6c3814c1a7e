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
    """BGR u8 (360,720,3): histogram of `scores` in [0, 1.25 * largest], threshold as a red line."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    _write(image, f"{title}: {len(scores)} held-out good parts", (PAD, 24), 0.55)
    _write(image, note, (PAD, HEIGHT - 8), 0.4)
    top = 1.25 * max([threshold, *scores, 1e-6])
    floor = HEIGHT - PAD
    counts, _ = np.histogram(np.asarray(scores, float), bins=BINS, range=(0.0, top))
    step = (WIDTH - 2 * PAD) / BINS
    for index, count in enumerate(counts):
        high = int((floor - PAD) * count / max(1, counts.max()))
        left = int(PAD + index * step)
        cv2.rectangle(image, (left, floor - high), (int(left + step) - 1, floor), BAR, -1)
    at = int(PAD + (WIDTH - 2 * PAD) * threshold / top)
    cv2.line(image, (at, PAD), (at, floor), LINE, 2)
    _write(image, f"{threshold:.4f}", (min(at + 4, WIDTH - 90), PAD + 14), 0.45)
    cv2.line(image, (PAD, floor), (WIDTH - PAD, floor), INK, 1)
    for part in range(6):
        x = int(PAD + (WIDTH - 2 * PAD) * part / 5)
        _write(image, f"{top * part / 5:.3f}", (x - 16, floor + 16), 0.38)
    return image


def _write(image: NDArray[np.uint8], text: str, at: tuple[int, int], size: float) -> None:
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
