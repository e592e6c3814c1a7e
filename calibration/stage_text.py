"""Stage (a), text: the small tower learns to say "good" and "defective" of anything.

Prompts of the project's own ensemble, with nouns known, industrial, or made of random syllables (so
that every token of the vocabulary is met and an unknown product does not move the anchors), are
drawn to the two anchors the vision stage found. Beside it a contrastive term ties short texts made
from the labels to the CLS tokens of their pictures; where a person wrote texts of some pictures, a
second one ties pictures to their own texts, written ones and derived ones (`Corpus.text`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from calibration.corpus import Corpus
from calibration.datasets import NOUNS
from calibration.descriptions import LabelledPart, training_text
from calibration.resume import digest, keep, take_up
from calibration.stage_vision import encode_features, gather
from engines.text import fill, tokenise
from export.model import SpgddGpt
from export.model.tddf import unit
from export.prompts import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES

EVERY = 100  # steps between two states on disk
PRODUCTS = (
    "object", "part", "metal plate", "casting", "bearing ring", "gear", "screw", "bolt", "nut",
    "circuit board", "connector", "cable", "capacitor", "chip", "wafer", "solar cell", "battery",
    "bottle", "cap", "can", "label", "carton", "leather", "fabric", "carpet", "wood panel", "tile",
    "glass", "lens", "mirror", "tube", "pipe", "weld seam", "road surface", "concrete wall",
    "rail", "brake disc", "piston", "turbine blade", "ceramic plate", "magnet", "plastic housing",
    "film", "foil", "paper", "pill", "capsule", "zipper", "toothbrush", "hazelnut", "candle",
    "cashew", "macaroni", "ball bearing", "painted panel", "car door", "coating", "steel strip",
    *NOUNS.values(),
)  # fmt: skip
DEFECTS = (
    "crack", "scratch", "hole", "dent", "pit", "pitting", "stain", "chip", "break", "fray",
    "blowhole", "burr", "rust", "bubble", "missing piece", "bent lead", "scuff", "tear", "cut",
    "uneven surface", "contamination", "discolouration", "broken edge", "foreign particle",
)  # fmt: skip


@dataclass(frozen=True)
class TextSettings:
    """Hyperparameters of the text stage."""

    steps: int = 400
    batch: int = 64
    lr: float = 1e-3
    contrastive: float = 0.1
    temperature: float = 0.1
    seed: int = 42


def syllables(rng: np.random.Generator) -> str:
    """A word nobody knows, two to four syllables."""
    parts = ["".join(rng.choice(list(s)) for s in ("bcdfghklmnprstvwz", "aeiou", "lmnrstkx"))
             for _ in range(int(rng.integers(1, 4)))]  # fmt: skip
    return "".join(parts)


def prompt(rng: np.random.Generator, abnormal: bool) -> str:
    """One prompt of the ensemble about a random product."""
    noun = str(rng.choice(PRODUCTS))
    if rng.uniform() < 0.4:
        noun = " ".join(syllables(rng) for _ in range(int(rng.integers(1, 3))))
    states: Sequence[str] = NORMAL_STATES
    if abnormal:
        states = ABNORMAL_STATES if rng.uniform() < 0.7 else [f"{{}} with a {rng.choice(DEFECTS)}"]
    return str(rng.choice(TEMPLATES)).replace("{}", fill(str(rng.choice(states)), noun))


def train_text(
    model: SpgddGpt,
    anchors: Tensor,
    corpus: Corpus,
    settings: TextSettings,
    state: Path | None = None,
) -> list[dict[str, float]]:
    """Train the text tower in place towards anchors (2,E); figures per 50 steps.

    With `state` (a file) the same call goes on where it was broken off. UsageError when that file
    is another run's.
    """
    rng = np.random.default_rng([settings.seed, 5])
    own_rng = np.random.default_rng([settings.seed, 6])
    torch.manual_seed(settings.seed)
    weights = _text_weights(model)
    optimiser = torch.optim.AdamW(weights, settings.lr, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.lr, settings.steps)
    pool = _described(model, corpus, rng)
    own = _own_texts(model, corpus, own_rng)
    of = {
        "settings": asdict(settings),
        "data sets": [corpus.key, sorted(corpus.by_kind)],
        "anchors": digest(anchors),
    }
    history: list[dict[str, float]] = []
    left = take_up(state, of) if state else None
    first = 0 if left is None else _resume(left, weights, optimiser, plan, history, rng, own_rng)
    for step in range(first, settings.steps):
        flags = rng.uniform(size=settings.batch) < 0.5
        found = unit(_encode(model, [prompt(rng, bool(f)) for f in flags]))
        side = torch.from_numpy(flags.astype(np.int64))
        pull = 1 - (found * anchors[side]).sum(-1).mean()
        lean = 10 * (found @ anchors.T)
        terms = {"pull": pull, "side": 0.2 * F.cross_entropy(lean, side)}
        terms["pair"] = settings.contrastive * _contrastive(model, pool, rng, settings)
        if own is not None:
            terms["own"] = settings.contrastive * _contrastive(model, own, own_rng, settings)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        plan.step()
        if (step + 1) % 50 == 0:
            history.append({"step": step + 1.0} | {k: float(v.detach()) for k, v in terms.items()})
        if state and ((step + 1) % EVERY == 0 or step + 1 == settings.steps):
            keep(state, of, _state(weights, optimiser, plan, history, rng, own_rng, step + 1))
    return history


def _text_weights(model: SpgddGpt) -> list[Parameter]:
    """What belongs to the text tower alone."""
    clip = model.clip
    vision = {id(p) for p in clip.visual.parameters()} | {id(clip.logit_scale)}
    return [p for p in clip.parameters() if id(p) not in vision]


def _state(weights: list[Parameter], *rest: Any) -> dict[str, Any]:
    optimiser, plan, history, rng, own_rng, step = rest
    return {
        "weights": [p.detach() for p in weights],
        "optimiser": optimiser.state_dict(),
        "plan": plan.state_dict(),
        "history": history,
        "rng": [rng.bit_generator.state, own_rng.bit_generator.state],
        "step": step,
    }


def _resume(left: dict[str, Any], weights: list[Parameter], *rest: Any) -> int:
    optimiser, plan, history, rng, own_rng = rest
    with torch.no_grad():
        for now, kept in zip(weights, left["weights"], strict=True):
            now.copy_(kept)
    optimiser.load_state_dict(left["optimiser"])
    plan.load_state_dict(left["plan"])
    history += left["history"]
    rng.bit_generator.state, own_rng.bit_generator.state = left["rng"]
    return int(left["step"])


def _encode(model: SpgddGpt, texts: Sequence[str]) -> Tensor:
    return model.encode_text(torch.from_numpy(tokenise(texts)))


@torch.no_grad()
def _cls(model: SpgddGpt, corpus: Corpus, rows: NDArray[np.int64]) -> Tensor:
    """Unit CLS tokens (n,E) of rows of a corpus."""
    found = [
        unit(encode_features(model, gather(corpus, rows[i : i + 50]).features).cls)
        for i in range(0, len(rows), 50)
    ]
    return torch.cat(found)


def _described(
    model: SpgddGpt, corpus: Corpus, rng: np.random.Generator, count: int = 600
) -> tuple[Tensor, list[str]]:
    """CLS of drawn pictures beside a short text of their labels."""
    rows = np.sort(rng.permutation(corpus.rows())[:count])
    return _cls(model, corpus, rows), [training_text(_part(corpus, int(row))) for row in rows]


def _own_texts(
    model: SpgddGpt, corpus: Corpus, rng: np.random.Generator, count: int = 300
) -> tuple[Tensor, list[str]] | None:
    """CLS of pictures beside their own texts: those a person wrote, and as many derived ones.

    None where nobody wrote any: derived texts alone say what the labels' short ones say already,
    and the training is then the one that the shipped weights come from.
    """
    rows = corpus.rows()
    written = rng.permutation(rows[corpus.written[rows]])[:count]
    if not len(written):
        return None
    derived = rng.permutation(rows[~corpus.written[rows]])[:count]
    chosen = np.sort(np.concatenate([written, derived]))
    return _cls(model, corpus, chosen), [str(text) for text in corpus.text[chosen]]


def _part(corpus: Corpus, row: int) -> LabelledPart:
    kind = str(corpus.kind[row])
    noun = NOUNS.get(kind, f"{kind.rsplit('-', 1)[-1]} surface")
    label = np.asarray(corpus.labels[row], np.float32)
    return LabelledPart(noun, str(corpus.category[row]), bool(corpus.normal[row]), label > 0.3)


def _contrastive(
    model: SpgddGpt,
    pool: tuple[Tensor, list[str]],
    rng: np.random.Generator,
    settings: TextSettings,
) -> Tensor:
    cls, texts = pool
    rows = rng.choice(len(texts), min(24, len(texts)), replace=False)
    words = unit(_encode(model, [texts[i] for i in rows]))
    logits = words @ cls[torch.from_numpy(rows)].T / settings.temperature
    target = torch.arange(len(rows))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.inference_mode()
def ensemble_anchors(model: SpgddGpt, noun: str) -> Tensor:
    """(2,E) [normal, abnormal] as engines.text computes them for a recipe without phrases."""
    model.eval()
    sides = []
    for states in (NORMAL_STATES, ABNORMAL_STATES):
        texts = [t.replace("{}", fill(s, noun)) for s in states for t in TEMPLATES]
        sides.append(unit(unit(_encode(model, texts)).mean(0)))
    return torch.stack(sides)
