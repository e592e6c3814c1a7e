"""`python -m calibration.train`: the nano weights from the train splits, one command.

Stages: corpus (frozen stem, cached), vision (encoder, TDDF, head), text (tower to the anchors),
score (its weight, on validation). Stage (d), the prefix, is `calibration.prefix`. Every stage is
resumable: the state is kept in OUT/state.pt, figures in OUT/metrics.jsonl, a plot in OUT/plot.png.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.corpus import Corpus, CorpusSpec, build_corpus
from calibration.datasets import NOUNS
from calibration.metrics import auroc
from calibration.stage_score import choose_score, harmonic
from calibration.stage_text import TextSettings, ensemble_anchors, train_text
from calibration.stage_vision import (
    Sampler,
    VisionSettings,
    VisionTrainer,
    answers,
    encode_features,
    gather,
    start_from_stem,
    start_head,
)
from export.model import SpgddGpt
from export.model.tddf import unit
from export.model.weights import load_weights, save_weights

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


def train_vision(
    model: SpgddGpt,
    corpus: Corpus,
    val: dict[str, tuple[Corpus, Corpus]],
    settings: VisionSettings,
    out: Path,
    log: Log,
    every: int = 150,
    anchors: Tensor | None = None,
) -> Tensor:
    """Train in place and leave the best averaged weights (by validation); anchors (2,E).

    `anchors` given: go on from a trained model whose text tower already speaks these.
    """
    sampler = Sampler(corpus, settings)
    probe = np.sort(sampler.rng.permutation(corpus.rows())[:600])
    if anchors is None:
        start_from_stem(model, corpus.features[probe])
        start_head(model)
    trainer = VisionTrainer(model, settings, anchors)
    weights = trainer.trainable()
    optimiser = torch.optim.AdamW(trainer.groups(), settings.lr, weight_decay=settings.weight_decay)
    plan = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: _schedule(s, settings))
    average = [p.detach().clone() for p in weights]
    state_file, first = out / "state.pt", 0
    best: dict[str, Any] = {"value": -1.0}
    if state_file.is_file():
        first = _resume(state_file, trainer, optimiser, plan, average, best, sampler)
        log(f"vision: resumed at step {first}")
    sums: dict[str, float] = {}
    for step in range(first, settings.steps):
        batch, shots = sampler.draw()
        terms = trainer.loss(batch, shots, sampler.rng)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        trainer.hold_values()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        plan.step()
        decay = min(settings.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, now in zip(average, weights, strict=True):
                kept.lerp_(now, 1 - decay)
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.detach()) / 50
        if (step + 1) % 50 == 0:
            log(f"vision step {step + 1}/{settings.steps}", **sums)
            sums = {}
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            _validate(trainer, weights, average, val, best, log, step + 1)
            _keep(state_file, trainer, optimiser, plan, average, best, sampler, step + 1)
    with torch.no_grad():
        for now, kept in zip(weights, best["weights"], strict=True):
            now.copy_(kept)
    return unit(trainer.anchors.detach())


def _schedule(step: int, settings: VisionSettings) -> float:
    warm = max(1, int(settings.warmup * settings.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, settings.steps - warm)))) + 0.01


def _validate(
    trainer: VisionTrainer,
    weights: list[Any],
    average: list[Tensor],
    val: dict[str, tuple[Corpus, Corpus]],
    best: dict[str, Any],
    log: Log,
    step: int,
) -> None:
    """Figures of the averaged weights; they are kept when they are the best so far."""
    live = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for now, kept in zip(weights, average, strict=True):
            now.copy_(kept)
    figures: dict[str, float] = {}
    anchors = unit(trainer.anchors.detach())
    for name, (shots, corpus) in val.items():
        memory = memory_of(trainer.model, shots)
        for k, bank in ((0, None), (1, [m[:1] for m in memory])):
            figures |= figures_of(
                f"{name}/{k}", corpus, answers(trainer.model, anchors, corpus, bank)
            )
    chosen = [v for k, v in figures.items() if not k.endswith("cls")]
    # Without a validation set the latest average is the one to keep.
    value = float(np.mean(chosen)) if chosen else float(step)
    log(f"validation at {step}", mean=value, **figures)
    if value > best["value"]:
        best |= {"value": value, "step": step, "weights": [p.detach().clone() for p in weights]}
    with torch.no_grad():
        for now, kept in zip(weights, live, strict=True):
            now.copy_(kept)
    trainer.model.train()


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


def good_parts(corpus: Corpus, kind: str, count: int = 4, step: int = 5) -> Corpus:
    """A few good real pictures of one kind (`step` skips the augmented copies of one part)."""
    rows = np.flatnonzero((corpus.kind == kind) & corpus.normal & corpus.real)[::step][:count]
    names = ("features", "labels", "kind", "normal", "located", "real", "category")
    columns: dict[str, Any] = {name: np.asarray(getattr(corpus, name)[rows]) for name in names}
    return Corpus(**columns)


@torch.inference_mode()
def memory_of(model: SpgddGpt, shots: Corpus, count: int = 4) -> list[Tensor]:
    """Unit taps of the first `count` good parts of a corpus, 3 x (count,225,D)."""
    model.eval()
    rows = np.flatnonzero(shots.normal & shots.real)[:count]
    return [unit(t) for t in encode_features(model, gather(shots, rows).features).taps]


def _keep(path: Path, trainer: VisionTrainer, *rest: Any) -> None:
    optimiser, plan, average, best, sampler, step = rest
    state = {
        "weights": [p.detach() for p in trainer.trainable()],
        "optimiser": optimiser.state_dict(),
        "plan": plan.state_dict(),
        "average": average,
        "best": best,
        "rng": sampler.rng.bit_generator.state,
        "step": step,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def _resume(path: Path, trainer: VisionTrainer, *rest: Any) -> int:
    optimiser, plan, average, best, sampler = rest
    state = torch.load(path, weights_only=False)
    with torch.no_grad():
        for now, kept in zip(trainer.trainable(), state["weights"], strict=True):
            now.copy_(kept)
        for mean, kept in zip(average, state["average"], strict=True):
            mean.copy_(kept)
    optimiser.load_state_dict(state["optimiser"])
    plan.load_state_dict(state["plan"])
    best |= state["best"]
    sampler.rng.bit_generator.state = state["rng"]
    return int(state["step"])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m calibration.train", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders to train on")
    parser.add_argument("--out", type=Path, default=Path("build/train"))
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"))
    parser.add_argument("--weights", type=Path, help="where to write the weights file")
    parser.add_argument("--quick", action="store_true", help="frozen stem, cached features")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument(
        "--leave-out", nargs="*", default=[], help="sets of --data not to train or select on"
    )
    parser.add_argument("--start", type=Path, help="weights to go on from; text tower kept")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--real-share", type=float, default=0.62, help="share of real batches")
    parser.add_argument("--focus", type=float, default=0.5, help="share of the second real set")
    parser.add_argument("--free-projection", action="store_true", help="train conv1 as well")
    parser.add_argument("--kinds", type=int, default=96, help="procedural kinds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--paper-literal", action="store_true", help="Eq. 4 as printed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all stages."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    log = Log(args.out)
    model, known = start_model(args.start)
    spec = CorpusSpec(sets=tuple(str(d) for d in args.data), kinds=args.kinds)
    corpus = build_corpus(spec, args.cache, model.eval(), log)
    val = {}
    for folder in args.data:
        if folder.name in args.leave_out:
            continue
        plain = CorpusSpec((str(folder),), "val", variants=0, made_per_normal=0, kinds=0)
        held = build_corpus(plain, args.cache, model, log)
        val[folder.name] = (good_parts(corpus, folder.name), held)
    corpus.leave_out(args.leave_out)
    settings = VisionSettings(
        steps=args.steps,
        lr=args.lr,
        real_share=args.real_share,
        paper_literal=args.paper_literal,
        focus=args.focus,
        free_projection=args.free_projection,
    )
    anchors = train_vision(model, corpus, val, settings, args.out, log, anchors=known)
    torch.save({"model": model.state_dict(), "anchors": anchors}, args.out / "vision.pt")
    if known is None:
        for row in train_text(model, anchors, corpus, TextSettings()):
            log("text", **row)
    finish(model, anchors, val, args.out, log)
    write_weights(model, args, log)
    draw_plot(args.out / "metrics.jsonl", args.out / "plot.png")


def start_model(weights: Path | None) -> tuple[SpgddGpt, Tensor | None]:
    """A fresh nano, or a trained one with the anchors its text tower gives."""
    if weights is not None:
        model = load_weights(weights)
        nouns = (*NOUNS.values(), "object", "part")
        return model, unit(torch.stack([ensemble_anchors(model, n) for n in nouns]).mean(0))
    model = SpgddGpt.create("nano")
    return SpgddGpt.create("nano", vision=replace(model.config.vision, taps=TAPS)), None


def finish(
    model: SpgddGpt,
    anchors: Tensor,
    val: dict[str, tuple[Corpus, Corpus]],
    out: Path,
    log: Log,
) -> None:
    """The score's weight; figures through the text anchors."""
    texts = {name: ensemble_anchors(model, NOUNS.get(name, "object")) for name in val}
    for name in (*val, "unknown"):
        pair = texts.get(name, ensemble_anchors(model, "quillor brant"))
        log(f"text anchors of {name}", **_closeness(pair, anchors))
    banks = {name: (held, memory_of(model, good)) for name, (good, held) in val.items()}
    choice = choose_score(model, texts, banks, CLS_SCALE)
    log("score weight", weight=choice.weight, figures=choice.figures)
    for name, (held, memory) in banks.items():
        for shots in (0, 1, 4):
            bank = [m[:shots] for m in memory] if shots else None
            found: dict[str, Any] = dict(answers(model, texts[name], held, bank))
            found["peak"] = harmonic(found["cls"], found["peak"], choice.weight, CLS_SCALE)
            log("final", **figures_of(f"{name}/{shots}", held, found))
    torch.save(model.state_dict(), out / "final.pt")


def _closeness(pair: Tensor, anchors: Tensor) -> dict[str, float]:
    cos = (pair * anchors).sum(-1)
    return {"normal": float(cos[0]), "abnormal": float(cos[1])}


def write_weights(model: SpgddGpt, args: argparse.Namespace, log: Log) -> None:
    """The weights file, with a sentence saying what it is."""
    path = args.weights or args.out / "nano.safetensors"
    sets = " and ".join(f.name for f in args.data if f.name not in args.leave_out)
    trained = (
        f"trained {args.steps} steps on the train splits of {sets}, made defects and "
        f"{args.kinds} procedural kinds; stem from ImageNet, frozen; prefix untrained"
    )
    save_weights(model.eval(), path, trained=trained)
    log(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): {trained}")


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


if __name__ == "__main__":
    main()
