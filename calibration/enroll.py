"""Enrolment: a recipe from frames of good parts (no torch).

The first K distinct frames become memory and references; the rest, held out, give the conformal
threshold. Tokens and scores come from the very engine that will inspect, so when its file
changes the recipe is rebuilt from references/, and meanwhile the station is not ready.
"""

import datetime
import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save_file

from calibration.histogram import draw_histogram
from calibration.plausible import Plausibility, measure
from calibration.recipe import (
    Calibration,
    LoadedRecipe,
    Mode,
    Recipe,
    Reference,
    cut,
    file_sha256,
    load_recipe,
    read_toml,
    write_toml,
)
from calibration.thresholds import Threshold, conformal_threshold, parts_needed, reject_interval
from engines.bundle import Bundle
from engines.detector import Answer, Memory
from engines.errors import RecipeError
from engines.preprocess import Box, to_tiles
from engines.text import TextEncoder

MIN_SHOTS, MAX_SHOTS = 4, 16
# The interval is stated for this many fresh parts; reject_interval gives it for any other number.
INTERVAL_PARTS = 100
DEFAULT_MODE: Mode = "bank"

Progress = Callable[[str, int, int], None]
Anchors = Callable[[str, tuple[str, ...]], NDArray[np.float32]]


class DetectorLike(Protocol):
    """The part of engines.detector.Detector that enrolment uses."""

    engine_sha: str
    precision: str
    bundle: Bundle

    def bind(self, memory: Memory | None, anchors: NDArray[np.float32]) -> None: ...
    def run(self, tiles: NDArray[np.uint8], group: NDArray[np.int64] | None = None) -> Answer: ...


DetectorFactory = Callable[[Mode], DetectorLike]


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
    deadline_ms: int = 200
    mm_per_px: float | None = None
    camera: dict[str, bool | int | float | str] = Field(default_factory=dict)

    def recipe(self, mode: Mode) -> Recipe:
        """The recipe these arguments ask for, not yet calibrated."""
        return Recipe(**self.model_dump(exclude={"mode"}), mode=mode, created=_now())


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


