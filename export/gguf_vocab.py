"""The vocabulary of a Hugging Face Llama folder as GGUF fields.

Three kinds are met: SentencePiece (`tokenizer.model`, Vicuna), the same as `tokenizer.json` with
byte fallback, and byte-level BPE (`tokenizer.json`, SmolLM2, Llama 3). For the last, llama.cpp
must be told how text is cut before merging; that is read from the file, never guessed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from engines.errors import EngineError


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in id order with scores and types; `model` is "llama" or "gpt2"."""

    model: str
    pre: str
    tokens: Sequence[bytes]
    scores: Sequence[float]
    types: Sequence[int]


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Vocabulary of a folder, filled up to `size` (the embedding's rows). Raises EngineError."""
    if (folder / "tokenizer.model").exists():
        found = _sentencepiece(folder)
    elif (folder / "tokenizer.json").exists():
        found = _json(folder / "tokenizer.json")
    else:
        raise EngineError(f"{folder}: neither tokenizer.model nor tokenizer.json in it")
    if len(found.tokens) > size:
        raise EngineError(
            f"{folder}: the tokenizer has {len(found.tokens)} tokens, the model only {size}"
        )
    return _filled(found, size)


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, folder: Path) -> None:
    """Put tokens, merges, special ids and chat template into a GGUF being written."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types(list(vocabulary.types))
    special = gguf.SpecialVocab(folder, load_merges=vocabulary.model == "gpt2")
    template = folder / "chat_template.jinja"
    if special.chat_template is None and template.exists():
        special.chat_template = template.read_text(encoding="utf-8")
    special.add_to_gguf(writer, quiet=True)
    if vocabulary.model == "llama":
        writer.add_add_space_prefix(True)


def _sentencepiece(folder: Path) -> Vocabulary:
    try:
        rows = list(gguf.SentencePieceVocab(folder).all_tokens())
    except TypeError:  # gguf leaves the class as None when the package is absent
        raise EngineError(
            "sentencepiece is not installed; install the extra `export` to read tokenizer.model"
        ) from None
    tokens, scores, types = zip(*rows, strict=True)
    return Vocabulary("llama", "default", tokens, scores, [int(t) for t in types])


def _json(path: Path) -> Vocabulary:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    if model.get("type") != "BPE":
        raise EngineError(f"{path}: a tokenizer of type {model.get('type')} cannot be converted")
    added = {t["id"]: t for t in data.get("added_tokens", [])}
    by_id = {i: text for text, i in model["vocab"].items()} | {
        i: t["content"] for i, t in added.items()
    }
    if sorted(by_id) != list(range(len(by_id))):
        raise EngineError(f"{path}: the token ids have gaps, which no GGUF can say")
    tokens = [by_id[i].encode() for i in range(len(by_id))]
    fallback = bool(model.get("byte_fallback"))
    types = [_type(by_id[i], added.get(i), fallback) for i in range(len(by_id))]
    if fallback:
        # Merges in order of id: the rank that SentencePiece expresses as a falling score.
        return Vocabulary("llama", "default", tokens, [-float(i) for i in range(len(by_id))], types)
    return Vocabulary("gpt2", _pre(path, data), tokens, [0.0] * len(by_id), types)


def _type(text: str, added: dict[str, Any] | None, fallback: bool) -> int:
    if fallback and text == "<unk>":
        return int(gguf.TokenType.UNKNOWN)
    if added is not None:
        special = added.get("special", False)
        return int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    if fallback and len(text) == 6 and text.startswith("<0x"):
        return int(gguf.TokenType.BYTE)
    return int(gguf.TokenType.NORMAL)


def _pre(path: Path, data: dict[str, Any]) -> str:
    """llama.cpp's name for the way this tokenizer cuts text before merging."""
    first = data.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", [first])
    kinds = [step.get("type") for step in steps]
    patterns = " ".join(str(step.get("pattern", "")) for step in steps)
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and r"\p{N}{1,3}" in patterns:
        return "llama-bpe"
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    raise EngineError(f"{path}: a BPE tokenizer that cuts text by {kinds} is not known here")


def _filled(found: Vocabulary, size: int) -> Vocabulary:
    """Unused tokens up to the embedding's rows (checkpoints pad these to a round number)."""
    missing = range(len(found.tokens), size)
    return Vocabulary(
        found.model,
        found.pre,
        [*found.tokens, *(f"[PAD{i}]".encode() for i in missing)],
        [*found.scores, *(-1000.0 for _ in missing)],
        [*found.types, *(int(gguf.TokenType.UNUSED) for _ in missing)],
    )
