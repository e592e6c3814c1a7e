"""Boot self-test: the loaded engine must give the raw outputs the bundle was built with."""

from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from engines.bundle import Bundle
from engines.detector import Answer, Detector, Memory
from engines.errors import EngineError
from engines.preprocess import tile_boxes, to_tiles

OUTPUTS = "reference/outputs.safetensors"
FRAMES = ("reference/frame0.png", "reference/frame1.png", "reference/frame2.png")
CELL = 16
"""Pixels of one cell of the map that is compared: a mean a cell, 15 x 15 of them."""


@dataclass(frozen=True)
class SelfTestReport:
    """Largest deviation from the reference and the tolerance it was held against."""

    engine: str
    precision: str
    runtime: str
    max_error: float
    tolerance: float
    note: str = ""


def read_frame(bundle: Bundle, name: str) -> NDArray[np.uint8]:
    """A reference frame, BGR u8 (H,W,3)."""
    image = cv2.imread(str(bundle.file(name)), cv2.IMREAD_COLOR)
    if image is None:
        raise EngineError(f"bundle {bundle.path}: {name} is not a picture; copy the bundle again")
    return cast(NDArray[np.uint8], image)


def reference_run(detector: Detector, anchors: NDArray[np.float32]) -> tuple[Answer, Answer]:
    """Zero-shot and few-shot answers on the bundle's frames (the first frame is the memory)."""
    bundle = detector.bundle
    frames = [read_frame(bundle, name) for name in FRAMES]
    tiles = np.concatenate([to_tiles(f, tile_boxes(f.shape[:2], None, (1, 1))) for f in frames])
    detector.bind(None, anchors[None])
    zero = detector.run(tiles, np.zeros(len(tiles), np.int64))
    detector.bind(Memory(tuple(t[None, :1] for t in zero.tokens)), anchors[None])
    return zero, detector.run(tiles, np.zeros(len(tiles), np.int64))


def compared(answer: Answer) -> dict[str, NDArray[np.float32]]:
    """What the test looks at: all but the tokens (their distances are), the map by cells."""
    whole = {name: getattr(answer, name) for name in ("score", "p", "distances", "cls", "f_out")}
    count, high, wide = answer.map.shape
    cells = answer.map.reshape(count, high // CELL, CELL, wide // CELL, CELL)
    return {**whole, "map": cells.mean(axis=(2, 4))}


def self_test(detector: Detector) -> SelfTestReport:
    """Run the reference frames; raises EngineError (exit 5) when raw outputs differ.

    Frames are full-size, so the resize is tested too. Binding is left at the reference memory:
    bind again afterwards.
    """
    stored = load_file(detector.bundle.file(OUTPUTS))
    answers = reference_run(detector, stored["anchors"])
    errors = {
        f"{case}-shot {name}": _error(value, stored, f"{detector.entry.file}/{case}/{name}")
        for case, answer in zip(("zero", "few"), answers, strict=True)
        for name, value in compared(answer).items()
    }
    where = max(errors, key=lambda name: errors[name])
    worst, tolerance = errors[where], detector.entry.self_test_atol
    if not worst <= tolerance:
        raise EngineError(
            f"self-test of {detector.entry.file} on {detector.runtime} failed: {where} differs by "
            f"{worst:.3g} from the bundle's reference (allowed {tolerance:.3g})"
        )
    return SelfTestReport(
        detector.entry.file, detector.precision, detector.runtime, worst, tolerance
    )


def _error(found: NDArray[np.float32], stored: dict[str, Any], key: str) -> float:
    """Largest deviation; infinite where either side is not a number (NaN hides from `max`)."""
    if key not in stored:
        raise EngineError(f"{OUTPUTS} has no '{key}': it is of another version, build the bundle")
    if found.shape != stored[key].shape:
        return float("inf")
    error = float(np.abs(found - stored[key]).max())
    return error if np.isfinite(error) else float("inf")


def open_verified(
    bundle: Bundle, mode: str, runtime: str = "auto", threads: int = 0
) -> tuple[Detector, SelfTestReport]:
    """The default engine that passes its self-test here.

    An INT8 engine that fails (U8S8 can saturate without VNNI) falls back to FP32 and the report's
    `note` says so; a failing FP32 engine raises EngineError.
    """
    detector = Detector.open(bundle, mode, runtime, threads)
    try:
        report = self_test(detector)
        return detector, replace(report, note="; ".join(detector.refused))
    except EngineError as error:
        if detector.precision == "fp32":
            raise
        plain = Detector.open(bundle, mode, runtime, threads, precision="fp32")
        report = self_test(plain)
        note = f"{detector.precision} refused, FP32 is used: {error}"
        return plain, replace(report, note=note)
