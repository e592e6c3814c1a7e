"""The reference model in PyTorch: SPGDD-GPT up to its language model, two presets.

Learned context vectors (`TextConfig.learned_contexts`, `SpgddGpt.contexts`) are taken by weights
files and graphs, but no stage trains them and no shipped weights hold any: the trained text tower's
anchors fit without them, and there are no texts to learn more from.
"""

from export.model.config import ModelConfig, TextConfig, VisionConfig, preset
from export.model.spgdd import SpgddGpt

__all__ = ["ModelConfig", "SpgddGpt", "TextConfig", "VisionConfig", "preset"]
