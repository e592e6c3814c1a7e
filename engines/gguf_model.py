"""llama.cpp, as little of it as the describer needs: several sequences, tokens or embeddings in.

One context holds all sequences in one KV store, so that a kept prompt is shared, not copied.
Low-level calls of llama-cpp-python, because its high-level class takes no embeddings.
"""

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.gguf_file import GgufHeader, check_gguf

BATCH = 512  # tokens in one call of llama_decode
_ABORTED = 2


class Late(Exception):
    """The deadline passed in the middle of a decode; never reaches a user."""


@dataclass(frozen=True)
class Span:
    """A piece of a sequence to be decoded: token ids, or embeddings f32 (n,H), from `start` on."""

    seq: int
    start: int
    ids: Sequence[int] = ()
    embeddings: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids) if self.embeddings is None else len(self.embeddings)


def llama_cpp() -> Any:
    """The module llama_cpp with its log silenced. Raises EngineError when it is not installed."""
    try:
        import llama_cpp as lib
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"llama-cpp-python does not load ({error}); install the extra `describe`"
        ) from None
    lib.llama_log_set(_quiet(lib), ctypes.c_void_p(0))
    return lib


_KEEP: list[Any] = []  # callbacks that C holds must not be collected


def _quiet(lib: Any) -> Any:
    if not _KEEP:
        _KEEP.append(lib.llama_log_callback(lambda level, text, data: None))
        lib.llama_backend_init()
    return _KEEP[0]


def gpu_layers(lib: Any, header: GgufHeader, cap_mb: int) -> int:
    """How many layers fit under a GPU memory cap (0 without a GPU build or cap).

    Weights are counted as file size / (layers + output), one share is kept for KV and buffers.
    """
    if cap_mb <= 0 or not lib.llama_supports_gpu_offload():
        return 0
    share = header.needed_bytes / (header.layers + 1)
    return max(0, min(header.layers + 1, int(cap_mb * 2**20 / share) - 1))


