"""Greedy decoding under a GBNF grammar: the most likely token among those the grammar allows."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.gguf_model import LlamaModel, llama_cpp

# The likeliest token is nearly always allowed; only then are more looked at.
_MORE = 256


class Grammar:
    """State of one grammar for one answer. Raises EngineError when the GBNF text is wrong."""

    def __init__(self, model: LlamaModel, gbnf: str) -> None:
        self._lib = llama_cpp()
        self._sampler: Any = self._lib.llama_sampler_init_grammar(
            model.vocab, gbnf.encode(), b"root"
        )
        if not self._sampler:
            raise EngineError("the describer's grammar is not valid GBNF; this is a bug")

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The allowed token with the highest logit; accepted into the state."""
        best = int(logits.argmax())
        token = best if self._allowed(np.array([best])).size else self._pick_among(logits)
        self._lib.llama_sampler_accept(self._sampler, token)
        return token

    def take(self, token: int) -> bool:
        """Accept a given token if the grammar allows it."""
        if not self._allowed(np.array([token])).size:
            return False
        self._lib.llama_sampler_accept(self._sampler, token)
        return True

    def _pick_among(self, logits: NDArray[np.float32]) -> int:
        top = np.argpartition(logits, -_MORE)[-_MORE:] if len(logits) > _MORE else None
        for candidates in (top, np.arange(len(logits))):
            if candidates is not None and (allowed := self._allowed(candidates)).size:
                return int(allowed[logits[allowed].argmax()])
        raise EngineError("the describer's grammar allows no token; this is a bug")

    def _allowed(self, tokens: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of `tokens` that may come next."""
        data = (self._lib.llama_token_data * len(tokens))()
        table = np.frombuffer(data, np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")]))
        table["id"] = tokens
        array = self._lib.llama_token_data_array(
            data=ctypes.cast(data, self._lib.llama_token_data_p),
            size=len(tokens),
            selected=-1,
            sorted=False,
        )
        self._lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        # The sampler marks what is forbidden with minus infinity.
        kept = table["id"][np.isfinite(table["logit"])]
        return kept.astype(np.intp)

    def close(self) -> None:
        """Free the sampler; safe to call twice."""
        if self._sampler:
            self._lib.llama_sampler_free(self._sampler)
            self._sampler = None
