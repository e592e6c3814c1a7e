"""What a training begins with, what a broken-off one leaves behind, and whose it is.

A state names the run it belongs to: settings, data sets with their listing, what was left out and
the weights it began with. Only that run takes it up; any other is refused in one sentence, so that
a second training into the same folder never ends as the first one.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from engines.errors import UsageError

Identity = Mapping[str, Any]
"""What a run is, by the word a person knows it by: plain values that JSON can hold."""


def trained_of(path: Path, otherwise: str) -> str:
    """The sentence in a weights file that says how it was trained."""
    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get("trained", otherwise))


def digest(of: Any) -> str:
    """16 hex digits of a plain value, of a tensor's numbers, or of a file's content.

    UsageError when the file cannot be read.
    """
    if isinstance(of, Tensor):
        content = of.detach().cpu().contiguous().numpy().tobytes()
    elif isinstance(of, Path):
        try:
            content = of.read_bytes()
        except OSError as error:
            raise UsageError(f"{of} cannot be read ({error.strerror}): give a file") from error
    else:
        content = _plain(of).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def keep(path: Path, of: Identity, state: Mapping[str, Any]) -> None:
    """Write a state and whose it is; a kill in between leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    torch.save({"of": _plain(of), "state": dict(state)}, half)
    half.replace(path)


def take_up(path: Path, of: Identity) -> dict[str, Any] | None:
    """The state that the same run left at `path`, tensors on the CPU; None if there is none.

    UsageError when it is damaged or another run's: it says what differs and what to do.
    """
    if not path.is_file():
        return None
    remedy = "name another --out, or remove that file to begin anew"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path} is no state of a training (damaged): {remedy}") from error
    if not isinstance(found, dict) or set(found) != {"of", "state"}:
        raise UsageError(f"{path} does not say which run it belongs to: {remedy}")
    if found["of"] != _plain(of):
        theirs, ours = json.loads(found["of"]), json.loads(_plain(of))
        differs = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
        raise UsageError(f"{path} belongs to another run (other {', '.join(differs)}): {remedy}")
    state: dict[str, Any] = found["state"]
    return state


def _plain(of: Any) -> str:
    return json.dumps(of, sort_keys=True)