def default_shots(distinct: int, alpha: float) -> int:
    """References of `distinct` good parts: 4..16, leaving what the threshold needs if it can."""
    spare = distinct - parts_needed(alpha)
    if spare >= 1:
        return min(MAX_SHOTS, spare)
    return max(1, min(MIN_SHOTS, distinct // 2))


def enroll(
    frames: Iterable[tuple[str, NDArray[np.uint8]]],
    args: RecipeArgs,
    detector_factory: DetectorFactory,
    out: Path,
    *,
    shots: int | None = None,
    alpha: float = 0.05,
    defects: Iterable[tuple[str, NDArray[np.uint8]]] = (),
    progress: Progress | None = None,
    anchors: Anchors | None = None,
) -> EnrolReport:
    """Make `out/<args.name>/` from (name, BGR u8 (H,W,3)) frames of good parts.

    `shots` None: `default_shots`. `defects`, if any, choose the memory mode by Image-AUC.
    `progress(stage, done, total)` is called often (total 0 while unknown). An older recipe of the
    same name is kept as `.<name>.previous`. RecipeError when nothing can be enrolled.
    """
    draft = args.recipe(DEFAULT_MODE if args.mode == "auto" else args.mode)
    final = Path(out) / draft.name
    staging = Path(out) / f".{draft.name}.part"
    shutil.rmtree(staging, ignore_errors=True)
    kept, duplicates = _collect(frames, draft, staging, progress)
    if not kept:
        raise RecipeError("no frame to enrol from: give a folder or camera showing good parts")
    count = default_shots(len(kept), alpha) if shots is None else shots
    if not 1 <= count <= len(kept):
        raise RecipeError(
            f"{count} shots asked for but {len(kept)} distinct good parts given "
            f"({len(duplicates)} duplicates left out): give more parts or fewer --shots"
        )
    mode, chosen_by = _choose_mode(
        args, kept, count, detector_factory, staging, defects, progress, anchors
    )
    recipe = draft.model_copy(update={"mode": mode})
    detector = detector_factory(mode)
    calibration = _calibrate(
        recipe, kept[:count], kept[count:], detector, staging, alpha, progress, anchors,
        duplicates=duplicates, chosen_by=chosen_by,
    )  # fmt: skip
    _replace(staging, final)
    return _report(final, mode, calibration)


def rebuild(
    path: Path,
    detector_factory: DetectorFactory,
    progress: Progress | None = None,
    anchors: Anchors | None = None,
) -> LoadedRecipe:
    """Compute memory and threshold anew from references/ with the engine that now inspects."""
    recipe = read_toml(path / "recipe.toml")
    old = Calibration.model_validate_json((path / "calibration.json").read_bytes())
    _verify_references(path, (*old.shots, *old.held_out))
    staging = path.parent / f".{path.name}.part"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(path, staging)
    _calibrate(
        recipe, list(old.shots), list(old.held_out), detector_factory(recipe.mode), staging,
        old.alpha, progress, anchors, duplicates=list(old.duplicates), chosen_by=old.chosen_by,
    )  # fmt: skip
    _replace(staging, path)
    return load_recipe(path.parent, path.name)


def confirm(
    path: Path,
    frames: Iterable[tuple[str, NDArray[np.uint8]]],
    detector_factory: DetectorFactory,
    progress: Progress | None = None,
    anchors: Anchors | None = None,
) -> LoadedRecipe:
    """Add good parts a person confirmed to the held-out set; leaves learning once n suffices."""
    recipe = read_toml(path / "recipe.toml")
    old = Calibration.model_validate_json((path / "calibration.json").read_bytes())
    staging = path.parent / f".{path.name}.part"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(path, staging)
    known = [*old.shots, *old.held_out]
    added, again = _collect(frames, recipe, staging, progress, known=known)
    _calibrate(
        recipe, list(old.shots), [*old.held_out, *added], detector_factory(recipe.mode), staging,
        old.alpha, progress, anchors, duplicates=[*old.duplicates, *again],
        chosen_by=old.chosen_by,
    )  # fmt: skip
    _replace(staging, path)
    return load_recipe(path.parent, path.name)


def open_recipe(
    root: Path,
    name: str,
    detector_factory: DetectorFactory,
    progress: Progress | None = None,
    anchors: Anchors | None = None,
) -> tuple[LoadedRecipe, DetectorLike, str | None]:
    """Load a recipe, its detector bound and ready; (recipe, detector, why it was rebuilt or None)."""
    loaded = load_recipe(root, name)
    detector = detector_factory(loaded.recipe.mode)
    reason = loaded.stale(detector)
    if reason:
        loaded = rebuild(loaded.path, lambda _mode: detector, progress, anchors)
    detector.bind(loaded.memory, loaded.anchors)
    return loaded, detector, reason


def inspect(detector: DetectorLike, recipe: Recipe, frame_bgr: NDArray[np.uint8]) -> Answer:
    """One engine call over the recipe's tiles of a frame (H,W,3) u8; the detector is bound."""
    boxes = recipe.boxes(frame_bgr.shape[:2])
    return detector.run(to_tiles(frame_bgr, boxes), recipe.groups(len(boxes)))


def part_score(answer: Answer) -> float:
    """Score of a part: the largest over its tiles."""
    return float(np.max(answer.score))


def _collect(
    frames: Iterable[tuple[str, NDArray[np.uint8]]],
    recipe: Recipe,
    staging: Path,
    progress: Progress | None,
    known: Iterable[Reference] = (),
) -> tuple[list[Reference], list[str]]:
    """Write the region of each distinct frame to references/; (kept, names of duplicates)."""
    folder = staging / "references"
    folder.mkdir(parents=True, exist_ok=True)
    seen = {reference.sha256 for reference in known}
    offset, kept, duplicates = len(seen), [], []
    for index, (name, frame) in enumerate(frames):
        region = np.ascontiguousarray(cut(frame, recipe.region))
        digest = _pixels_sha(region)
        if digest in seen:
            duplicates.append(name)
            continue
        seen.add(digest)
        file = f"{offset + len(kept):04d}.png"
        if not cv2.imwrite(str(folder / file), region, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise RecipeError(f"{folder / file} cannot be written: is the disk full or read-only?")
        kept.append(Reference(file=file, name=name, sha256=digest))
        _tell(progress, "reading good parts", index + 1, 0)
    return kept, duplicates


def _choose_mode(
    args: RecipeArgs,
    kept: list[Reference],
    count: int,
    factory: DetectorFactory,
    staging: Path,
    defects: Iterable[tuple[str, NDArray[np.uint8]]],
    progress: Progress | None,
    anchors: Anchors | None,
) -> tuple[Mode, str]:
    if args.mode != "auto":
        return args.mode, "asked for"
    bad = [cut(frame, args.region) for _, frame in defects]
    if not bad or count == len(kept):
        return DEFAULT_MODE, "default: no defects and held-out good parts to validate on"
    best, figures = DEFAULT_MODE, {}
    modes: tuple[Mode, ...] = ("bank", "nearest", "position")
    for mode in modes:
        recipe = _local(args.recipe(mode))
        detector = factory(mode)
        _bind(detector, recipe, kept[:count], staging, anchors)
        good = _scores(detector, recipe, kept[count:], staging, progress, f"trying {mode}")
        ill = [part_score(inspect(detector, recipe, frame)) for frame in bad]
        figures[mode] = _auc(good, ill)
        if figures[mode] > figures[best]:
            best = mode
    said = ", ".join(f"{mode} {value:.3f}" for mode, value in figures.items())
    return best, f"Image-AUC on {len(bad)} defects and {len(kept) - count} good parts: {said}"


def _calibrate(
    recipe: Recipe,
    shots: list[Reference],
    held_out: list[Reference],
    detector: DetectorLike,
    staging: Path,
    alpha: float,
    progress: Progress | None,
    anchors: Anchors | None,
    *,
    duplicates: list[str],
    chosen_by: str,
) -> Calibration:
    """Memory, held-out scores and threshold of one engine, written into `staging`."""
    local = _local(recipe)
    memory, texts = _bind(detector, local, shots, staging, anchors)
    memory_file = staging / "memory.safetensors"
    save_file(
        {**dict(zip(("tap_a", "tap_b", "tap_c"), memory.taps, strict=True)), "anchors": texts},
        memory_file,
    )
    scores = _scores(detector, local, held_out, staging, progress, "scoring held-out parts")
    looks = [measure(_read(staging, reference)) for reference in (*shots, *held_out)]
    threshold = conformal_threshold(scores, alpha)
    learning = threshold.learning
    final = recipe.model_copy(
        update={
            "learning": learning,
            "bundle_sha": detector.bundle.sha,
            "engine_sha": detector.engine_sha,
            "precision": detector.precision,
        }
    )
    calibration = Calibration(
        engine_sha=detector.engine_sha,
        precision=detector.precision,
        fingerprint=final.fingerprint(),
        memory_sha256=file_sha256(memory_file),
        alpha=alpha,
        n=threshold.n,
        k=threshold.k,
        threshold=threshold.value,
        learning=learning,
        guarantee=threshold.guarantee(),
        interval_parts=INTERVAL_PARTS,
        interval=_interval(threshold),
        scores=tuple(scores),
        shots=tuple(shots),
        held_out=tuple(held_out),
        duplicates=tuple(duplicates),
        plausible=Plausibility.from_looks(looks),
        chosen_by=chosen_by,
    )
    write_toml(final, staging / "recipe.toml")
    (staging / "calibration.json").write_text(calibration.model_dump_json(indent=1) + "\n")
    picture = draw_histogram(scores, threshold.value, final.name, threshold.guarantee())
    cv2.imwrite(str(staging / "histogram.png"), picture)
    return calibration


def _bind(
    detector: DetectorLike,
    recipe: Recipe,
    shots: list[Reference],
    staging: Path,
    anchors: Anchors | None,
) -> tuple[Memory, NDArray[np.float32]]:
    """Tokens of the references by this very engine, zero-shot; then bound as its memory."""
    encode = anchors or TextEncoder.open(detector.bundle).anchors
    pair = np.asarray(encode(recipe.noun, recipe.phrases), np.float32)[None]
    detector.bind(None, pair)
    tokens: list[list[NDArray[np.float32]]] = [[], [], []]
    for reference in shots:
        frame = _read(staging, reference)
        tiles = to_tiles(frame, recipe.boxes(frame.shape[:2]))
        answer = detector.run(tiles, np.zeros(len(tiles), np.int64))
        for tap, token in zip(tokens, answer.tokens, strict=True):
            tap.append(np.array(token, np.float32))
    memory = Memory(taps=tuple(_grouped(tap, recipe.mode) for tap in tokens))
    texts = np.ascontiguousarray(np.repeat(pair, memory.taps[0].shape[0], axis=0))
    detector.bind(memory, texts)
    return memory, texts


def _grouped(tap: list[NDArray[np.float32]], mode: Mode) -> NDArray[np.float32]:
    """N arrays (B,225,D) to (G,N,225,D): a memory per tile in `position`, else one for all."""
    stacked = np.stack(tap)
    if mode == "position":
        return np.ascontiguousarray(stacked.transpose(1, 0, 2, 3))
    return np.ascontiguousarray(stacked.reshape(1, -1, *stacked.shape[2:]))


def _scores(
    detector: DetectorLike,
    recipe: Recipe,
    parts: list[Reference],
    staging: Path,
    progress: Progress | None,
    stage: str,
) -> list[float]:
    scores = []
    for index, reference in enumerate(parts):
        scores.append(part_score(inspect(detector, recipe, _read(staging, reference))))
        _tell(progress, stage, index + 1, len(parts))
    return scores


def _local(recipe: Recipe) -> Recipe:
    """The same recipe over a saved reference, which already is the region."""
    return recipe.model_copy(update={"region": None})


def _read(folder: Path, reference: Reference) -> NDArray[np.uint8]:
    path = folder / "references" / reference.file
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise RecipeError(f"{path} is missing or damaged: enrol the recipe again")
    return np.asarray(image, np.uint8)


def _verify_references(path: Path, references: Iterable[Reference]) -> None:
    for reference in references:
        if _pixels_sha(_read(path, reference)) != reference.sha256:
            raise RecipeError(
                f"{path / 'references' / reference.file} is not the image that was enrolled: "
                "enrol the recipe again"
            )


def _replace(staging: Path, final: Path) -> None:
    """Put the finished folder in place; the older recipe stays as `.<name>.previous`."""
    previous = final.parent / f".{final.name}.previous"
    shutil.rmtree(previous, ignore_errors=True)
    if final.exists():
        final.rename(previous)
    staging.rename(final)


def _interval(threshold: Threshold) -> tuple[float, float] | None:
    if threshold.learning:
        return None
    return reject_interval(threshold.n, threshold.k, INTERVAL_PARTS)


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
    )


def _auc(good: list[float], ill: list[float]) -> float:
    """Probability that a defect scores above a good part, ties half."""
    pairs = np.asarray(ill)[:, None] - np.asarray(good)[None, :]
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


def _pixels_sha(image: NDArray[np.uint8]) -> str:
    head = f"{image.shape}{image.dtype}".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)
