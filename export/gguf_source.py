"""A Hugging Face Llama checkpoint on disk, one tensor at a time.

Reads `config.json` and either safetensors or `.bin` shards. Only names and shapes are looked at
first; a tensor's numbers are read when asked for, so that a 7B model never stands in memory.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from engines.errors import EngineError

_HUB_FILES = ("*.json", "*.safetensors", "*.bin", "tokenizer.model")


def find_checkpoint(source: str) -> Path:
    """Folder of a checkpoint given as a path or as `owner/name` on the Hugging Face hub.

    Raises EngineError when it is neither, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise EngineError(f"{source}: no such file or folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # the hub's errors and those of its transport have no common base
        reason = str(error).strip().split("\n", 1)[0][:160]
        raise EngineError(f"{source}: not a local path, and the hub gave: {reason}") from None


class Checkpoint:
    """Tensors of one folder by name. Raises EngineError for a folder that is not Llama."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = self._config()
        self._where = self._index()

    def _config(self) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        except OSError:
            raise EngineError(f"{self.folder}: no config.json, not a Hugging Face model") from None
        except ValueError:
            raise EngineError(f"{self.folder}/config.json: not valid JSON") from None
        kinds = config.get("architectures") or [config.get("model_type", "unknown")]
        if config.get("model_type") != "llama":
            raise EngineError(
                f"{self.folder}: the architecture {kinds[0]} cannot be converted; "
                "the describer needs a Llama-architecture model (Vicuna, SmolLM2 ...)"
            )
        return config

    def _index(self) -> dict[str, Path]:
        for stem in ("model.safetensors", "pytorch_model.bin"):
            listed = self.folder / f"{stem}.index.json"
            if listed.exists():
                names = json.loads(listed.read_text())["weight_map"]
                return {name: self._shard(file) for name, file in names.items()}
            if (self.folder / stem).exists():
                file = self.folder / stem
                return dict.fromkeys(_names(file), file)
        raise EngineError(f"{self.folder}: no model.safetensors and no pytorch_model.bin in it")

    def _shard(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise EngineError(f"{path}: this shard of the checkpoint is missing")
        return path

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor without reading it."""
        file = self._file(name)
        if file.suffix == ".safetensors":
            return tuple(_open(file).get_slice(name).get_shape())
        return tuple(_load(file)[name].shape)

    def load(self, name: str) -> NDArray[np.float32]:
        """A tensor as f32."""
        file = self._file(name)
        if file.suffix == ".safetensors":
            values = _open(file).get_tensor(name)
        else:
            values = _load(file)[name]
        return np.asarray(values.to(torch.float32).numpy())

    def _file(self, name: str) -> Path:
        if name not in self._where:
            raise EngineError(f"{self.folder}: the checkpoint has no tensor {name}")
        return self._where[name]

    def identity(self) -> str:
        """Sha256 hex over names, sizes and times of the shards: changes when the weights do."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for file in sorted(set(self._where.values())):
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def _names(file: Path) -> list[str]:
    try:
        return list(_open(file).keys() if file.suffix == ".safetensors" else _load(file))
    except Exception as error:  # safetensors and pickle raise their own kinds
        raise EngineError(f"{file}: the weights cannot be read ({str(error)[:120]})") from None


@lru_cache(maxsize=2)
def _open(file: Path) -> Any:
    return safe_open(file, framework="pt")


@lru_cache(maxsize=2)
def _load(file: Path) -> dict[str, Any]:
    # mmap: the shard is paged in tensor by tensor; weights_only: no code from the file is run.
    weights: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return weights
