"""Stage (d): train the adapter's prefix through the frozen language model (III-D, Eq. 12).

`python -m calibration.prefix --weights nano.safetensors --data SET... --out DIR --minutes 30`

Loss L_C: cross entropy on the answer's tokens only, and of those on the kind of the defect, which
is all that the map's findings cannot say. The linear layer of the image begins where ridge
regression from CLS to the model's own word embeddings of the kinds leaves it: an image embedding
is then a word the model already reads, and few steps are needed on a CPU. `--start` goes on from
an earlier prefix instead; when that one belongs to other vision weights (`--start-weights`), its
image layer is carried over by regression onto the embeddings it had for each kind. `--new-made`:
that prefix has not met the made kinds; their words are where they begin. The same command goes on
where it was broken off (OUT/state.pt); OUT refuses a run with other settings, sets or weights.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calibration.entry import run_command, write_json
from calibration.prefix_data import Example, cached_examples, listed
from calibration.prefix_known import known_of
from calibration.prefix_school import Lesson, School, prefixes_of
from calibration.resume import Identity, digest, keep, take_up, trained_of
from engines.gguf_file import find_gguf
from export.model.adapter import LEARNED, Prefix
from export.model.weights import load_weights, save_weights

SEED = 42
RIDGE = 1e-4  # of kinds that weigh 1 each; .01 named .70 of validation by nearest kind, this .96
EVERY = 30  # steps between two validations, each of which keeps the best prefix
HELD = 20  # parts of each kind in a validation
REAL = 2.0  # how much oftener than a made kind of defect a real one is drawn


def ridge(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (H,E) and bias (H,) that map x (n,E) to y (n,H), rows weighted by (n,)."""
    x1 = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    w = weight.double()[:, None]
    gram = x1.T @ (w * x1) + RIDGE * torch.eye(x1.shape[1], dtype=torch.double)
    solved = torch.linalg.solve(gram, x1.T @ (w * y.double())).float()
    return solved[:-1].T, solved[-1]


def evenly(lessons: Sequence[Lesson]) -> Tensor:
    """Weights (n,) by which every kind of every set counts the same."""
    kinds = [le.example.group for le in lessons]
    return torch.tensor([1 / kinds.count(k) for k in kinds])


