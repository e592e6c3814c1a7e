"""The reference model in PyTorch: SPGDD-GPT up to its language model, two presets."""

from export.model.config import ModelConfig, TextConfig, VisionConfig, preset
from export.model.spgdd import SpgddGpt

__all__ = ["ModelConfig", "SpgddGpt", "TextConfig", "VisionConfig", "preset"]
