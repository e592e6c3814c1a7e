"""The describer that speaks through llama.cpp: kept prompt, prefix embeddings, grammar, deadline.

Sequence 0 of the context holds the prompt that is the same for every part; each part is a fork of
it and is removed when it is said. What the model cannot say in time or form, the template says.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.describer import MAX_TOKENS, DescribeRequest, DescriberSettings, Description
from engines.errors import EngineError
from engines.facts import Area, Facts
from engines.gguf_file import find_gguf
from engines.gguf_grammar import Grammar
from engines.gguf_model import Late, LlamaModel, Span
from engines.gguf_prefix import PrefixEncoder, fits, open_prefix
from engines.gguf_prompt import (
    AFTER_CATEGORY,
    CATEGORY,
    END_IMAGE,
    IMAGE_TOKENS,
    SENTENCE,
    STOPS,
    Findings,
    Frame,
    fields_grammar,
    findings,
    forced,
    one_of,
    own_frame,
    own_turns,
    paper_frame,
    parse,
    wordings,
)
from engines.template import ANOMALY, describe_facts

KEPT = 0  # the sequence that holds the fixed prompt
# Room in the context for one part beside the kept prompt: prefix, findings, answer, a dialogue.
ROOM = 1024

Piece = list[int] | NDArray[np.float32]


@dataclass
class _Speech:
    """One part being described in its own sequence."""

    seq: int
    request: DescribeRequest
    facts: Facts
    found: Findings
    grammar: Grammar | None
    strange: bool = False  # unlike all that kinds were learned from: called an anomaly
    started: float = 0.0
    tokens: list[int] = field(default_factory=list)
    fed: int = 0  # how many of the tokens the model has seen
    text: bytes = b""
    endings: tuple[bytes, ...] = ()  # wordings of the whole answer, once its fields are said
    done: bool = False


class LlmDescriber:
    """Describer on a GGUF. Not thread-safe; lives in the describer process."""

    def __init__(
        self, model: LlamaModel, settings: DescriberSettings, prefix: PrefixEncoder | None
    ) -> None:
        self.name = model.header.name
        self.reason: str | None = None
        self.prefix_note = ""
        self._model = model
        self._settings = settings
        self._prefix = prefix
        self._said = 0
        self._stale = False  # the context is to be made anew before the next part
        self.frame = self._frame(())
        self._keep()

    @classmethod
    def open(cls, settings: DescriberSettings) -> "LlmDescriber":
        """Load model and prefix, keep the prompt, warm up. Raises EngineError with one sentence."""
        n_ctx = ROOM * (1 + settings.batch)
        model = LlamaModel(
            find_gguf(settings.model),
            n_ctx=n_ctx,
            sequences=1 + settings.batch,
            threads=settings.threads,
            gpu_memory_mb=settings.gpu_memory_mb,
        )
        try:
            prefix, note = open_prefix(settings.prefix, model.hidden, model.header.name)
            describer = cls(model, settings, prefix)
        except EngineError:
            model.close()
            raise
        describer.prefix_note = note
        describer.describe(_warm_up_request())
        return describer

    def describe(self, request: DescribeRequest, deadline_s: float | None = None) -> Description:
        """Description of one part; the template's, with a note, when the model fails or is late."""
        return self.describe_many([request], deadline_s)[0]

    def describe_many(
        self, requests: Sequence[DescribeRequest], deadline_s: float | None = None
    ) -> list[Description]:
        """Descriptions in order, several at once in one context, all within `deadline_s`."""
        seconds = self._settings.deadline_s if deadline_s is None else deadline_s
        deadline = time.monotonic() + seconds
        size = self._settings.batch
        groups = [requests[i : i + size] for i in range(0, len(requests), size)]
        return [d for group in groups for d in self._describe_group(group, deadline)]

    def answer(
        self,
        request: DescribeRequest,
        description: Description,
        question: str,
        earlier: Sequence[tuple[str, str]] = (),
        deadline_s: float = 60.0,
    ) -> str:
        """Answer to a further question about a part, after its description (multi-turn).

        `earlier` are (question, answer) pairs of this dialogue. Greedy, at most 128 tokens.
        Raises EngineError when the model is late or the dialogue does not fit its context.
        """
        said = description.model_dump_json(include={"category", "location", "sentence"})
        turns = [("assistant", said)]
        # The part is named in every question: else the model answers about the worked examples.
        about = f"About this {request.noun}: "
        for asked, answered in earlier:
            turns += [("user", about + asked), ("assistant", answered)]
        frame = self._frame([*turns, ("user", about + question)])
        if self._stale:
            self._recycle()
        speech = self._open(1, request, free=True)
        if sum(len(p) for p in self._pieces(speech, frame)) > ROOM - MAX_TOKENS:
            raise EngineError("this dialogue is longer than the describer's context; start anew")
        try:
            self._speak([speech], frame, time.monotonic() + deadline_s)
        except Late:
            raise EngineError(f"{self.name} did not answer within {deadline_s:g} s") from None
        finally:
            self._model.forget(speech.seq)
        return speech.text.decode("utf-8", "ignore").strip()

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    # --- prompt -----------------------------------------------------------------------------

    def _frame(self, dialogue: Sequence[tuple[str, str]]) -> Frame:
        image = self._prefix is not None
        if self._settings.format == "own":
            rendered = self._model.chat_text(own_turns(dialogue, image=image))
            if rendered is not None:
                return own_frame(rendered)
        return paper_frame(dialogue, image=image)

    def _keep(self) -> None:
        """Decode the fixed part of the prompt once, into the kept sequence."""
        self._kept = self._model.tokenize(self.frame.head, bos=True)
        self._model.decode([Span(KEPT, 0, self._kept)])

    def _pieces(self, speech: _Speech, frame: Frame) -> list[Piece]:
        """What follows the kept prompt: text and embeddings in turn, as token ids or f32 (n,H)."""
        if self._prefix is None or not fits(speech.request):
            return [self._model.tokenize(frame.without_prefix(speech.found))]
        embeddings = self._prefix([speech.request])[0]
        pieces: list[Piece] = [
            self._model.tokenize(frame.before_image(speech.found)),
            embeddings[:IMAGE_TOKENS],
            self._model.tokenize(END_IMAGE),
            embeddings[IMAGE_TOKENS:],
            self._model.tokenize(frame.after_prefix(speech.found)),
        ]
        return [piece for piece in pieces if len(piece)]

    # --- speaking ---------------------------------------------------------------------------

    def _describe_group(
        self, requests: Sequence[DescribeRequest], deadline: float
    ) -> Iterator[Description]:
        late = f"{self.name} was late; the template speaks"
        if time.monotonic() >= deadline:  # they waited too long: nobody waits for the model too
            yield from (describe_facts(r, r.facts(), note=late) for r in requests)
            return
        if self._stale:
            self._recycle()
        speeches = [self._open(1 + i, r) for i, r in enumerate(requests)]
        note = None
        try:
            self._speak(speeches, self.frame, deadline)
        except Late:
            note = late
        except EngineError as error:
            note = str(error)
        finally:
            took = self._clear(speeches)
        self._said += len(requests)
        # The next part waits for the fresh context, not those that are said: reading the fixed
        # prompt again takes seconds on a busy machine.
        self._stale |= self._said >= self._settings.recycle_after or note is not None
        yield from (self._description(s, note, took) for s in speeches)

    def _open(self, seq: int, request: DescribeRequest, *, free: bool = False) -> _Speech:
        facts = request.facts()
        chooses = self._prefix is not None and fits(request)
        found = findings(request, facts, model_chooses=chooses)
        rules = None if free else Grammar(self._model, fields_grammar(found.kinds, found.count))
        return _Speech(
            seq, request, facts, found, rules, self._strange(found, request), time.monotonic()
        )

    def _strange(self, found: Findings, request: DescribeRequest) -> bool:
        known = self._prefix.known if self._prefix else None
        if known is None or not found.defective or found.category is not None:
            return False
        return request.cls is not None and not known.holds(request.cls)

    def _speak(self, speeches: Sequence[_Speech], frame: Frame, deadline: float) -> None:
        """Prefill and generate all speeches side by side. Raises Late, EngineError."""
        logits = self._prefill(speeches, frame, deadline)
        active = list(speeches)
        while active:
            for speech, row in zip(active, logits, strict=True):
                self._take(speech, row)
            active = [s for s in active if not s.done]
            if active:
                spans = [Span(s.seq, self._model.length(s.seq), s.tokens[s.fed :]) for s in active]
                logits = self._model.decode(spans, deadline)
                for speech in active:
                    speech.fed = len(speech.tokens)

    def _prefill(
        self, speeches: Sequence[_Speech], frame: Frame, deadline: float
    ) -> list[NDArray[np.float32]]:
        """Fork the kept prompt and decode each part's pieces; logits of every last position."""
        logits: dict[int, NDArray[np.float32]] = {}
        pieces = {s.seq: self._pieces(s, frame) for s in speeches}
        for speech in speeches:
            self._model.fork(KEPT, speech.seq)
        for i in range(max(len(p) for p in pieces.values())):
            now = [(seq, p[i]) for seq, p in pieces.items() if i < len(p)]
            for vectors in (True, False):  # a batch of llama.cpp holds one of the two kinds
                spans = [self._span(q, p) for q, p in now if isinstance(p, np.ndarray) == vectors]
                if spans:
                    rows = self._model.decode(spans, deadline)
                    logits |= {s.seq: row for s, row in zip(spans, rows, strict=True)}
        return [logits[s.seq] for s in speeches]

    def _span(self, seq: int, piece: Piece) -> Span:
        start = self._model.length(seq)
        if isinstance(piece, np.ndarray):
            return Span(seq, start, embeddings=piece)
        return Span(seq, start, piece)

    def _take(self, speech: _Speech, logits: NDArray[np.float32]) -> None:
        """Choose the next token of one speech, add what must follow, see whether it ends there."""
        if speech.grammar is None:
            token = int(logits.argmax())
            speech.tokens.append(token)
            speech.text += self._model.piece(token)
            speech.done = self._model.ends(token) or len(speech.tokens) >= MAX_TOKENS
            self._stop_early(speech)
            return
        if speech.strange and speech.text.endswith(CATEGORY.encode()):
            logits = self._only(ANOMALY, logits)
        self._add(speech, speech.grammar.pick(logits))
        for token in self._model.tokenize(self._forced(speech)):
            if speech.done or not speech.grammar.take(token):
                break  # a tokenizer may cut the rest in another way: then the model goes on
            self._add(speech, token)

    def _only(self, word: str, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (V,) that leave nothing but the first token of a kind."""
        alone = np.full_like(logits, -np.inf)
        alone[self._model.tokenize(word + AFTER_CATEGORY)[0]] = 0
        return alone

    def _add(self, speech: _Speech, token: int) -> None:
        """Append a token that the grammar has accepted; at the sentence the grammar changes."""
        speech.tokens.append(token)
        speech.text += self._model.piece(token)
        if not speech.endings and speech.text.endswith(SENTENCE.encode()):
            endings = wordings(speech.text.decode(), speech.found.noun)
            speech.endings = tuple(speech.text + e.encode() for e in endings)
            if speech.grammar:
                speech.grammar.close()
            speech.grammar = Grammar(self._model, one_of(endings))
        ended = speech.text in speech.endings or self._model.ends(token)
        speech.done = ended or len(speech.tokens) >= MAX_TOKENS

    @staticmethod
    def _forced(speech: _Speech) -> str:
        """The text that must follow, so that the model need not be asked for every word of it."""
        if not speech.endings:
            return forced(speech.text.decode("utf-8", "ignore"))
        left = [e for e in speech.endings if e.startswith(speech.text)]
        return left[0][len(speech.text) :].decode() if len(left) == 1 else ""

    @staticmethod
    def _stop_early(speech: _Speech) -> None:
        """Cut free text at the first stop string."""
        text = speech.text.lstrip()
        found = [at for stop in STOPS if (at := text.find(stop.encode())) >= 0]
        if found:
            speech.text, speech.done = text[: min(found)], True

    def _clear(self, speeches: Sequence[_Speech]) -> float:
        """Remove the parts from the context and see that nothing of them is left; seconds taken."""
        took = time.monotonic() - speeches[0].started
        for speech in speeches:
            self._model.forget(speech.seq)
            if speech.grammar:
                speech.grammar.close()
        left = [s.seq for s in speeches if self._model.length(s.seq)]
        self._stale |= bool(left) or self._model.length(KEPT) != len(self._kept)
        return took

    def _description(self, speech: _Speech, note: str | None, took: float) -> Description:
        request = speech.request
        figures = {"ms": took * 1e3, "tokens": len(speech.tokens)}
        if note is None:
            try:
                said = parse(speech.text.decode(), request, self.name)
                rate = len(speech.tokens) / max(took, 1e-9)
                return said.model_copy(update={**figures, "tokens_per_s": rate})
            except (ValueError, KeyError):
                note = f"{self.name} gave no whole answer within {MAX_TOKENS} tokens"
        return describe_facts(request, speech.facts, note=note, ms=took * 1e3)

    def _recycle(self) -> None:
        """A fresh context: no state of earlier parts can leak or grow."""
        self._model.renew()
        self._keep()
        self._said, self._stale = 0, False


def _warm_up_request() -> DescribeRequest:
    heat = np.zeros((24, 24), np.float32)
    heat[4:8, 4:8] = 1
    return DescribeRequest(
        part_id="warm-up", noun="object", verdict="NG", score=1.0, threshold=0.5, map=heat,
        area=Area(0, 0, 24, 24),
    )  # fmt: skip
