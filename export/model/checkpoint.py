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
from engines.errors import EngineError, UsageError
from export.model.spgdd import SpgddGpt

EPOCHS = {"699c4b84": "e32", "8fb26589": "e31"}
"""First eight hex digits of the published `.pt` files of ViT-B-16-plus-240, laion400m."""
WANTED = "699c4b84"
SHA256 = r"[0-9a-f]{8,64}"
"""All of a sha256, or enough of its start that no other file has it by chance."""
_E31 = re.compile(r"(?<![a-z0-9])e31(?![a-z0-9])")
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


def _named_e31(ref: str) -> bool:
    """The word e31 in the name of the file or of the hub's repository, not in a folder's."""
    parts = ref.removeprefix("hf://").split("/")
    names = parts[1:2] + parts[-1:] if ref.startswith("hf://") else parts[-1:]
    return any(_E31.search(name.lower()) for name in names)


def verify(path: Path, ref: str, expected: str | None) -> str:
    """sha256 of the file, checked against `expected` or the eight digits in the file's own name.

    expected: all 64 hex digits, or at least the first 8. Raises UsageError when it is not that;
    EngineError when it differs, when the file is epoch 31 (by its hash; by its name unless all 64
    digits vouch for it), or when nothing vouches for it.
    """
    if expected is not None and not re.fullmatch(SHA256, expected, re.IGNORECASE):
        raise UsageError(f"'{expected}' is no sha256: give all 64 hex digits, or at least 8")
    digest = sha256(path)
    epoch = EPOCHS.get(digest[:8])
    full = expected is not None and len(expected) == len(digest)
    if epoch == "e31" or (epoch is None and not full and _named_e31(ref)):
        raise EngineError(
            f"{ref} is epoch 31, the paper's weights are epoch 32 (sha256 {WANTED}...): open_clip "
            "3.3.0 resolves the tag laion400m_e32 to e31's repository, give the e32 file itself "
            "(a file that only has this name passes with all 64 digits of its --sha256)"
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
