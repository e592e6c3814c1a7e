"""The lessons of stage (d): what the frozen model reads, and the few words it must then write.

Only the embeddings and what stands after them carry gradients, about forty tokens of some six
hundred: the fixed prompt is read once, a part's findings once a lesson, and the answer ends with
the kind of the defect. The fields behind it are copied from the findings, whatever the prefix is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.prefix_data import Example
from calibration.prefix_llama import Context, FrozenLlama
from engines.errors import EngineError
from engines.gguf_model import LlamaModel
from engines.gguf_prefix import LENGTH
from engines.gguf_prompt import (
    AFTER_CATEGORY,
    CATEGORY,
    END_IMAGE,
    IMAGE_TOKENS,
    answer_text,
    own_frame,
    own_turns,
)
from engines.template import ANOMALY

# Kinds that stand beside the true one, so that the words are read and not their places learned.
OTHERS = (
    "scratch", "dent", "stain", "hole", "chip", "rust", "bubble", "contamination", "cut",
    "missing part", "crack", "break", "blowhole", "pitting", "fray", "uneven",
)  # fmt: skip
UNLISTED = 0.1  # how often the true kind is not offered and "anomaly" is right


@dataclass(eq=False)
class Lesson:
    """A defective part as token ids: before the image, answer up to its kind, kinds on offer."""

    example: Example
    category: str
    before: list[int]
    answer: list[int]
    at: int  # index in `answer` of the first token of the kind
    choices: tuple[tuple[str, int], ...]  # kind and its first token, as the answer writes it
    read: Tensor | None = field(default=None, repr=False)  # keys and values of `before`, FP16


class School:
    """Frozen model, tokenizer and kept prompt, shared by training and validation."""

    def __init__(self, gguf_path: Path) -> None:
        self.tokenizer = LlamaModel(gguf_path, n_ctx=64, sequences=1)
        self.llama = FrozenLlama(gguf_path)
        rendered = self.tokenizer.chat_text(own_turns(image=True))
        if rendered is None:
            raise EngineError(
                f"{gguf_path}: this model has no chat template llama.cpp knows: give another --gguf"
            )
        self.frame = own_frame(rendered)
        ids = self.tokenizer.tokenize
        self.kept: Context = self.llama.keep([ids(self.frame.head, bos=True)])
        self._between = self.llama.embed(ids(END_IMAGE))
        self._tail = self.llama.embed(ids(self.frame.tail))

    def lesson(self, example: Example, rng: np.random.Generator | None = None) -> Lesson:
        """The lesson of a part; with `rng` among other kinds in any order, else as recipes say."""
        found = replace(example.found, kinds=_offer(example, rng))
        category = example.category if example.category in found.kinds else ANOMALY
        ids = self.tokenizer.tokenize
        answer = answer_text(found, category)
        cut = answer.index(CATEGORY) + len(CATEGORY)
        start, end = ids(answer[:cut]), ids(answer[cut : answer.index(AFTER_CATEGORY) + 1])
        words = dict.fromkeys((*found.kinds, ANOMALY))
        return Lesson(
            example,
            category,
            ids(self.frame.before_image(found)),
            start + end,
            len(start),
            tuple((word, ids(word + AFTER_CATEGORY)[0]) for word in words),
        )

    def word(self, text: str) -> Tensor:
        """Embedding (H,) of the first token of a word as it stands in a sentence."""
        return self.llama.embed(self.tokenizer.tokenize(f" {text}")[:1])[0]

    def run(self, lessons: Sequence[Lesson], prefixes: Tensor) -> list[Tensor]:
        """Hidden states (n,H) that predict the answer tokens, for each lesson."""
        rows = [self._inputs(le, p) for le, p in zip(lessons, prefixes, strict=True)]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = self.llama.hidden(padded, self._context(lessons))
        return [
            hidden[i, len(row) - len(le.answer) : len(row)]
            for i, (row, le) in enumerate(zip(rows, lessons, strict=True))
        ]

    def loss(self, lessons: Sequence[Lesson], prefixes: Tensor) -> Tensor:
        """L_C of a batch: mean cross entropy over the tokens of the kinds and what ends them."""
        hidden = self.run(lessons, prefixes)
        wanted = torch.cat([h[le.at :] for h, le in zip(hidden, lessons, strict=True)])
        targets = torch.tensor([t for le in lessons for t in le.answer[le.at :]])
        return F.cross_entropy(self.llama.logits(wanted), targets)

    @torch.no_grad()
    def named(self, prefix: nn.Module, lessons: Sequence[Lesson], size: int = 8) -> list[str]:
        """The kind that the model would write for each lesson (grammar: only what is offered)."""
        found = []
        for at in range(0, len(lessons), size):
            batch = lessons[at : at + size]
            for hidden, le in zip(self.run(batch, prefixes_of(prefix, batch)), batch, strict=True):
                logits = self.llama.logits(hidden[le.at])
                found.append(max(le.choices, key=lambda c: float(logits[c[1]]))[0])
        return found

    def _inputs(self, lesson: Lesson, prefix: Tensor) -> Tensor:
        """Input embeddings (T,H) from the image on, without the last token; prefix (21,H)."""
        answer = self.llama.embed(lesson.answer[:-1])
        image, rest = prefix[:IMAGE_TOKENS], prefix[IMAGE_TOKENS:]
        return torch.cat([image, self._between, rest, self._tail, answer])

    def _context(self, lessons: Sequence[Lesson]) -> Context:
        """Kept prompt and findings of each lesson; findings are read once and kept as FP16."""
        new = [le for le in lessons if le.read is None]
        if new:
            own = self.llama.keep([le.before for le in new], self.kept)
            past = self.kept.seen.shape[1]
            both = torch.stack([torch.stack([k, v]) for k, v in own.layers])[..., past:, :]
            for i, le in enumerate(new):
                le.read = both[:, :, i, :, : len(le.before)].half().clone()
        return self._gather(lessons)

    def _gather(self, lessons: Sequence[Lesson]) -> Context:
        lengths = torch.tensor([len(le.before) for le in lessons])
        wide = int(lengths.max())
        read = [(le.read, wide - len(le.before)) for le in lessons]
        rows = [F.pad(r, (0, 0, 0, short)) for r, short in read if r is not None]
        both = torch.stack(rows, 2).float()  # (layers,2,B,heads,T,d)
        kept = self.kept.expand(len(lessons))
        layers = [
            (torch.cat([k, own[0]], 2), torch.cat([v, own[1]], 2))
            for (k, v), own in zip(kept.layers, both, strict=True)
        ]
        seen = torch.cat([kept.seen, torch.arange(wide) < lengths[:, None]], 1)
        return Context(layers, seen, kept.start + lengths)


def _offer(example: Example, rng: np.random.Generator | None) -> tuple[str, ...]:
    """Kinds on offer: the recipe's, or (training) some of them, others beside, in any order."""
    listed = example.found.kinds
    if rng is None:
        return listed
    pool = [k for k in dict.fromkeys((*listed, *OTHERS)) if k != example.category]
    beside = list(rng.choice(pool, rng.integers(2, 6), replace=False))
    true = [] if rng.random() < UNLISTED else [example.category]
    return tuple(str(k) for k in rng.permutation([*beside, *true]))


def prefixes_of(prefix: nn.Module, lessons: Sequence[Lesson]) -> Tensor:
    """Embeddings (B,21,H) of a batch."""
    cls, anchors, f_out = (
        torch.from_numpy(np.stack([getattr(le.example, n) for le in lessons]).astype(np.float32))
        for n in ("cls", "anchors", "f_out")
    )
    out: Tensor = prefix(cls, anchors, f_out.flatten(1, 2))
    assert out.shape[1] == LENGTH
    return out
