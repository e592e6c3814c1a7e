"""Memory, held-out scores and threshold of one engine over a folder of references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from calibration.coreset import reduce_memory
from calibration.histogram import draw_histogram
from calibration.plausible import Plausibility, measure
from calibration.recipe import Calibration, Mode, Recipe, Reference, file_sha256, write_toml
from calibration.references import Progress, read, tell
from calibration.thresholds import Threshold, conformal_threshold, reject_interval
from calibration.trust import carry, reference_trust
from engines.bundle import Bundle
from engines.detector import Answer, Memory
from engines.facts import small_heat, usual_heat
from engines.preprocess import stitch, to_tiles
from engines.text import TextEncoder

# The interval is stated for this many fresh parts; reject_interval gives it for any other number.
INTERVAL_PARTS = 100

Anchors = Callable[[str, tuple[str, ...]], NDArray[np.float32]]


class DetectorLike(Protocol):
    """The part of engines.detector.Detector that enrolment uses."""

    engine_sha: str
    precision: str
    bundle: Bundle

    def bind(self, memory: Memory | None, anchors: NDArray[np.float32]) -> None:
        """Bind memory (None: zero-shot) and anchors f32 (G,2,E)."""

    def run(self, tiles: NDArray[np.uint8], group: NDArray[np.int64] | None = None) -> Answer:
        """Answer for tiles u8 (B,240,240,3) RGB, each with its memory group i64 (B,)."""


DetectorFactory = Callable[[Mode], DetectorLike]


@dataclass(frozen=True)
class Parts:
    """The good parts of one recipe: those remembered and those held out for the threshold."""

    shots: Sequence[Reference]
    held_out: Sequence[Reference]
    duplicates: Sequence[str] = ()
    chosen_by: str = ""
    alpha: float = 0.05


@dataclass(frozen=True)
class Workbench:
    """A folder in the making, and how to report and to encode phrases while working in it."""

    folder: Path
    progress: Progress | None = None
    anchors: Anchors | None = None

    def calibrate(self, recipe: Recipe, parts: Parts, detector: DetectorLike) -> Calibration:
        """Write memory, calibration.json, recipe.toml and histogram.png for this detector."""
        memory, texts = self.bind(detector, recipe, parts.shots)
        memory_sha = _save_memory(self.folder / "memory.safetensors", memory, texts)
        scores, heats = self.judged(detector, recipe, parts.held_out, "scoring held-out parts")
        threshold = conformal_threshold(scores, parts.alpha)
        final = recipe.model_copy(
            update={
                "learning": threshold.learning,
                "bundle_sha": detector.bundle.sha,
                "engine_sha": detector.engine_sha,
                "precision": detector.precision,
            }
        )
        looks = [measure(read(self.folder, r)) for r in (*parts.shots, *parts.held_out)]
        calibration = Calibration(
            engine_sha=detector.engine_sha,
            precision=detector.precision,
            fingerprint=final.fingerprint(),
            memory_sha256=memory_sha,
            alpha=parts.alpha,
            n=threshold.n,
            k=threshold.k,
            threshold=threshold.value,
            learning=threshold.learning,
            guarantee=threshold.guarantee(),
            interval_parts=INTERVAL_PARTS,
            interval=_interval(threshold),
            scores=tuple(scores),
            shots=tuple(parts.shots),
            held_out=tuple(parts.held_out),
            duplicates=tuple(parts.duplicates),
            plausible=Plausibility.from_looks(looks),
            trust=float(np.linalg.norm(texts[0, 1])),
            usual=tuple(float(v) for v in usual_heat(heats).ravel()) if heats else (),
            chosen_by=parts.chosen_by,
            region=final.region,
        )
        self._write(final, calibration)
        return calibration

    def bind(
        self, detector: DetectorLike, recipe: Recipe, shots: Sequence[Reference]
    ) -> tuple[Memory, NDArray[np.float32]]:
        """Tokens of the shots by this very engine, zero-shot; then bound as its memory."""
        encode = self.anchors or TextEncoder.open(detector.bundle).anchors
        pair = np.asarray(encode(recipe.noun, recipe.phrases), np.float32)[None]
        detector.bind(None, pair)
        per_shot, seen = [], []
        for reference in shots:
            tiles = _tiles(recipe, read(self.folder, reference))
            answer = detector.run(tiles, np.zeros(len(tiles), np.int64))
            per_shot.append([np.array(token, np.float32) for token in answer.tokens])
            seen.append(np.array(answer.p))
        tap_a, tap_b, tap_c = (_grouped(tap, recipe.mode) for tap in zip(*per_shot, strict=True))
        memory = Memory(taps=(tap_a, tap_b, tap_c))
        if recipe.mode == "bank" and 0 < recipe.coreset < tap_a.shape[1]:
            memory, _ = reduce_memory(memory, recipe.coreset)
        pair = carry(pair, reference_trust(np.concatenate(seen)))
        texts = np.ascontiguousarray(np.repeat(pair, tap_a.shape[0], axis=0))
        detector.bind(memory, texts)
        return memory, texts

    def scores(
        self, detector: DetectorLike, recipe: Recipe, parts: Sequence[Reference], stage: str
    ) -> list[float]:
        """Part scores of saved references with the detector as it is bound."""
        return self.judged(detector, recipe, parts, stage)[0]

    def judged(
        self, detector: DetectorLike, recipe: Recipe, parts: Sequence[Reference], stage: str
    ) -> tuple[list[float], list[NDArray[np.float32]]]:
        """Part scores of saved references, and their maps over the region as small grids."""
        local, scores, heats = _local(recipe), list[float](), []
        for index, reference in enumerate(parts):
            image = read(self.folder, reference)
            answer = inspect(detector, local, image)
            scores.append(part_score(answer))
            heats.append(small_heat(stitch(answer.map, local.boxes(image.shape[:2]), image.shape)))
            tell(self.progress, stage, index + 1, len(parts))
        return scores, heats

    def _write(self, recipe: Recipe, calibration: Calibration) -> None:
        write_toml(recipe, self.folder / "recipe.toml")
        text = calibration.model_dump_json(indent=1) + "\n"
        (self.folder / "calibration.json").write_text(text, encoding="utf-8")
        picture = draw_histogram(
            calibration.scores, calibration.threshold, recipe.name, calibration.guarantee
        )
        cv2.imwrite(str(self.folder / "histogram.png"), picture)


def inspect(detector: DetectorLike, recipe: Recipe, frame_bgr: NDArray[np.uint8]) -> Answer:
    """One engine call over the recipe's tiles of a frame (H,W,3) u8; the detector is bound."""
    boxes = recipe.boxes(frame_bgr.shape[:2])
    return detector.run(to_tiles(frame_bgr, boxes), recipe.groups(len(boxes)))