class LlamaModel:
    """A loaded GGUF and one context of `sequences` sequences sharing `n_ctx` positions.

    Raises EngineError when the file is unfit or llama.cpp refuses it. Not thread-safe.
    """

    def __init__(
        self, path: Path, *, n_ctx: int, sequences: int, threads: int = 1, gpu_memory_mb: int = 0
    ) -> None:
        self.header = check_gguf(path)
        self._lib = llama_cpp()
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers(self._lib, self.header, gpu_memory_mb)
        self.gpu_layers = int(params.n_gpu_layers)
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise EngineError(f"{path}: llama.cpp cannot load this GGUF; convert or copy it again")
        self.vocab = self._lib.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._lib.llama_vocab_n_tokens(self.vocab))
        self.hidden = int(self._lib.llama_model_n_embd(self._model))
        self._shape = (n_ctx, sequences, threads)
        self._deadline = float("inf")
        self._pieces: dict[int, bytes] = {}
        self._context: Any = None
        self.renew()

    def renew(self) -> None:
        """A fresh context (recycling): KV state of every sequence is gone."""
        n_ctx, sequences, threads = self._shape
        self._free_context()
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = n_ctx, sequences, True
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self._abort = self._lib.ggml_abort_callback(lambda data: time.monotonic() > self._deadline)
        params.abort_callback = self._abort
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise EngineError(
                f"{self.header.path}: not enough memory for a context of {n_ctx} tokens"
            )
        self._memory = self._lib.llama_get_memory(self._context)
        self._batches = (
            self._lib.llama_batch_init(BATCH, 0, 1),
            self._lib.llama_batch_init(BATCH, self.hidden, 1),
        )

    def tokenize(self, text: str, *, bos: bool = False) -> list[int]:
        """Token ids; special tokens in the text count as such, `bos` adds what the model asks."""
        data = text.encode()
        room = len(data) + 16
        ids = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self.vocab, data, len(data), ids, room, bos, True)
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """Bytes of one token (special tokens are empty)."""
        if token not in self._pieces:
            buffer = ctypes.create_string_buffer(256)
            size = self._lib.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
            self._pieces[token] = buffer.raw[: max(0, size)]
        return self._pieces[token]

    def ends(self, token: int) -> bool:
        """True for an end-of-generation token."""
        return bool(self._lib.llama_vocab_is_eog(self.vocab, token))

    def chat_text(self, turns: Sequence[tuple[str, str]]) -> str | None:
        """(role, text) turns in the model's own template, ready for the answer; None without one.

        llama.cpp's list of known templates is used, not a Jinja engine.
        """
        template = self._lib.llama_model_chat_template(self._model, None)
        chat = (self._lib.llama_chat_message * len(turns))()
        for message, (role, text) in zip(chat, turns, strict=True):
            message.role, message.content = role.encode(), text.encode()
        size = 1024 + 2 * sum(len(t.encode()) for _, t in turns)
        buffer = ctypes.create_string_buffer(size)
        used = self._lib.llama_chat_apply_template(template, chat, len(turns), True, buffer, size)
        return buffer.raw[:used].decode() if template and 0 < used <= size else None

    def fork(self, source: int, target: int) -> None:
        """Let sequence `target` begin as `source` stands (shared cells, nothing is copied)."""
        self._lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def forget(self, seq: int) -> None:
        """Remove a sequence from the KV store."""
        self._lib.llama_memory_seq_rm(self._memory, seq, -1, -1)

    def length(self, seq: int) -> int:
        """Positions that a sequence holds."""
        return int(self._lib.llama_memory_seq_pos_max(self._memory, seq)) + 1

    def decode(
        self, spans: Sequence[Span], deadline: float = float("inf")
    ) -> list[NDArray[np.float32]]:
        """Decode pieces of several sequences, all ids or all embeddings; logits (V,) after each.

        Raises Late when the monotonic `deadline` passes within, EngineError when llama.cpp fails.
        """
        as_embeddings = spans[0].embeddings is not None
        self._deadline = deadline
        rows = [(i, k) for i, span in enumerate(spans) for k in range(len(span))]
        answers: dict[int, NDArray[np.float32]] = {}
        for at in range(0, len(rows), BATCH):
            part = rows[at : at + BATCH]
            self._decode_rows(spans, part, as_embeddings)
            for row, (i, k) in enumerate(part):
                if k == len(spans[i]) - 1:
                    answers[i] = self._logits(row)
        return [answers[i] for i in range(len(spans))]

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits (n,V) after every token of one text, in sequence 0, which must be empty."""
        logits = []
        for at in range(0, len(ids), BATCH):
            rows = [(0, k) for k in range(at, min(at + BATCH, len(ids)))]
            self._decode_rows([Span(0, 0, ids)], rows, False, every=True)
            logits += [self._logits(row) for row in range(len(rows))]
        return np.stack(logits)

    def _decode_rows(
        self,
        spans: Sequence[Span],
        rows: list[tuple[int, int]],
        as_embeddings: bool,
        *,
        every: bool = False,
    ) -> None:
        batch = self._batches[as_embeddings]
        batch.n_tokens = len(rows)
        if as_embeddings:
            values = np.stack([np.asarray(spans[i].embeddings, np.float32)[k] for i, k in rows])
            ctypes.memmove(batch.embd, values.ctypes.data, values.nbytes)
        for row, (i, k) in enumerate(rows):
            if not as_embeddings:
                batch.token[row] = spans[i].ids[k]
            batch.pos[row] = spans[i].start + k
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = spans[i].seq
            batch.logits[row] = every or k == len(spans[i]) - 1
        code = self._lib.llama_decode(self._context, batch)
        if code == _ABORTED:
            raise Late
        if code:
            raise EngineError(f"{self.header.path}: llama.cpp could not decode (code {code})")

    def _logits(self, row: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy()

    def _free_context(self) -> None:
        if self._context:
            for batch in self._batches:
                self._lib.llama_batch_free(batch)
            self._lib.llama_free(self._context)
            self._context = None

    def close(self) -> None:
        """Free context and weights; safe to call twice."""
        self._free_context()
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None
