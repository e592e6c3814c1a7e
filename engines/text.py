"""Text anchors at enrolment, without torch: prompt ensemble -> text.onnx -> (2,E)."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle import Bundle
from engines.errors import EngineError
from engines.session import Session

F32 = NDArray[np.float32]
CONTEXT = 77
_BATCH = 32


def prompt_hash(prompts: dict[str, Any]) -> str:
    """sha256 of the prompt ensemble (states, templates, order), without its own `hash` field."""
    body = {k: v for k, v in prompts.items() if k != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def tokenise(texts: Sequence[str]) -> NDArray[np.int64]:
    """CLIP token ids (P,T), T = longest text, zero padded, at most 77."""
    from instant_clip_tokenizer import Tokenizer

    ids = np.asarray(Tokenizer().tokenize_batch(list(texts), context_length=CONTEXT), np.int64)
    longest = int((ids != 0).sum(1).max())
    return np.ascontiguousarray(ids[:, :longest])


def unit(x: F32) -> F32:
    """Rows of unit length."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def fill(state: str, noun: str) -> str:
    """ "{} with a crack" or plain "crack" -> "magnetic tile with a crack"."""
    return state.replace("{}", noun) if "{}" in state else f"{noun} with {state}"


class TextEncoder:
    """Turns a recipe's noun and phrases into the two anchors."""

    def __init__(self, session: Session, prompts: dict[str, Any]) -> None:
        self._session, self._prompts = session, prompts

    @classmethod
    def open(cls, bundle: Bundle) -> "TextEncoder":
        """Load text.onnx and prompts.json. EngineError when the prompts are not the bundle's."""
        prompts = json.loads(bundle.file("prompts.json").read_text())
        if prompt_hash(prompts) != bundle.manifest.prompts:
            raise EngineError(f"bundle {bundle.path}: prompts.json is not what the manifest names")
        return cls(Session(bundle.file("text.onnx")), prompts)

    def embed(self, texts: Sequence[str]) -> F32:
        """(P,E), not unit length."""
        parts = [texts[i : i + _BATCH] for i in range(0, len(texts), _BATCH)]
        return np.concatenate([self._session.run({"ids": tokenise(p)})["text"] for p in parts])

    def prompts(self, noun: str, phrases: Sequence[str] = ()) -> tuple[list[str], list[str]]:
        """All normal and all abnormal texts; `phrases` ("{} with a crack") join the abnormal."""
        noun = noun.strip() or "object"
        states = (self._prompts["normal"], [*self._prompts["abnormal"], *phrases])
        templates = self._prompts["templates"]
        filled = [[fill(state, noun) for state in side] for side in states]
        both = [[t.replace("{}", s) for s in side for t in templates] for side in filled]
        return both[0], both[1]

    def anchors(self, noun: str, phrases: Sequence[str] = ()) -> F32:
        """f32 (2,E), [normal, abnormal]: unit each, mean over the ensemble, unit."""
        sides = self.prompts(noun, phrases)
        return np.stack([unit(unit(self.embed(side)).mean(0)) for side in sides])