def part_score(answer: Answer) -> float:
    """Score of a part: the largest over its tiles."""
    return float(np.max(answer.score))


def _local(recipe: Recipe) -> Recipe:
    """The same recipe over a saved reference, which already is the region."""
    return recipe.model_copy(update={"region": None})


def _tiles(recipe: Recipe, region_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return to_tiles(region_bgr, _local(recipe).boxes(region_bgr.shape[:2]))


def _grouped(tap: Sequence[NDArray[np.float32]], mode: Mode) -> NDArray[np.float32]:
    """N arrays (B,225,D) to (G,N,225,D): a memory per tile in `position`, else one for all."""
    stacked = np.stack(tap)
    if mode == "position":
        return np.ascontiguousarray(stacked.transpose(1, 0, 2, 3))
    return np.ascontiguousarray(stacked.reshape(1, -1, *stacked.shape[2:]))


def _save_memory(path: Path, memory: Memory, texts: NDArray[np.float32]) -> str:
    named = dict(zip(("tap_a", "tap_b", "tap_c"), memory.taps, strict=True))
    save_file({**named, "anchors": texts}, path)
    return file_sha256(path)


def _interval(threshold: Threshold) -> tuple[float, float] | None:
    if threshold.learning:
        return None
    return reject_interval(threshold.n, threshold.k, INTERVAL_PARTS)
