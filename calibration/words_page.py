"""docs/words.md: made defects on procedural parts beside what is said about them, right or wrong.

`python -m calibration.words_page [--bundle nano] [--out docs]`

Nothing here is a photograph. The products are of kinds that neither vision nor prefix was trained
on; each gets references and a threshold from good parts of its own, as at the station.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.entry import run_command
from calibration.prefix_data import MADE
from calibration.procedural import Kind
from calibration.synthetic import Defective, make_defect
from calibration.words_report import HELD, SHOTS, Inspector, speak
from engines.bundle import Bundle, load_bundle
from engines.describer import DescribeRequest, Description
from engines.facts import EVERYWHERE, location_word, touched_cells
from engines.template import ANOMALY

FIRST = 7000
NOUNS = {
    "metal": "brushed metal plate", "fabric": "fabric", "board": "circuit board",
    "coating": "painted panel", "stone": "stone tile", "cells": "cell plate",
    "turned": "turned disc", "grid": "grid plate",
}  # fmt: skip
SIDE, COLUMNS = 200, 2


@dataclass(frozen=True)
class Shown:
    """One part: what was made, what the engine saw, what was said."""

    made: Defective
    request: DescribeRequest
    words: Description | None = None

    @property
    def place_right(self) -> bool:
        """Whether the named cell holds some of the defect."""
        where = self.words.location if self.words else ""
        if where == EVERYWHERE:
            return location_word(self.made.mask) == EVERYWHERE
        return where in {*touched_cells(self.made.mask), location_word(self.made.mask)}

    @property
    def kind(self) -> str:
        """ "right", "wrong", or "not said" where only the general word stands."""
        said = self.words.category if self.words else ANOMALY
        if said == ANOMALY:
            return "not said"
        return "right" if said == MADE[self.made.category] else "wrong"


def parts_of(number: int, bundle: Bundle, each: int) -> list[Shown]:
    """`each` defective parts of one procedural product through the engine."""
    kind = Kind.of(FIRST + number)
    rng = np.random.default_rng([FIRST, number])
    good = [kind.part(rng) for _ in range(SHOTS + HELD)]
    names = list(MADE)
    chosen = [names[(number * each + i) % len(names)] for i in range(each)]
    offered = [MADE[name] for name in names]
    inspector = Inspector(NOUNS[kind.material], offered, good, bundle)
    shown = []
    for i, name in enumerate(chosen):
        made = make_defect(rng, kind.part(rng), good[0], name)
        shown.append(Shown(made, inspector.request(f"{number}-{i}", made.image)))
    return shown


def sheet(shown: list[Shown]) -> NDArray[np.uint8]:
    """Numbered pairs of picture (truth outlined) and heat."""
    cells = []
    for number, s in enumerate(shown, 1):
        plain = s.made.image.copy()
        outline, _ = cv2.findContours(
            s.made.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        cv2.drawContours(plain, outline, -1, (0, 255, 0), 1)
        scaled = s.request.map / max(float(s.request.map.max()), 1e-6)
        heat = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_INFERNO)
        over = cv2.addWeighted(s.made.image, 0.5, cv2.resize(heat, (240, 240)), 0.5, 0)
        pair = cv2.resize(np.hstack([plain, over]), (2 * SIDE, SIDE), interpolation=cv2.INTER_AREA)
        cv2.rectangle(pair, (0, 0), (26, 20), (0, 0, 0), -1)
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(pair, str(number), (4, 15), font, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(cv2.copyMakeBorder(pair, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=(40, 40, 40)))
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    return np.asarray(np.vstack([r for r in rows if r.shape == rows[0].shape]), np.uint8)


def page(shown: list[Shown], bundle: Bundle) -> str:
    """The Markdown page under the sheet."""
    right = sum(s.words is not None and s.words.defective and s.place_right for s in shown)
    kinds = [s.kind for s in shown if s.request.defective]
    named = ", ".join(f"{kinds.count(k)} {k}" for k in ("right", "wrong", "not said"))
    found = sum(s.request.defective for s in shown)
    model = next((s.words.model for s in shown if s.words and s.words.source == "llm"), "template")
    lines = [
        "# What the station says",
        "",
        "Made by `python -m calibration.words_page` on "
        f"{time.strftime('%Y-%m-%d', time.gmtime())} with the bundle `{bundle.sha[:12]}` and the "
        f"describer `{model}`. Procedural parts of kinds never trained on, defects drawn by "
        "program: green outlines are the truth, the right half of each pair is the heat of the "
        "map. Good and bad answers alike; nothing was chosen by hand.",
        "",
        f"Of {len(shown)} parts {found} were found defective, {right} with the right place; the "
        f"kind, one of {len(MADE)}: {named}. The kind comes from the image embedding (the prefix), "
        "and is said only of parts like those that kinds were learned from; any other defect is "
        'an "anomaly". Place, count, size, shape and colour come from the map and the pixels.',
        "",
        "![Numbered parts with their heat](pictures/words.jpg)",
        "",
        "| | made | said | place | kind |",
        "|---|---|---|---|---|",
    ]
    for number, s in enumerate(shown, 1):
        truth = f"{MADE[s.made.category]}, {location_word(s.made.mask)}"
        words = s.words.sentence if s.words else ""
        place = "right" if s.place_right else "wrong"
        kind = s.kind
        if not s.request.defective:
            place = kind = "not found"
        lines.append(f"| {number} | {truth} | {words} | {place} | {kind} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parts, words, sheet and page."""
    parser = argparse.ArgumentParser(prog="python -m calibration.words_page", description=__doc__)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--backend", choices=["auto", "template"], default="auto")
    parser.add_argument("--kinds", type=int, default=8)
    parser.add_argument("--each", type=int, default=2)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    parts = [s for number in range(args.kinds) for s in parts_of(number, bundle, args.each)]
    words = speak([s.request for s in parts], bundle.file("prefix.onnx"), args.backend, "fed")
    shown = [Shown(s.made, s.request, w) for s, w in zip(parts, words, strict=True)]
    pictures = args.out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(pictures / "words.jpg"), sheet(shown), [cv2.IMWRITE_JPEG_QUALITY, 82])
    notes = args.out / "words_notes.md"  # written by hand: what was measured on real parts
    more = "\n" + notes.read_text(encoding="utf-8") if notes.exists() else ""
    (args.out / "words.md").write_text(page(shown, bundle) + more, encoding="utf-8")
    print(args.out / "words.md")


if __name__ == "__main__":
    run_command(main)
