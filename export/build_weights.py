"""Where a bundle's weights come from: this project's file, an OpenCLIP checkpoint, or a seed."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engines.bundle import BUNDLES, sha256
from engines.errors import EngineError
from export.bundle_writer import WEIGHTS
from export.model.checkpoint import load_openclip
from export.model.config import ModelConfig
from export.model.spgdd import SpgddGpt
from export.model.weights import load_own, save_weights


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

    def words(self) -> list[str]:
        """For the build key."""
        return [str(v) for v in vars(self).values()]


def _shipped(preset: str) -> Path | None:
    path = BUNDLES / preset / WEIGHTS
    return path if path.is_file() else None


def _copy(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        return
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
        partial = Path(part.name)
    shutil.copyfile(source, partial)
    partial.chmod(0o644)
    partial.replace(target)


def _with_config(model: SpgddGpt, request: WeightsRequest) -> SpgddGpt:
    """The same towers under the configuration of the own parts (head, TDDF, contexts)."""
    if request.parts is None:
        return model
    if not request.parts.is_file():
        raise EngineError(f"no file of trained parts at {request.parts}")
    with safe_open(request.parts, framework="pt") as file:
        metadata = file.metadata() or {}
    if "config" not in metadata:
        raise EngineError(f"{request.parts} is not a file of this project's trained parts")
    config = ModelConfig.from_json(metadata["config"])
    if config.vision != model.config.vision or config.embed_dim != model.config.embed_dim:
        raise EngineError(f"{request.parts} was trained for another tower than {request.preset}")
    whole = SpgddGpt(config)
    whole.clip.load_state_dict(model.clip.state_dict(), strict=True)
    load_own(whole, load_file(request.parts), request.parts.name)
    return whole


def _made(request: WeightsRequest) -> tuple[SpgddGpt, str, str]:
    """(model, source, sentence about training)."""
    model = SpgddGpt.create(request.preset)
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


def prepare_weights(request: WeightsRequest, out: Path) -> tuple[str, str]:
    """Put weights.safetensors into `out`; (source, sha256). Seeds are fixed, so twice is the same.

    Raises EngineError when a file is missing, damaged, another epoch, or of another preset.
    """
    out.mkdir(parents=True, exist_ok=True)
    target = out / WEIGHTS
    plain = request.checkpoint is None and request.parts is None
    source = request.weights or (_shipped(request.preset) if plain else None)
    if source is None:
        model, origin, trained = _made(request)
        model.config = replace(model.config, trained=trained)
        with torch.no_grad():
            save_weights(model, target, trained=trained)
        return origin, sha256(target)
    if not source.is_file():
        raise EngineError(f"no weights file at {source}")
    _copy(source, target)
    return source.name, sha256(target)
