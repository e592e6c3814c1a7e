"""A recipe: what a good part of one product looks like, on disk and loaded (no torch).

`recipes/<name>/` holds recipe.toml (settings), memory.safetensors (tokens of the references and
the text anchors), references/ (the region of every enrolled frame, lossless) and calibration.json
(held-out scores, threshold, plausible range). The names of threshold and mode never leave this
folder: the engine itself knows no threshold.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file

from calibration.places import bring_back
from calibration.plausible import Look, Plausibility, measure
from calibration.thresholds import conformal_threshold
from calibration.trust import in_words
from engines.detector import Memory
from engines.errors import RecipeError
from engines.preprocess import Box, tile_boxes

Mode = Literal["position", "nearest", "bank"]
MAX_WORDS = 200  # characters of a noun or phrase: the text encoder reads 77 tokens
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class EngineIdentity(Protocol):
    """What a recipe must know of the engine it was enrolled with (engines.detector.Detector)."""

    engine_sha: str
    precision: str


class Recipe(BaseModel):
    """recipe.toml. Pixels are of the original frame; `deadline_ms` counts from capture."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    name: str
    noun: str = "object"
    phrases: tuple[str, ...] = ()
    region: Box | None = None
    tiles: tuple[int, int] = (1, 1)
    overlap: float = Field(default=0.1, ge=0.0, lt=0.9)
    mode: Mode = "bank"
    coreset: int = Field(default=0, ge=0)
    """In `bank`: keep the tokens of this many references' worth, chosen to cover all (0: all)."""
    learning: bool = True
    deadline_ms: int = Field(default=200, ge=1, le=600_000)
    mm_per_px: float | None = Field(default=None, gt=0)
    bundle_sha: str = ""
    engine_sha: str = ""
    precision: str = ""
    camera: dict[str, bool | int | float | str] = Field(default_factory=dict)
    created: str = ""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("a recipe name is letters, digits, dot, dash, underscore (64 at most)")
        return value

    @field_validator("noun")
    @classmethod
    def _noun_is_a_word(cls, value: str) -> str:
        if not value.strip() or not value.isprintable() or len(value) > MAX_WORDS:
            raise ValueError(f"say what the part is called, in up to {MAX_WORDS} characters")
        return value

    @field_validator("phrases")
    @classmethod
    def _phrases_are_words(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            words = value.replace("{}", "")
            if not words.strip() or {*"{}"} & {*words} or not words.isprintable():
                raise ValueError(
                    "a phrase names a defect, with {} where the part's name goes: '{} with rust'"
                )
            if len(value) > MAX_WORDS:
                raise ValueError(f"a phrase has up to {MAX_WORDS} characters")
        return values

    @field_validator("tiles")
    @classmethod
    def _tiles_are_positive(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1 or value[0] * value[1] > 256:
            raise ValueError("tiles are rows x columns, both at least 1, 256 tiles at most")
        return value

    def boxes(self, shape_hw: tuple[int, int]) -> tuple[Box, ...]:
        """The tiles to cut from a frame of this shape, rows first (rows*cols boxes)."""
        return tile_boxes(shape_hw, self.region, self.tiles, self.overlap)

    def groups(self, count: int) -> NDArray[np.int64]:
        """Memory group of each of `count` tiles, i64 (count,): own per tile in `position`."""
        if self.mode == "position":
            return np.arange(count, dtype=np.int64)
        return np.zeros(count, dtype=np.int64)

    def fingerprint(self) -> str:
        """Hash of the settings that decide memory and threshold: a change makes them stale."""
        decisive = {"noun", "phrases", "tiles", "overlap", "mode", "coreset"}
        keep = self.model_dump(mode="json", include=decisive)
        return hashlib.sha256(json.dumps(keep, sort_keys=True).encode()).hexdigest()


class Reference(BaseModel):
    """One enrolled image: its file under references/, the name it came with, sha256 of pixels."""

    model_config = ConfigDict(frozen=True)

    file: str
    name: str
    sha256: str
    frame: tuple[int, int] | None = None
    """(H, W) of the whole frame it was cut from; older recipes do not say."""


class Calibration(BaseModel):
    """calibration.json: where the threshold comes from and what it promises."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    engine_sha: str
    precision: str
    fingerprint: str
    memory_sha256: str
    alpha: float
    n: int
    k: int
    threshold: float
    learning: bool
    guarantee: str
    interval_parts: int
    interval: tuple[float, float] | None
    scores: tuple[float, ...]
    shots: tuple[Reference, ...]
    held_out: tuple[Reference, ...]
    duplicates: tuple[str, ...] = ()
    plausible: Plausibility = Plausibility()
    trust: float = 1.0
    """Factor on the odds of the text cue on this product (`calibration.trust`), 0 to 1."""
    usual: tuple[float, ...] = ()
    """Heat that good parts reach at each place, 15 x 15 in reading order (`engines.facts`)."""
    chosen_by: str = ""
    region: Box | Literal["unknown"] | None = "unknown"
    """What references/ were cut with; older recipes do not say."""

    def told_trust(self) -> str:
        """One clause: how far the model's words fit these parts."""
        return in_words(self.trust)


@dataclass
class LoadedRecipe:
    """A recipe ready to bind: `detector.bind(loaded.memory, loaded.anchors)`."""

    recipe: Recipe
    path: Path
    memory: Memory
    anchors: NDArray[np.float32]
    threshold: float
    calibration: Calibration
    plausible: Plausibility
    sha: str

    def stale(self, detector: EngineIdentity) -> str | None:
        """Why memory and threshold must be rebuilt before this detector may judge; None if not."""
        if self.calibration.engine_sha != detector.engine_sha:
            return "the engine file changed since enrolment"
        if self.calibration.fingerprint != self.recipe.fingerprint():
            return "recipe.toml was edited since enrolment"
        return None


def cut(frame_bgr: NDArray[np.uint8], region: Box | None) -> NDArray[np.uint8]:
    """The recipe's region of a frame (H,W,3); RecipeError when it does not lie inside."""
    if region is None:
        return frame_bgr
    high, wide = frame_bgr.shape[:2]
    inside = region.x >= 0 and region.y >= 0 and region.w > 0 and region.h > 0
    if not inside or region.x + region.w > wide or region.y + region.h > high:
        raise RecipeError(
            f"the region x={region.x} y={region.y} w={region.w} h={region.h} does not lie inside "
            f"a frame of {wide}x{high}: enrol again with --region x,y,w,h that fits"
        )
    return frame_bgr[region.y : region.y + region.h, region.x : region.x + region.w]


def list_recipes(root: Path) -> list[str]:
    """Names of the recipes under `root`, sorted; empty when the folder does not exist."""
    if not root.is_dir():
        return []
    found = (p.name for p in root.iterdir() if (p / "recipe.toml").is_file())
    return sorted(name for name in found if NAME.fullmatch(name))


def load_recipe(root: Path, name: str) -> LoadedRecipe:
    """Load and verify `root/name`. RecipeError when unknown, damaged or of another make.

    The engine is not looked at here: ask `loaded.stale(detector)`, or use
    `calibration.enroll.open_recipe`, which rebuilds where needed.
    """
    path = Path(root) / name
    if NAME.fullmatch(name):
        bring_back(Path(root), name)
    if not NAME.fullmatch(name) or not (path / "recipe.toml").is_file():
        known = ", ".join(list_recipes(Path(root))) or "none"
        raise RecipeError(
            f"no recipe '{name}' in {root} (known: {known}): "
            f"make it with `station enroll --recipe {name} --normals FOLDER`"
        )
    recipe = read_toml(path / "recipe.toml")
    if recipe.name != name:  # every verdict would carry the name of another recipe
        raise RecipeError(
            f"{path / 'recipe.toml'}: its name is '{recipe.name}', its folder's '{name}': a recipe "
            "is not copied by hand; make the two the same, or enrol it"
        )
    calibration = read_calibration(path / "calibration.json")
    check_region(recipe, calibration, path)
    _check_threshold(calibration, path / "calibration.json")
    memory, anchors = _read_memory(path / "memory.safetensors", calibration.memory_sha256)
    return LoadedRecipe(
        recipe=recipe.model_copy(update={"learning": calibration.learning}),
        path=path,
        memory=memory,
        anchors=anchors,
        threshold=calibration.threshold,
        calibration=calibration,
        plausible=calibration.plausible,
        sha=_recipe_sha(path),
    )


def _check_threshold(calibration: Calibration, path: Path) -> None:
    """RecipeError when the limit is not what its own held-out scores give: it was edited."""
    try:
        own = conformal_threshold(calibration.scores, calibration.alpha)
    except ValueError as error:
        raise RecipeError(f"{path} is damaged ({error}): enrol the recipe again") from error
    told = (calibration.threshold, calibration.n, calibration.k, calibration.learning)
    if told != (own.value, own.n, own.k, own.learning):
        raise RecipeError(
            f"{path}: the threshold {calibration.threshold:g} is not that of its {own.n} held-out "
            f"scores ({own.value:g}): put it back, or enrol again (another limit: --alpha)"
        )


def check_region(recipe: Recipe, calibration: Calibration, path: Path) -> None:
    """RecipeError when `region` was edited: what lies outside the old one was not kept."""
    if calibration.region not in ("unknown", recipe.region):
        was = calibration.region
        told = "the whole frame" if was is None else f"x={was.x} y={was.y} w={was.w} h={was.h}"  # type: ignore[union-attr]
        raise RecipeError(
            f"{path / 'recipe.toml'}: 'region' was edited, the good parts were enrolled with "
            f"{told}: put that back, or enrol again with --region"
        )


def read_toml(path: Path) -> Recipe:
    """recipe.toml as a Recipe; RecipeError names the file and the key that is wrong."""
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} cannot be read ({error}): correct it or enrol again") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{path}: '{key}': {said}: correct it or enrol again") from error


