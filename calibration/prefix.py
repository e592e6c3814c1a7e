"""Stage (d): train the adapter's prefix through the frozen language model (III-D, Eq. 12).

`python -m calibration.prefix --weights nano.safetensors --data SET... --out DIR --minutes 15`

Loss L_C: cross entropy on the answer's tokens only. The linear layer of the image begins where
ridge regression from CLS to the model's own word embeddings of the kinds leaves it: an image
embedding is then a word the model already reads, and few steps are needed on a CPU. The trained
prefix is worth shipping only if it names kinds better than the template; the report says so.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from calibration.prefix_data import Example, examples_of
from calibration.prefix_llama import FrozenLlama, Kept
from engines.gguf_file import find_gguf
from engines.gguf_model import LlamaModel
from engines.gguf_prefix import LENGTH
from engines.gguf_prompt import (
    END_IMAGE,
    IMAGE_TOKENS,
    NONE,
    SENTENCE,
    answer_text,
    findings_text,
    own_frame,
    own_turns,
)
from export.model.adapter import LEARNED, Prefix
from export.model.weights import load_weights

SEED = 42
RIDGE = 1e-2
_KEY = '","category":"'


@dataclass(frozen=True)
class Lesson:
    """An example as token ids: before image, after image, after prefix, answer; and its kinds."""

    example: Example
    before: list[int]
    between: list[int]
    after: list[int]
    answer: list[int]
    category_at: int  # index in `answer` of the first token of the category
    choices: tuple[tuple[str, int], ...]  # kind and its first token, as the answer writes it


class School:
    """Frozen model, tokenizer and kept prompt, shared by training and validation."""

    def __init__(self, gguf_path: Path) -> None:
        self.tokenizer = LlamaModel(gguf_path, n_ctx=64, sequences=1)
        self.llama = FrozenLlama(gguf_path)
        rendered = self.tokenizer.chat_text(own_turns(image=True))
        if rendered is None:
            raise SystemExit(f"{gguf_path}: this model has no chat template llama.cpp knows")
        self.frame = own_frame(rendered)
        self.kept: Kept = self.llama.keep(self.tokenizer.tokenize(self.frame.head, bos=True))

    def lesson(self, example: Example) -> Lesson:
        """Token ids of one example."""
        ids = self.tokenizer.tokenize
        answer = answer_text(example.found, example.category)
        cut = answer.index(_KEY) + len(_KEY)
        start = ids(answer[:cut])
        kinds = (NONE,) if not example.found.defective else example.found.kinds
        return Lesson(
            example,
            ids(self.frame.before_image()),
            ids(END_IMAGE),
            ids("\n" + findings_text(example.found) + self.frame.tail),
            start + ids(answer[cut:]),
            len(start),
            tuple((kind, ids(kind + SENTENCE)[0]) for kind in kinds),
        )

    def word(self, text: str) -> Tensor:
        """Embedding (H,) of the first token of a word as it stands in a sentence."""
        return self.llama.embed(self.tokenizer.tokenize(f" {text}")[:1])[0]

    def inputs(self, lesson: Lesson, prefix: Tensor) -> Tensor:
        """Input embeddings (T,H) of a lesson without its last token, prefix (21,H) inside."""
        text = self.llama.embed
        return torch.cat([
            text(lesson.before), prefix[:IMAGE_TOKENS], text(lesson.between),
            prefix[IMAGE_TOKENS:], text(lesson.after + lesson.answer[:-1]),
        ])  # fmt: skip

    def run(self, lessons: Sequence[Lesson], prefixes: Tensor) -> list[Tensor]:
        """Hidden states (n,H) that predict the answer tokens, for each lesson."""
        rows = [self.inputs(le, p) for le, p in zip(lessons, prefixes, strict=True)]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = self.llama.hidden(padded, self.kept)
        return [
            hidden[i, len(row) - len(le.answer) : len(row)]
            for i, (row, le) in enumerate(zip(rows, lessons, strict=True))
        ]


def prefixes_of(prefix: Prefix, lessons: Sequence[Lesson]) -> Tensor:
    """Embeddings (B,21,H) of a batch."""
    stack = lambda name: torch.from_numpy(  # noqa: E731
        np.stack([getattr(le.example, name) for le in lessons]).astype(np.float32)
    )
    out = prefix(stack("cls"), stack("anchors"), stack("f_out").flatten(1, 2))
    assert out.shape[1] == LENGTH
    return out


def begin(prefix: Prefix, school: School, lessons: Sequence[Lesson]) -> None:
    """Start values: image = ridge regression onto the words of the kinds, the rest = line breaks.

    Every class weighs the same, so that the good parts (most of them) do not rule.
    """
    neutral = school.llama.embed(school.tokenizer.tokenize("\n")[:1])[0]
    x = torch.from_numpy(np.stack([le.example.cls for le in lessons])).double()
    labels = [le.example.category for le in lessons]
    weight = torch.tensor([1 / labels.count(c) for c in labels], dtype=torch.double)[:, None]
    y = torch.stack([school.word(c) for c in labels]).double()
    x1 = torch.cat([x, torch.ones(len(x), 1, dtype=torch.double)], 1)
    gram = x1.T @ (weight * x1) + RIDGE * torch.eye(x1.shape[1], dtype=torch.double)
    solved = torch.linalg.solve(gram, x1.T @ (weight * y)).float()
    with torch.no_grad():
        prefix.image.weight.copy_(solved[:-1].T)
        prefix.image.bias.copy_(solved[-1])
        for linear in (prefix.text, prefix.map):
            linear.weight.mul_(0.02)
            linear.bias.copy_(neutral)
        prefix.learned.copy_(neutral.expand(LEARNED, -1))


def loss_of(school: School, lessons: Sequence[Lesson], prefixes: Tensor) -> Tensor:
    """L_C of a batch: mean cross entropy over its answer tokens."""
    hidden = torch.cat(school.run(lessons, prefixes))
    targets = torch.tensor([t for le in lessons for t in le.answer])
    return F.cross_entropy(school.llama.logits(hidden), targets)


@torch.no_grad()
def named(school: School, prefix: Prefix, lessons: Sequence[Lesson]) -> list[str]:
    """The kind that the model would write for each lesson (grammar: only its own kinds)."""
    found = []
    for lesson in lessons:
        (hidden,) = school.run([lesson], prefixes_of(prefix, [lesson]))
        logits = school.llama.logits(hidden[lesson.category_at])
        found.append(max(lesson.choices, key=lambda c: float(logits[c[1]]))[0])
    return found


def accuracy(said: Sequence[str], lessons: Sequence[Lesson]) -> float | None:
    """Share of right kinds among the defective lessons, each kind weighing the same."""
    by_kind: dict[str, list[bool]] = {}
    for word, lesson in zip(said, lessons, strict=True):
        if lesson.example.found.defective:
            right = word == lesson.example.category
            by_kind.setdefault(lesson.example.category, []).append(right)
    return float(np.mean([np.mean(v) for v in by_kind.values()])) if by_kind else None


def train(school: School, prefix: Prefix, lessons: Sequence[Lesson], args: Any) -> list[float]:
    """Adam with warm-up and one cosine over the minutes given; returns the losses."""
    groups: dict[str, list[Lesson]] = {}
    for lesson in lessons:
        groups.setdefault(lesson.example.category, []).append(lesson)
    rng = np.random.default_rng(SEED)
    adam = torch.optim.Adam(prefix.parameters(), lr=args.lr)
    losses: list[float] = []
    start = time.monotonic()
    while (spent := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        rate = min(1.0, (len(losses) + 1) / 5) * 0.5 * (1 + np.cos(np.pi * spent))
        for group in adam.param_groups:
            group["lr"] = args.lr * float(rate)
        kinds = rng.choice(list(groups), args.batch)
        batch = [groups[k][rng.integers(len(groups[k]))] for k in kinds]
        adam.zero_grad()
        loss = loss_of(school, batch, prefixes_of(prefix, batch))
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        losses.append(float(loss))
        if len(losses) % 5 == 1:
            print(
                f"[{60 * args.minutes * spent:5.0f} s] step {len(losses)} L_C {loss:.4f}",
                flush=True,
            )
    return losses


def main() -> None:
    """Features, start values, training, validation, report."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_weights(args.weights)
    examples = [e for root in args.data for e in examples_of(root, model, args.limit)]
    print(f"{len(examples)} examples", flush=True)
    path = find_gguf(args.gguf)
    school = School(path)
    lessons = [school.lesson(e) for e in examples]
    training = [le for le in lessons if le.example.split == "train"]
    held = [le for le in lessons if le.example.split == "val"]
    prefix = model.prefix
    begin(prefix, school, training)
    report: dict[str, Any] = {
        "gguf": path.name, "train": len(training), "val": len(held),
        "template": accuracy([le.example.guess for le in held], held),
        "ridge": accuracy(named(school, prefix, held), held),
    }  # fmt: skip
    print(report, flush=True)
    started = {k: v.clone() for k, v in prefix.state_dict().items()}
    losses = train(school, prefix, training, args)
    report |= {"steps": len(losses), "first_loss": losses[:1], "last_loss": losses[-5:]}
    report["trained"] = accuracy(named(school, prefix, held), held)
    if (report["trained"] or 0) < (report["ridge"] or 0):
        prefix.load_state_dict(started)
    report["kept"] = "trained" if (report["trained"] or 0) >= (report["ridge"] or 0) else "ridge"
    report["better_than_template"] = (report[report["kept"]] or 0) > (report["template"] or 0)
    save_file(prefix.state_dict(), args.out / "prefix.safetensors")
    (args.out / "prefix.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m calibration.prefix", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gguf", default="auto")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="at most this many a category and split")
    return parser.parse_args()


if __name__ == "__main__":
    main()
