"""Weights files: one safetensors file with the configuration inside, names as OpenCLIP's.

CLIP tensors keep OpenCLIP's names; the project's own parts follow as `tddf.*`, `head.*`,
`score.*`, `prefix.*` and `contexts`.
"""

from pathlib import Path

import torch
from safetensors import safe_open
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


def read_config(path: Path) -> ModelConfig:
    """The configuration inside a weights file. Raises KeyError for a foreign safetensors file."""
    with safe_open(path, framework="pt") as file:
        return ModelConfig.from_json(file.metadata()["config"])


def load_weights(path: Path) -> SpgddGpt:
    """The model of a weights file, computing in FP32 with the stored (rounded) values."""
    with safe_open(path, framework="pt") as file:
        model = SpgddGpt(ModelConfig.from_json((file.metadata() or {})["config"]))
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    names = {k.removeprefix(CLIP): k for k in model.state_dict()}
    full = {names.get(k, k): v for k, v in state.items()}
    if not len(model.contexts):
        full["contexts"] = torch.empty_like(model.contexts)
    model.load_state_dict(full, strict=True)
    return model.eval()


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
    model.load_state_dict(state, strict=False)