def write_toml(recipe: Recipe, path: Path) -> None:
    """Write recipe.toml; reading it back gives an equal Recipe."""
    lines = ["# Made by `station enroll`; what a good part looks like. Pixels of the frame."]
    values = recipe.model_dump(mode="json", exclude_none=True)
    lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_calibration(path: Path) -> Calibration:
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise RecipeError(f"{path} is damaged ({first}): enrol the recipe again") from error


def _read_memory(path: Path, expected: str) -> tuple[Memory, NDArray[np.float32]]:
    try:
        if file_sha256(path) != expected:
            raise RecipeError(f"{path} differs from what was enrolled: enrol the recipe again")
        tensors = load_file(path)
        taps = (tensors["tap_a"], tensors["tap_b"], tensors["tap_c"])
        return Memory(taps=taps), tensors["anchors"]
    except (OSError, KeyError, SafetensorError) as error:
        raise RecipeError(f"{path} cannot be read ({error}): enrol the recipe again") from error


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _recipe_sha(path: Path) -> str:
    digest = hashlib.sha256()
    for name in ("recipe.toml", "calibration.json"):
        digest.update((path / name).read_bytes())
    return digest.hexdigest()


__all__ = [
    "Box",
    "Calibration",
    "LoadedRecipe",
    "Look",
    "Memory",
    "Plausibility",
    "Recipe",
    "Reference",
    "cut",
    "file_sha256",
    "list_recipes",
    "load_recipe",
    "measure",
    "read_toml",
    "write_toml",
]
