"""OpenCLIP checkpoints for the `paper` preset: found, checked, loaded strictly by their own names.

A `.pt` file carries the first eight hex digits of its sha256 in its name; a `.safetensors` file is
checked against a sha256 that is given. This matters: in open_clip 3.3.0 the tag `laion400m_e32`
resolves to the hub repository of epoch 31, and both epochs load without complaint.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from engines.bundle import sha256
from engines.errors import EngineError
from export.model.spgdd import SpgddGpt

EPOCHS = {"699c4b84": "e32", "8fb26589": "e31"}
"""First eight hex digits of the published `.pt` files of ViT-B-16-plus-240, laion400m."""
WANTED = "699c4b84"
_IN_NAME = re.compile(r"-([0-9a-f]{8})\.(?:pt|bin|pth)$")


def locate(ref: str) -> Path:
    """A local path, or `hf://owner/repo/file` fetched through huggingface_hub's cache.

    Raises EngineError when it is not there.
    """
    if not ref.startswith("hf://"):
        path = Path(ref)
        if not path.is_file():
            raise EngineError(f"no checkpoint at {path}: give a .pt, .safetensors or hf:// file")
        return path
    parts = ref.removeprefix("hf://").split("/", 2)
    if len(parts) != 3 or not all(parts):
        raise EngineError(f"'{ref}' names no file: write hf://owner/repository/file")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise EngineError("hf:// needs the package huggingface-hub (extra 'export')") from error
    try:
        return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2]))
    except Exception as error:
        first = str(error).strip().splitlines()[0][:160]
        raise EngineError(f"{ref} could not be fetched: {first}") from error


def verify(path: Path, ref: str, expected: str | None) -> str:
    """sha256 of the file, checked against `expected` (any prefix) or the file's own name.

    Raises EngineError when it differs, when it is epoch 31, or when nothing vouches for the file.
    """
    digest = sha256(path)
    epoch = EPOCHS.get(digest[:8])
    if epoch == "e31" or (epoch is None and "e31" in ref):
        raise EngineError(
            f"{ref} is epoch 31, the paper's weights are epoch 32 (sha256 {WANTED}...): open_clip "
            "3.3.0 resolves the tag laion400m_e32 to e31's repository, give the e32 file itself"
        )
    named = _IN_NAME.search(ref)
    wanted = expected or (named.group(1) if named else None)
    if wanted is None:
        raise EngineError(
            f"nothing vouches for {ref}: give its sha256 with --sha256 (a .pt file may carry the "
            "first eight digits in its name)"
        )
    if not digest.startswith(wanted.lower()):
        raise EngineError(f"{ref} is damaged or another file: sha256 {digest[:16]}, not {wanted}")
    return digest


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` or `.pt` file, without wrapper keys. f32.

    Unwraps `{"state_dict": ...}` and `module.`; raises EngineError for anything else.
    """
    try:
        if path.suffix == ".safetensors":
            raw = load_file(path)
        else:
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0][:160]
        raise EngineError(f"{path} is not a checkpoint: {first}") from error
    state = raw.get("state_dict", raw) if isinstance(raw, dict) else raw
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise EngineError(f"{path} holds no state dict")
    return {k.removeprefix("module."): v.float() for k, v in state.items()}


def load_openclip(
    model: SpgddGpt, ref: str, expected: str | None = None, *, unverified: bool = False
) -> str:
    """Load an OpenCLIP checkpoint into `model.clip`, strictly; returns its sha256.

    Raises EngineError naming the first keys that are missing, unexpected or of another shape.
    """
    path = locate(ref)
    digest = sha256(path) if unverified else verify(path, ref, expected)
    try:
        model.clip.load_state_dict(read_state(path), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        told = "; ".join(lines)[:300]
        raise EngineError(f"{ref} is not a {model.config.name} checkpoint: {told}") from error
    return digest
