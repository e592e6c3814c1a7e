"""Enrolment: a recipe from frames of good parts (no torch).

The first K distinct frames become memory and references; the rest, held out, give the conformal
threshold. Tokens and scores come from the very engine that will inspect, so when its file
changes the recipe is rebuilt from references/, and meanwhile the station is not ready.
"""

import datetime
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calibration.calibrate import (
    Anchors,
    DetectorFactory,
    DetectorLike,
    Parts,
    Workbench,
    inspect,
    part_score,
)
from calibration.places import being_made, put_in_place
from calibration.recipe import (
    Calibration,
    LoadedRecipe,
    Mode,
    Recipe,
    Reference,
    check_region,
    cut,
    load_recipe,
    read_calibration,
    read_toml,
)
from calibration.references import Frames, Progress, collect, read, verify
from calibration.thresholds import far_above, parts_needed
from engines.errors import RecipeError
from engines.preprocess import Box

MIN_SHOTS, MAX_SHOTS = 4, 16
DEFAULT_MODE: Mode = "bank"


class RecipeArgs(BaseModel):
    """What the person who enrols decides. `mode="auto"`: by validation with defects, else bank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    noun: str = "object"
    phrases: tuple[str, ...] = ()
    region: Box | None = None
    tiles: tuple[int, int] = (1, 1)
    overlap: float = 0.1
    mode: Literal["auto", "position", "nearest", "bank"] = "auto"
    coreset: int = Field(default=4, ge=0)
    deadline_ms: int = 200
    mm_per_px: float | None = None
    camera: dict[str, bool | int | float | str] = Field(default_factory=dict)

    def recipe(self, mode: Mode) -> Recipe:
        """The recipe these arguments ask for, not yet calibrated; RecipeError names a bad one."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "mode"}
        try:
            return Recipe(**values, mode=mode, created=_now())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise RecipeError(f"recipe '{self.name}', {key}: {first['msg']}") from error


@dataclass(frozen=True)
class EnrolReport:
    """What enrolment did. `interval`: 95 % range of the false-reject rate over 100 fresh parts."""

    path: Path
    mode: Mode
    shots: tuple[str, ...]
    held_out: int
    duplicates: tuple[str, ...]
    threshold: float
    learning: bool
    guarantee: str
    interval: tuple[float, float] | None
    scores: tuple[float, ...]
    histogram: Path
    chosen_by: str
    trust: str
    odd: tuple[str, ...]
    """Held-out parts that score far above the others: defects among the good ones?"""


