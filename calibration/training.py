"""What the training stages share: the log, figures on a corpus, memory, starting models, plot."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.corpus import COLUMNS, Corpus, CorpusSpec, build_corpus
from calibration.datasets import NOUNS
from calibration.metrics import auroc
from calibration.stage_text import ensemble_anchors
from calibration.stage_vision import encode_features, gather
from engines.errors import SourceError
from export.model import SpgddGpt
from export.model.tddf import unit
from export.model.weights import load_weights

TAPS = (1, 2, 4)
# Trained CLS cosines differ by up to 1.4: times 100 their softmax would underflow float32.
CLS_SCALE = 20.0


class Log:
    """Progress on the terminal and one JSON line per figure."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.begin = folder / "metrics.jsonl", time.monotonic()

    def __call__(self, text: str, **figures: Any) -> None:
        """Say `text`; keep `figures`."""
        seconds = time.monotonic() - self.begin
        shown = " ".join(f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, float))
        print(f"[{seconds:6.0f} s] {text} {shown}", flush=True)
        if figures:
            row = {"seconds": round(seconds, 1), "what": text, **figures}
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")


def figures_of(prefix: str, corpus: Corpus, found: dict[str, Any]) -> dict[str, float]:
    """Pixel- and Image-AUC (by peak, by CLS) of one run over a corpus, in percent."""
    located = corpus.located
    truth = corpus.labels[located] > 0.3
    pairs = {
        "pixel": auroc(truth, found["map"][located]),
        "peak": auroc(~corpus.normal, found["peak"]),
        "cls": auroc(~corpus.normal, found["cls"]),
    }
    return {f"{prefix}/{k}": 100 * v for k, v in pairs.items() if v is not None}


Held = dict[str, tuple[Corpus, Corpus]]
"""Per set: good train parts (memory) and the validation split."""


def held_sets(
    sets: Mapping[str, Path],
    corpus: Corpus,
    cache: Path,
    model: SpgddGpt,
    log: Callable[[str], None],
) -> Held:
    """Good parts and validation split of every named set; SourceError where one has none."""
    val: Held = {}
    for name, folder in sets.items():
        plain = CorpusSpec((str(folder),), "val", variants=0, made_per_normal=0, kinds=0)
        val[name] = (good_parts(corpus, name), build_corpus(plain, cache, model, log))
    return val


def good_parts(corpus: Corpus, kind: str, count: int = 4, step: int = 5) -> Corpus:
    """A few good real pictures of one kind (`step` skips the augmented copies of one part).

    SourceError when there is none.
    """
    rows = np.flatnonzero((corpus.kind == kind) & corpus.normal & corpus.real)[::step][:count]
    if not len(rows):
        raise SourceError(f"{kind} has no good part in its train split: add some, or leave it out")
    columns: dict[str, Any] = {
        name: np.asarray(getattr(corpus, name)[rows]) for name in ("features", *COLUMNS)
    }
    return Corpus(**columns)


@torch.inference_mode()
def memory_of(model: SpgddGpt, shots: Corpus, count: int = 4) -> list[Tensor]:
    """Unit taps of the first `count` good parts of a corpus, 3 x (count,225,D)."""
    model.eval()
    rows = np.flatnonzero(shots.normal & shots.real)[:count]
    features = gather(shots, rows).features.to(model.mean.device)
    return [unit(t) for t in encode_features(model, features).taps]


def start_model(weights: Path | None) -> tuple[SpgddGpt, Tensor | None]:
    """A fresh nano, or a trained one with the anchors its text tower gives."""
    if weights is not None:
        model = load_weights(weights)
        return model, known_anchors(model)
    model = SpgddGpt.create("nano")
    return SpgddGpt.create("nano", vision=replace(model.config.vision, taps=TAPS)), None


def draw_plot(metrics: Path, out: Path) -> None:
    """Losses and validation figures over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for axis, mark in ((left, "vision step "), (right, "validation at ")):
        chosen = [r for r in rows if r["what"].startswith(mark)]
        steps = [int(r["what"].removeprefix(mark).split("/")[0]) for r in chosen]
        for name in sorted({k for r in chosen for k in r} - {"seconds", "what"}):
            axis.plot(steps, [r.get(name) for r in chosen], label=name)
        axis.set_xlabel("step")
        axis.legend(fontsize=6)
    left.set_title("loss terms")
    right.set_title("validation, percent")
    figure.tight_layout()
    figure.savefig(out, dpi=90)


def known_anchors(model: SpgddGpt) -> Tensor:
    """(2,E): what the text tower says of the nouns this project knows, averaged."""
    nouns = (*NOUNS.values(), "object", "part")
    return unit(torch.stack([ensemble_anchors(model, n) for n in nouns]).mean(0))