def few(examples: Sequence[Example]) -> list[Example]:
    """At most HELD examples of each kind of a set, evenly spaced."""
    kinds: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        kinds.setdefault(example.group, []).append(example)
    return [
        group[i * len(group) // min(HELD, len(group))]
        for group in kinds.values()
        for i in range(min(HELD, len(group)))
    ]


def _cls(examples: Sequence[Example]) -> Tensor:
    return torch.from_numpy(np.stack([e.cls for e in examples]).astype(np.float32))


@torch.no_grad()
def begin(prefix: Prefix, school: School, lessons: Sequence[Lesson]) -> None:
    """Start values: image = ridge regression onto the words of the kinds, the rest = line breaks.

    Every kind weighs the same, so that the frequent ones do not rule.
    """
    neutral = school.llama.embed(school.tokenizer.tokenize("\n")[:1])[0]
    words = torch.stack([school.word(le.example.category) for le in lessons])
    weight, bias = ridge(_cls([le.example for le in lessons]), words, evenly(lessons))
    prefix.image.weight.copy_(weight)
    prefix.image.bias.copy_(bias)
    for linear in (prefix.text, prefix.map):
        linear.weight.mul_(0.02)
        linear.bias.copy_(neutral)
    prefix.learned.copy_(neutral.expand(LEARNED, -1))


@torch.no_grad()
def prototypes(prefix: Prefix, examples: Sequence[Example]) -> dict[tuple[str, str], Tensor]:
    """The mean image embedding (H,) of every kind of every set."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    return {group: prefix.image(_cls(of)).mean(0) for group, of in groups.items()}


@torch.no_grad()
def settle(
    prefix: Prefix,
    lessons: Sequence[Lesson],
    kinds: dict[tuple[str, str], Tensor],
    scale: float = 1.0,
) -> None:
    """Fit the image layer so that the parts of a kind land on its prototype.

    Training moves the embeddings of a kind to where the model reads them; least squares then
    gathers its parts there better than a few hundred steps can. `scale` spreads the prototypes.
    """
    known = [le for le in lessons if le.example.group in kinds]
    center = torch.stack(list(kinds.values())).mean(0)
    wanted = torch.stack([center + scale * (kinds[le.example.group] - center) for le in known])
    weight, bias = ridge(_cls([le.example for le in known]), wanted, evenly(known))
    prefix.image.weight.copy_(weight)
    prefix.image.bias.copy_(bias)


def carry(
    prefix: Prefix,
    start: Path,
    old: Sequence[Example] | None,
    lessons: Sequence[Lesson],
    fresh: dict[tuple[str, str], Tensor] | None = None,
) -> None:
    """Begin with an earlier prefix; `old` = labelled parts as its own vision weights saw them.

    Without `old` it was trained on these weights and is taken as it is. `fresh`: where kinds that
    it has not met shall land, (H,) each.
    """
    prefix.load_state_dict(load_file(start))
    fresh = fresh or {}
    if old is None and not fresh:
        return
    met = [le.example for le in lessons] if old is None else old
    known = prototypes(prefix, [e for e in met if e.group not in fresh])
    settle(prefix, lessons, {**known, **fresh})


def accuracy(said: Sequence[str], lessons: Sequence[Lesson]) -> float | None:
    """Share of right kinds, each kind of a set weighing the same; None without a lesson."""
    by_kind: dict[tuple[str, str], list[bool]] = {}
    for word, lesson in zip(said, lessons, strict=True):
        by_kind.setdefault(lesson.example.group, []).append(word == lesson.category)
    return float(np.mean([np.mean(v) for v in by_kind.values()])) if by_kind else None


class Examination:
    """Validation by the kinds that the frozen model names: balanced over kinds, set by set."""

    def __init__(self, school: School, lessons: Sequence[Lesson]) -> None:
        self.school, self.lessons = school, lessons

    def __call__(self, prefix: nn.Module) -> dict[str, Any]:
        """`real`: balanced accuracy over the kinds of real sets; then each set and each kind."""
        return self.of(self.school.named(prefix, self.lessons))

    def of(self, words: Sequence[str]) -> dict[str, Any]:
        """The same of words that something else has said."""
        said = list(zip(words, self.lessons, strict=True))
        report: dict[str, Any] = {"real": _share(said, lambda g: g[0] != "made")}
        for group in sorted({le.example.group for le in self.lessons}):
            report.setdefault(group[0], _share(said, lambda g: g[0] == group[0]))  # noqa: B023
            report["/".join(group)] = _share(said, lambda g: g == group)  # noqa: B023
        return report


def _share(
    said: Sequence[tuple[str, Lesson]], wanted: Callable[[tuple[str, str]], bool]
) -> float | None:
    of = [(word, le) for word, le in said if wanted(le.example.group)]
    found = accuracy([word for word, _ in of], [le for _, le in of])
    return None if found is None else round(found, 4)


def judge(report: dict[str, Any]) -> float:
    """One figure of an examination: real kinds count twice as much as made ones, if there are."""
    real, made = report["real"], report.get("made")
    return float(real if made is None else made if real is None else (2 * real + made) / 3)


def swapped(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Each lesson with the embeddings of a part of another kind: does the model really look?"""
    other = [*lessons[len(lessons) // 2 :], *lessons[: len(lessons) // 2]]
    return [
        replace(le, example=replace(le.example, cls=o.example.cls, f_out=o.example.f_out))
        for le, o in zip(lessons, other, strict=True)
    ]


def train(
    school: School,
    prefix: Prefix,
    lessons: Sequence[Lesson],
    args: argparse.Namespace,
    examine: Callable[[Prefix], float],
    of: Identity,
) -> list[float]:
    """Adam with warm-up and one cosine over the steps or minutes given; the best prefix is kept.

    Returns the losses. The state with the highest `examine` is in `prefix` when it ends. A state of
    the same run (`of`) in args.out is gone on from, its minutes counted; UsageError: of another.
    """
    file = args.out / "state.pt"
    left = take_up(file, of)
    groups = _by_group(lessons)
    names = list(groups)
    chance = np.array([1.0 if source == "made" else REAL for source, _ in names])
    rng = np.random.default_rng(SEED)
    adam = torch.optim.Adam(prefix.parameters(), lr=args.lr)
    if left is None:
        best, state, losses = examine(prefix), _copy(prefix), list[float]()
    else:
        best, state, losses = left["best"], left["kept"], left["losses"]
        prefix.load_state_dict(left["prefix"])
        adam.load_state_dict(left["adam"])
        rng.bit_generator.state = left["rng"]
        print(f"resumed at step {len(losses)}", flush=True)
    start = time.monotonic() - (left["seconds"] if left else 0.0)

    def leave() -> None:
        now = {"best": best, "kept": state, "losses": losses, "prefix": prefix.state_dict()}
        now |= {"adam": adam.state_dict(), "rng": rng.bit_generator.state}
        keep(file, of, now | {"seconds": time.monotonic() - start})

    while (spent := _spent(len(losses), time.monotonic() - start, args)) < 1:
        rate = min(1.0, (len(losses) + 1) / 5) * 0.5 * (1 + np.cos(np.pi * spent))
        for group in adam.param_groups:
            group["lr"] = args.lr * float(rate)
        drawn = [
            groups[names[i]] for i in rng.choice(len(names), args.batch, p=chance / chance.sum())
        ]
        batch = [group[rng.integers(len(group))] for group in drawn]
        adam.zero_grad()
        loss = school.loss(batch, prefixes_of(prefix, batch))
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        losses.append(float(loss.detach()))
        if len(losses) % 5 == 1:
            seconds = time.monotonic() - start
            print(f"[{seconds:5.0f} s] step {len(losses)} L_C {loss:.4f}", flush=True)
        if len(losses) % EVERY == 0:
            if (found := examine(prefix)) >= best:
                best, state = found, _copy(prefix)
                save_file(state, args.out / "best.safetensors")
            leave()
    leave()
    if losses and examine(prefix) < best:
        prefix.load_state_dict(state)
    return losses


def _by_group(lessons: Sequence[Lesson]) -> dict[tuple[str, str], list[Lesson]]:
    groups: dict[tuple[str, str], list[Lesson]] = {}
    for lesson in lessons:
        groups.setdefault(lesson.example.group, []).append(lesson)
    return groups


def _spent(steps: int, seconds: float, args: argparse.Namespace) -> float:
    return max(steps / args.steps, seconds / (60 * args.minutes))


def _copy(prefix: Prefix) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in prefix.state_dict().items()}


def main() -> None:
    """Features, start values, training, validation, report, weights with the prefix in them."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_weights(args.weights)
    examples = _examples(args.weights, args)
    path = find_gguf(args.gguf)
    school = School(path)
    rng = np.random.default_rng(SEED)
    training = [school.lesson(e, rng) for e in examples if e.split == "train"]
    held = [school.lesson(e) for e in few([e for e in examples if e.split == "val" and e.shots])]
    print(f"{len(training)} lessons, {len(held)} to validate", flush=True)
    prefix, examine = model.prefix, Examination(school, held)
    if args.start:
        old = _examples(args.start_weights, args) if args.start_weights else None
        made = [le.example for le in training if le.example.group[0] == "made"]
        fresh = {e.group: school.word(e.category) for e in made} if args.new_made else {}
        carry(prefix, args.start, old, training, fresh)
    else:
        begin(prefix, school, training)
    report: dict[str, Any] = {
        "gguf": path.name, "train": len(training), "val": len(held),
        "template": examine.of([le.example.guess for le in held]), "before": examine(prefix),
    }  # fmt: skip
    print(report, flush=True)

    def score(candidate: Prefix) -> float:
        found = examine(candidate)
        print(f"    validation {found}", flush=True)
        return judge(found)

    losses = train(school, prefix, training, args, score, identity(args, path))
    report |= {"steps": len(losses), "first_loss": losses[:1], "last_loss": losses[-5:]}
    trained, state = examine(prefix), _copy(prefix)
    settle(prefix, training, prototypes(prefix, [le.example for le in training]))
    report["settled"] = settled = examine(prefix)
    if judge(settled) < judge(trained):
        prefix.load_state_dict(state)
    report["trained"] = max(trained, settled, key=judge)
    report["shuffled"] = Examination(school, swapped(held))(prefix)
    report["better_than_template"] = report["trained"]["real"] > report["template"]["real"]
    save_file(_copy(prefix), args.out / "prefix.safetensors")
    extra = {**model.config.extra, "prefix_trained": True, "llm": path.name}
    extra["prefix_known"] = known_of([le.example for le in training]).to_text()
    model.config = replace(model.config, extra=extra)
    said = trained_of(args.weights, model.config.trained)
    said = said.replace("language prefix not trained", "language prefix trained")
    save_weights(model, args.out / "weights.safetensors", trained=said)
    write_json(args.out / "prefix.json", report)
    print(json.dumps(report, indent=1))


def identity(args: argparse.Namespace, gguf: Path) -> dict[str, Any]:
    """Whose the state of a prefix training is."""
    plan = ("steps", "minutes", "lr", "batch", "made", "limit", "new_made")
    weights = (args.weights, args.start, args.start_weights)
    return {
        "settings": {name: getattr(args, name) for name in plan},
        "data sets": [digest(listed(root)) for root in args.data],
        "start weights": [digest(path) if path else None for path in weights],
        "language model": [gguf.name, gguf.stat().st_size],
    }


def _examples(weights: Path, args: argparse.Namespace) -> list[Example]:
    """The examples of all sets and of made defects as these weights see them."""
    found = [e for root in args.data for e in cached_examples(root, weights, args.limit)]
    return found + (cached_examples(args.made, weights, None) if args.made else [])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m calibration.prefix", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="go on from this prefix.safetensors")
    parser.add_argument("--start-weights", type=Path, help="vision weights --start belongs to")
    parser.add_argument("--new-made", action="store_true", help="--start knows no made kinds")
    parser.add_argument("--gguf", default="auto")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--made", type=int, default=60, help="procedural kinds beside the sets")
    parser.add_argument("--limit", type=int, help="at most this many a category and split")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
