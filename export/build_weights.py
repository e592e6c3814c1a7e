"""Where a bundle's weights come from: this project's file, an OpenCLIP checkpoint, or a seed."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from engines.bundle import BUNDLES, MANIFEST, sha256
from engines.errors import EngineError
from export.bundle_writer import WEIGHTS
from export.model.checkpoint import load_openclip
from export.model.spgdd import SpgddGpt
from export.model.weights import load_own, read_config, save_weights


@dataclass(frozen=True)
class WeightsRequest:
    """What the command line says about weights.

    checkpoint: OpenCLIP file or hf:// (paper); parts: the project's own trained parts; sha256: for
    files whose name carries none.
    """

    preset: str
    weights: Path | None = None
    checkpoint: str | None = None
    parts: Path | None = None
    sha256: str | None = None
    unverified: bool = False


def _shipped(preset: str) -> tuple[Path, str] | None:
    """Weights of the shipped bundle of this preset and where they came from; None: none ships.

    EngineError when they are not what the bundle's manifest says: a build would sign the damage.
    """
    path = BUNDLES / preset / WEIGHTS
    if not path.is_file():
        return None
    try:
        manifest = json.loads((path.parent / MANIFEST).read_text())
        expected, origin = manifest["files"][WEIGHTS], str(manifest["source"]["weights"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"the shipped bundle {path.parent} has no usable {MANIFEST}, so nothing vouches for "
            "its weights: restore it, or name a file with --weights"
        ) from error
    if sha256(path) != expected:
        raise EngineError(
            f"{path} is not what its {MANIFEST} says: restore it, or name a file with --weights"
        )
    return path, origin


def _with_config(model: SpgddGpt, request: WeightsRequest) -> SpgddGpt:
    """The same towers under the configuration of the own parts (head, TDDF, contexts)."""
    if request.parts is None:
        return model
    config = read_config(request.parts)
    if config.vision != model.config.vision or config.embed_dim != model.config.embed_dim:
        raise EngineError(f"{request.parts} was trained for another tower than {request.preset}")
    whole = SpgddGpt(config)
    whole.clip.load_state_dict(model.clip.state_dict(), strict=True)
    load_own(whole, load_file(request.parts), request.parts.name)
    return whole


def _made(request: WeightsRequest) -> tuple[SpgddGpt, str, str]:
    """(model, source, sentence about training)."""
    try:
        model = SpgddGpt.create(request.preset)
    except ModuleNotFoundError as error:
        raise EngineError(
            f"preset {request.preset} starts from the stem of the package {error.name}, which is "
            "not installed (extra 'export'): install it, or give --weights"
        ) from error
    if request.checkpoint is None:
        source, trained = "random initialisation, seed 42", model.config.trained
    else:
        digest = load_openclip(
            model, request.checkpoint, request.sha256, unverified=request.unverified
        )
        source = f"{request.checkpoint} (sha256 {digest})"
        trained = f"towers from {Path(request.checkpoint).name}"
    whole = _with_config(model, request)
    if request.parts:
        trained += f", parts from {request.parts.name}"
    elif request.checkpoint:
        trained += "; head, TDDF linears and prefix untrained (training-free)"
    return whole, source, trained


def _check_parts(request: WeightsRequest) -> None:
    """What can be known of the files before a tower is made or fetched."""
    if request.parts is not None:
        if not request.parts.is_file():
            raise EngineError(f"no file of trained parts at {request.parts}")
        name = read_config(request.parts).name
        if name != request.preset:
            raise EngineError(f"{request.parts} holds parts of preset {name}: give --preset {name}")


def prepare_weights(request: WeightsRequest, out: Path) -> tuple[str, str]:
    """Put weights.safetensors into `out`; (source, sha256). Seeds are fixed, so twice is the same.

    Nothing is written before the request is checked. Raises EngineError when a file is missing,
    damaged, foreign, another epoch, or of another preset.
    """
    target = out / WEIGHTS
    plain = request.checkpoint is None and request.parts is None
    shipped = _shipped(request.preset) if plain and request.weights is None else None
    source, origin = shipped or (request.weights, "")
    if source is None:
        _check_parts(request)
        model, origin, trained = _made(request)
        model.config = replace(model.config, trained=trained)
        with torch.no_grad():
            save_weights(model, target, trained=trained)
        return origin, sha256(target)
    config = read_config(source)
    if config.name != request.preset:
        raise EngineError(
            f"{source} holds weights of preset {config.name}: give --preset {config.name}"
        )
    shutil.copyfile(source, target)
    return origin or source.name, sha256(target)
