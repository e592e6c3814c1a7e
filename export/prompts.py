"""The project's own prompt ensemble: states and templates in a fixed order."""

from typing import Any

from engines.text import prompt_hash, tokenise

__all__ = ["ABNORMAL_STATES", "NORMAL_STATES", "TEMPLATES", "ensemble", "tokenise"]

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "{} without any defect",
    "intact {} with an even surface",
    "clean {} in perfect condition",
    "{} that passes the quality check",
    "undamaged {}",
)
ABNORMAL_STATES = (
    "damaged {}",
    "{} with a defect",
    "{} with a crack or a scratch",
    "{} with a hole, pit or dent",
    "{} with a stain or foreign material",
    "broken {}",
    "{} that fails the quality check",
)
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "a photo of a {} from a distance.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a blurry photo of a {}.",
    "a grey-scale photo of the {}.",
    "a photo of a {} for visual inspection.",
)


def ensemble() -> dict[str, Any]:
    """What prompts.json holds, its hash included."""
    body: dict[str, Any] = {
        "version": 1,
        "unknown": "object",
        "normal": list(NORMAL_STATES),
        "abnormal": list(ABNORMAL_STATES),
        "templates": list(TEMPLATES),
    }
    return {**body, "hash": prompt_hash(body)}
