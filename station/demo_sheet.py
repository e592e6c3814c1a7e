"""The contact sheet of the demo: the parts one should look at, each beside its heat map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CELL = 236
TEXT = 74
INK = (32, 32, 32)
VERDICT_COLOURS = {
    "OK": (60, 140, 40),
    "NG": (40, 40, 200),
    "UNDECIDED": (20, 130, 220),
    "ERROR": (140, 40, 140),
}


@dataclass(frozen=True)
class Card:
    """One part: BGR picture u8 (H,W,3), map f32 (h,w) over it, and what to write below."""

    picture: NDArray[np.uint8]
    heat: NDArray[np.float32]
    level: float
    verdict: str
    title: str
    words: str


def overlay(
    picture: NDArray[np.uint8], heat: NDArray[np.float32], level: float, opacity: float = 0.55
) -> NDArray[np.uint8]:
    """`heat` over `picture` (BGR): transparent where cold, full colour at twice `level`."""
    height, width = picture.shape[:2]
    grown = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)
    warm = np.clip(grown / max(2.0 * level, 1e-6), 0.0, 1.0)
    colour = cv2.applyColorMap((warm * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    alpha = (opacity * np.clip(warm * 2.0 - 0.2, 0.0, 1.0))[..., None]
    return np.asarray(picture * (1.0 - alpha) + colour * alpha, dtype=np.uint8)


def contact_sheet(cards: Sequence[Card], path: Path, heading: str, columns: int = 3) -> None:
    """Write a PNG with `cards`, `columns` a row; each card is picture and heat map."""
    rows = max(1, -(-len(cards) // columns))
    width, height = 2 * CELL + 16, CELL + TEXT + 12
    sheet = np.full((rows * height + 52, columns * width + 16, 3), 255, np.uint8)
    _write(sheet, heading, (16, 34), 0.8, INK, 2)
    for number, card in enumerate(cards):
        row, column = divmod(number, columns)
        _draw(sheet, card, 52 + row * height, 16 + column * width)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet)


def _draw(sheet: NDArray[np.uint8], card: Card, top: int, left: int) -> None:
    hot = overlay(card.picture, card.heat, card.level)
    for column, image in enumerate((card.picture, hot)):
        fitted = _fit(image)
        x = left + column * CELL
        sheet[top : top + fitted.shape[0], x : x + fitted.shape[1]] = fitted
    colour = VERDICT_COLOURS.get(card.verdict, INK)
    _write(sheet, card.verdict, (left, top + CELL + 22), 0.65, colour, 2)
    _write(sheet, card.title, (left + 110, top + CELL + 22), 0.42, INK)
    for line, text in enumerate(_wrap(card.words, 72)[:2]):
        _write(sheet, text, (left, top + CELL + 42 + 17 * line), 0.40, INK)


def _fit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = (CELL - 6) / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=way), dtype=np.uint8)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _write(
    sheet: NDArray[np.uint8],
    text: str,
    at: tuple[int, int],
    scale: float,
    colour: tuple[int, int, int],
    weight: int = 1,
) -> None:
    # OpenCV's Hershey fonts know ASCII only.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(sheet, plain, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, weight, cv2.LINE_AA)
