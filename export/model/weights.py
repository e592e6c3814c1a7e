"""Weights files: one safetensors file with the configuration inside, names as OpenCLIP's.

CLIP tensors keep OpenCLIP's names; the project's own parts follow as `tddf.*`, `head.*`,
`score.*`, `prefix.*` and `contexts`.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engines.errors import EngineError
from export.model.config import ModelConfig
from export.model.spgdd import SpgddGpt

CLIP = "clip."
OWN = ("tddf.", "head.", "score.", "prefix.", "contexts")
"""Tensors trained by this project; the rest is CLIP."""


def flat_state(model: SpgddGpt) -> dict[str, Tensor]:
    """State dict with OpenCLIP's names for the towers (no `clip.` in front)."""
    return {k.removeprefix(CLIP): v.detach().contiguous() for k, v in model.state_dict().items()}


def save_weights(
    model: SpgddGpt, path: Path, half: bool = True, trained: str | None = None
) -> None:
    """Write `path`; `half` stores matrices as FP16 (scalars stay FP32).

    `trained`: one honest sentence about what these weights are; kept in the metadata.
    """
    config = model.config
    state = {
        name: value.half() if half and value.dim() > 0 else value.float()
        for name, value in flat_state(model).items()
        if value.numel() > 0
    }
    metadata = {"config": config.to_json(), "trained": trained or config.trained}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a file of this project (weights or trained parts), `config` among them.

    EngineError when the file is missing, no safetensors file, or none of this project.
    """
    if not path.is_file():
        raise EngineError(f"no weights file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise EngineError(f"{path} is no safetensors file ({first_line(error)})") from error
    if "config" not in metadata:
        raise EngineError(
            f"{path} is no weights file of this project (it holds no configuration): give one that "
            "calibration.train or calibration.finish wrote"
        )
    return metadata


def read_config(path: Path) -> ModelConfig:
    """The configuration inside a weights file. EngineError when it is not one of this project."""
    text = read_metadata(path)["config"]
    try:
        return ModelConfig.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError(
            f"{path} is no weights file of this project's version (its configuration: "
            f"{first_line(error)}): train or finish it with this version"
        ) from error


def load_weights(path: Path) -> SpgddGpt:
    """The model of a weights file, computing in FP32 with the stored (rounded) values.

    EngineError when it is not one of this project, or does not fit its own configuration.
    """
    model = SpgddGpt(read_config(path))
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    names = {k.removeprefix(CLIP): k for k in model.state_dict()}
    full = {names.get(k, k): v for k, v in state.items()}
    if not len(model.contexts):
        full["contexts"] = torch.empty_like(model.contexts)
    try:
        model.load_state_dict(full, strict=True)
    except RuntimeError as error:
        told = "; ".join(line.strip() for line in str(error).splitlines()[1:])[:300]
        raise EngineError(f"{path} does not fit its own configuration: {told}") from error
    bad = [name for name, value in state.items() if not value.isfinite().all()]
    if bad:
        raise EngineError(f"{path} holds numbers that are not finite: {', '.join(bad[:4])}")
    return model.eval()


def first_line(error: BaseException) -> str:
    """What an error of a library says, fit for one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def save_own(model: SpgddGpt, path: Path, trained: str) -> None:
    """Only the project's own trained parts (for `paper`: towers come from OpenCLIP). f32."""
    own = {k: v for k, v in flat_state(model).items() if k.startswith(OWN) and v.numel()}
    save_file(own, path, metadata={"config": model.config.to_json(), "trained": trained})


def load_own(model: SpgddGpt, state: dict[str, Tensor], name: str) -> None:
    """Load what `save_own` wrote, strictly. EngineError names keys that do not fit."""
    wanted = {k for k, v in model.state_dict().items() if k.startswith(OWN) and v.numel()}
    if set(state) != wanted:
        odd = sorted(set(state) ^ wanted)
        raise EngineError(f"{name} does not fit this configuration: {', '.join(odd[:4])}")
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        told = "; ".join(line.strip() for line in str(error).splitlines()[1:])[:300]
        raise EngineError(f"{name} does not fit this configuration: {told}") from error