def default_shots(distinct: int, alpha: float = 0.05) -> int:
    """References of `distinct` good parts: 4..16, leaving what the threshold needs if it can."""
    spare = distinct - parts_needed(alpha)
    if spare >= 1:
        return min(MAX_SHOTS, spare)
    return max(1, min(MIN_SHOTS, distinct // 2))


def enroll(
    frames: Frames,
    args: RecipeArgs,
    detector_factory: DetectorFactory,
    out: Path,
    *,
    shots: int | None = None,
    alpha: float = 0.05,
    defects: Frames = (),
    progress: Progress | None = None,
    anchors: Anchors | None = None,
) -> EnrolReport:
    """Make `out/<args.name>/` from (name, BGR u8 (H,W,3)) frames of good parts.

    `shots` None: `default_shots`. `defects`, if any, choose the memory mode by Image-AUC.
    `progress(stage, done, total)` is called often (total 0 while unknown). An older recipe of the
    same name is kept as `.<name>.previous`. RecipeError when nothing can be enrolled.
    """
    if not 0 < alpha < 1:
        raise RecipeError(f"alpha {alpha:g}: give a share between 0 and 1, such as 0.05")
    if shots is not None and shots < 1:
        raise RecipeError(f"{shots} shots: give at least 1 reference")
    draft = args.recipe(DEFAULT_MODE if args.mode == "auto" else args.mode)
    with being_made(Path(out), draft.name) as folder:
        bench = Workbench(folder, progress, anchors)
        kept, duplicates = collect(frames, draft, folder, progress)
        if not kept:
            raise RecipeError("no frame to enrol from: give a folder or camera showing good parts")
        count = default_shots(len(kept), alpha) if shots is None else shots
        if count > len(kept):
            raise RecipeError(
                f"{count} shots asked for but {len(kept)} distinct good parts given "
                f"({len(duplicates)} duplicates left out): give more parts or fewer --shots"
            )
        mode, chosen_by = _choose_mode(
            args, kept[:count], kept[count:], detector_factory, bench, defects=defects
        )
        parts = Parts(kept[:count], kept[count:], duplicates, chosen_by, alpha)
        recipe = draft.model_copy(update={"mode": mode})
        calibration = bench.calibrate(recipe, parts, detector_factory(mode))
        final = Path(out) / draft.name
        put_in_place(folder, final)
    return _report(final, mode, calibration)


def rebuild(
    path: Path,
    detector_factory: DetectorFactory,
    progress: Progress | None = None,
    anchors: Anchors | None = None,
) -> LoadedRecipe:
    """Compute memory and threshold anew from references/ with the engine that now inspects."""
    return _redo(path, (), detector_factory, progress, anchors)


def confirm(
    path: Path,
    frames: Frames,
    detector_factory: DetectorFactory,
    progress: Progress | None = None,
    anchors: Anchors | None = None,
    *,
    sure: bool = False,
) -> LoadedRecipe:
    """Add good parts a person confirmed to the held-out set; leaves learning once n suffices.

    RecipeError, and nothing is changed, for a picture that looks like none of the good parts, or
    one that alone would raise a limit already promised to more than twice itself; unless `sure`.
    """
    return _redo(path, frames, detector_factory, progress, anchors, check=not sure)


def open_recipe(
    root: Path,
    name: str,
    detector_factory: DetectorFactory,
    progress: Progress | None = None,
    anchors: Anchors | None = None,
) -> tuple[LoadedRecipe, DetectorLike, str | None]:
    """Load a recipe with its detector bound: (recipe, detector, why it was rebuilt or None)."""
    loaded = load_recipe(root, name)
    detector = detector_factory(loaded.recipe.mode)
    reason = loaded.stale(detector)
    if reason:
        loaded = rebuild(loaded.path, lambda _mode: detector, progress, anchors)
    detector.bind(loaded.memory, loaded.anchors)
    return loaded, detector, reason


def _redo(
    path: Path,
    frames: Frames,
    factory: DetectorFactory,
    progress: Progress | None,
    anchors: Anchors | None,
    *,
    check: bool = False,
) -> LoadedRecipe:
    recipe = read_toml(path / "recipe.toml")
    old = read_calibration(path / "calibration.json")
    check_region(recipe, old, path)
    known = [*old.shots, *old.held_out]
    verify(path, known)
    with being_made(path.parent, path.name) as folder:
        bench = Workbench(folder, progress, anchors)
        shutil.copytree(path / "references", folder / "references")
        added, again = collect(frames, recipe, folder, progress, known=known)
        if check:
            _check_looks(added, old, folder)
        parts = Parts(
            old.shots, [*old.held_out, *added], [*old.duplicates, *again], old.chosen_by, old.alpha
        )
        new = bench.calibrate(recipe, parts, factory(recipe.mode))
        if check:
            _check_scores(added, old, new)
        put_in_place(folder, path)
    return load_recipe(path.parent, path.name)


def _check_looks(added: Sequence[Reference], old: Calibration, folder: Path) -> None:
    """RecipeError for a picture of another size, or too dark, bright or soft for these parts."""
    sizes = {reference.frame for reference in old.shots}
    for reference in added:
        if len(sizes) == 1 and None not in sizes and reference.frame not in sizes:
            (size,) = sizes
            odd = f"is {_size(reference.frame)} px where the others are {_size(size)}"
        elif why := old.plausible.check(read(folder, reference)):
            odd = f"looks like none of the good parts ({why})"
        else:
            continue
        raise RecipeError(f"{reference.name} {odd}: leave it out, or confirm with --yes")


def _size(shape: tuple[int, int] | None) -> str:
    return "?" if shape is None else f"{shape[1]}x{shape[0]}"


def _check_scores(added: Sequence[Reference], old: Calibration, new: Calibration) -> None:
    """RecipeError when pictures just added, far above the other good parts, double the limit.

    Good parts of some products score widely (the magnetic tiles: median .007, largest .72): being
    far above is no proof, and while a recipe is learning its limit moves a lot. It is told then.
    """
    if old.learning or new.threshold <= 2 * old.threshold:
        return
    names = {reference.file for reference in added}
    far = [i for i in far_above(new.scores) if new.held_out[i].file in names]
    if far:
        told = ", ".join(f"{new.held_out[i].name} ({new.scores[i]:.3g})" for i in far[:3])
        middle = float(np.median(new.scores))
        raise RecipeError(
            f"{told} far above the other good parts (median {middle:.3g}): the limit would rise "
            f"from {old.threshold:.3g} to {new.threshold:.3g}. Is it a good part? Leave it out, "
            "or, when a person has looked at it again, confirm with --yes"
        )


def _choose_mode(
    args: RecipeArgs,
    shots: Sequence[Reference],
    held_out: Sequence[Reference],
    factory: DetectorFactory,
    bench: Workbench,
    *,
    defects: Frames,
) -> tuple[Mode, str]:
    if args.mode != "auto":
        return args.mode, "asked for"
    bad = [cut(frame, args.region) for _, frame in defects]
    if not bad or not held_out:
        return DEFAULT_MODE, "default: no defects and held-out good parts to validate on"
    figures: dict[Mode, float] = {}
    modes: tuple[Mode, ...] = ("bank", "nearest", "position")
    for mode in modes:
        recipe, detector = args.recipe(mode).model_copy(update={"region": None}), factory(mode)
        bench.bind(detector, recipe, shots)
        good = bench.scores(detector, recipe, held_out, f"trying {mode}")
        ill = [part_score(inspect(detector, recipe, region)) for region in bad]
        figures[mode] = _auc(good, ill)
    said = ", ".join(f"{mode} {value:.3f}" for mode, value in figures.items())
    best = max(figures, key=lambda mode: figures[mode])
    return best, f"Image-AUC on {len(bad)} defects and {len(held_out)} good parts: {said}"


def _report(final: Path, mode: Mode, calibration: Calibration) -> EnrolReport:
    return EnrolReport(
        path=final,
        mode=mode,
        shots=tuple(reference.name for reference in calibration.shots),
        held_out=calibration.n,
        duplicates=calibration.duplicates,
        threshold=calibration.threshold,
        learning=calibration.learning,
        guarantee=calibration.guarantee,
        interval=calibration.interval,
        scores=calibration.scores,
        histogram=final / "histogram.png",
        chosen_by=calibration.chosen_by,
        trust=calibration.told_trust(),
        odd=tuple(
            f"{calibration.held_out[i].name} ({calibration.scores[i]:.3g})"
            for i in far_above(calibration.scores)
        ),
    )


def _auc(good: list[float], ill: list[float]) -> float:
    """Probability that a defect scores above a good part, ties half."""
    pairs = np.asarray(ill)[:, None] - np.asarray(good)[None, :]
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


__all__ = [
    "DEFAULT_MODE",
    "DetectorFactory",
    "DetectorLike",
    "EnrolReport",
    "RecipeArgs",
    "confirm",
    "default_shots",
    "enroll",
    "inspect",
    "open_recipe",
    "part_score",
    "rebuild",
]
