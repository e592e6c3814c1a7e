"""The contact sheet of the demo: the parts one should look at, each beside its heat map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CELL = 250
TEXT = 122
MARGIN, GAP, HEAD = 18, 26, 92
INK, QUIET, RULE, WRONG = (32, 32, 32), (96, 96, 96), (210, 210, 210), (30, 30, 190)
VERDICT_COLOURS = {
    "OK": (60, 130, 30),
    "NG": (30, 30, 190),
    "UNDECIDED": (20, 110, 200),
    "ERROR": (140, 40, 140),
}


@dataclass(frozen=True)
class Card:
    """One part: BGR picture u8 (H,W,3), map f32 (h,w) over it, and what to write below.

    level: of the map, where its outline lies. right: whether the verdict agrees with the label.
    """

    picture: NDArray[np.uint8]
    heat: NDArray[np.float32]
    level: float
    verdict: str
    title: str
    words: str
    right: bool
    judgement: str


def heat_colours(warm: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(BGR f32, alpha 0..1) of a map in units of its level, as the operator's page draws it:
    nothing below .55, yellow, red at the level, magenta at twice the level."""
    t = np.clip((warm - 0.55) / 0.62, 0.0, 1.0)
    hot = np.clip(warm - 1.0, 0.0, 1.0)
    colour = np.stack([110.0 * hot, 210.0 * (1.0 - t), 255.0 - 45.0 * hot], axis=-1)
    return colour.astype(np.float32), np.where(warm > 0.55, 0.25 + 0.75 * t, 0.0)


def overlay(
    picture: NDArray[np.uint8], heat: NDArray[np.float32], level: float, opacity: float = 0.6
) -> NDArray[np.uint8]:
    """`heat` over `picture` (BGR), outlined in white on black where it crosses `level`."""
    height, width = picture.shape[:2]
    warm = cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR) / max(level, 1e-6)
    colour, alpha = heat_colours(np.asarray(warm, np.float32))
    alpha = (opacity * alpha)[..., None]
    drawn = np.asarray(picture * (1.0 - alpha) + colour * alpha, dtype=np.uint8)
    lines, _ = cv2.findContours((warm > 1.0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for ink, weight in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.drawContours(drawn, lines, -1, ink, weight, cv2.LINE_AA)
    return drawn


def contact_sheet(cards: Sequence[Card], path: Path, heading: str, columns: int = 3) -> None:
    """Write a PNG with `cards`, `columns` a row; each card is picture and heat map."""
    rows = max(1, -(-len(cards) // columns))
    width, height = 2 * CELL + GAP, CELL + TEXT + GAP
    sheet = np.full((rows * height + HEAD, columns * width + 2 * MARGIN, 3), 255, np.uint8)
    _write(sheet, heading, (MARGIN, 36), 0.85, INK, 2)
    _legend(sheet, (MARGIN, 54))
    for number, card in enumerate(cards):
        row, column = divmod(number, columns)
        _draw(sheet, card, HEAD + row * height, MARGIN + column * width)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet)


def _legend(sheet: NDArray[np.uint8], at: tuple[int, int]) -> None:
    """The scale of the heat: grey where nothing is drawn, a tick at the level."""
    left, top = at
    warm = np.linspace(0.0, 2.0, 240, dtype=np.float32)
    colour, alpha = heat_colours(warm)
    alpha = alpha[:, None]
    bar = (150.0 * (1 - alpha) + colour * alpha).astype(np.uint8)
    begin = left + 62
    sheet[top : top + 14, begin : begin + 240] = bar[None]
    cv2.line(sheet, (begin + 120, top - 3), (begin + 120, top + 17), INK, 2)
    _write(sheet, "normal", (left, top + 13), 0.48, INK)
    _write(
        sheet,
        "suspicious.  Left: the part.  Right: its heat map; the white line is where the heat "
        "crosses the mark in the middle of the scale.",
        (begin + 250, top + 13),
        0.48,
        INK,
    )


def _draw(sheet: NDArray[np.uint8], card: Card, top: int, left: int) -> None:
    hot = overlay(_fit(card.picture), card.heat, card.level)
    for column, image in enumerate((_fit(card.picture), hot)):
        x = left + column * CELL
        sheet[top : top + image.shape[0], x : x + image.shape[1]] = image
    colour, below = VERDICT_COLOURS.get(card.verdict, INK), top + CELL
    _write(sheet, card.verdict, (left, below + 24), 0.9, colour, 2)
    ahead = left + 34 + 19 * len(card.verdict)
    _write(sheet, card.judgement, (ahead, below + 22), 0.55, INK if card.right else WRONG, 2)
    _write(sheet, card.title, (left, below + 46), 0.48, QUIET)
    for line, text in enumerate(_wrap(card.words, 66)[:3]):
        _write(sheet, text, (left, below + 68 + 19 * line), 0.48, INK)
    end = below + TEXT + 8
    cv2.line(sheet, (left, end), (left + 2 * CELL - 6, end), RULE, 1)


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
