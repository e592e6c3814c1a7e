"""Runs the gate over a draft bundle and decides which detectors ship and which is the default."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engines.bundle import Bundle, EngineEntry
from engines.detector import Answer, Detector, Memory
from engines.errors import EngineError
from engines.text import TextEncoder
from export.build_gpu import EMULATED, HALVES
from export.bundle_writer import Draft
from export.drift import first_drift
from export.gate import Findings, Outcome, compare, inspect, shown, torch_answer
from export.gate_frames import GateSet
from export.gate_parts import Bench, check_parts, torch_anchors
from export.model import SpgddGpt
from export.model.clip import Encoded
from export.model.memory import MODES, Mode
from export.progress import Progress

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
MARGIN = 0.9
"""An INT8 engine ships, as the default, only if it takes at most this share of FP32's time: less is
noise or not worth the loss of exactness."""
ROUNDS = 25


class TorchRunner:
    """PyTorch behind the same calls as a detector."""

    def __init__(self, model: SpgddGpt, anchors: F32) -> None:
        self.model, self.anchors = model, anchors
        self.mode: Mode = "position"
        self.memory: Memory | None = None
        self._seen: dict[bytes, Encoded] = {}

    def bind(self, memory: Memory | None) -> None:
        """Set the memory."""
        self.memory = memory

    def run(self, tiles: U8) -> Answer:
        """Tiles -> answer. The tower's output is kept per tile: it is the same in every mode."""
        key = hashlib.sha256(tiles.tobytes()).digest()
        if key not in self._seen:
            pixels = self.model.normalise(torch.from_numpy(tiles))
            with torch.inference_mode():
                self._seen[key] = self.model.encode_image(pixels)
        return torch_answer(self.model, self._seen[key], self.anchors, self.memory, self.mode)


def latencies(
    detectors: list[Detector], tile: U8, rounds: int = ROUNDS
) -> list[tuple[float, float]]:
    """Median and least ms of one tile per detector, interleaved so that load hits all alike.

    The detectors stay bound as the gate left them (few-shot memory).
    """
    times: list[list[float]] = [[] for _ in detectors]
    for _ in range(rounds + 2):
        for own, detector in zip(times, detectors, strict=True):
            start = time.perf_counter()
            detector.run(tile[None])
            own.append((time.perf_counter() - start) * 1e3)
    return [(round(float(np.median(own[2:])), 3), round(min(own[2:]), 3)) for own in times]


def emulated(bundle: Bundle, entry: EngineEntry, runtime: str) -> tuple[Bundle, EngineEntry]:
    """On a CPU, the emulated twin of an FP16 or BF16 engine; else the engine itself."""
    if entry.precision not in HALVES or runtime != "ort-cpu":
        return bundle, entry
    name = str(Path(entry.file).with_suffix(EMULATED))
    files = {**bundle.manifest.files, name: ""}
    manifest = bundle.manifest.model_copy(update={"files": files})
    return replace(bundle, manifest=manifest), entry.model_copy(update={"file": name})


def judge(
    bundle: Bundle,
    entry: EngineEntry,
    sets: list[GateSet],
    anchors: F32,
    reference: Outcome,
    runtime: str = "ort-cpu",
) -> tuple[Detector, Findings]:
    """Enrol and inspect every set with one engine; compare with PyTorch's outcome."""
    detector = Detector(*emulated(bundle, entry, runtime), runtime, 0)
    mode: Mode | None = entry.mode
    outcome = inspect(sets, detector.run, lambda m: detector.bind(m, anchors), detector.run, mode)
    frames = [f for s in sets for f in s.frames]
    return detector, compare(frames, reference, outcome, entry.precision)


def _settle(
    draft: Draft, entry: EngineEntry, findings: Findings, ms: float | None, tiles: list[U8]
) -> EngineEntry | None:
    """The entry with its figures, or None when it is refused (FP32 refused: EngineError)."""
    figures = {name: shown(value) for name, value in findings.figures.items()}
    if findings.passed:
        return entry.model_copy(update={"parity": figures, "latency_ms": ms})
    if entry.precision == "fp32":
        raise EngineError(f"{entry.file} fails the gate: {'; '.join(findings.failures)}")
    plain = draft.out / f"detector.{entry.mode}.onnx"
    tile = tiles[findings.worst]
    bent = emulated(draft.bundle(), entry, "ort-cpu")[1].file
    layer = first_drift(plain, draft.out / bent, tile, draft.config)
    reasons = [*findings.failures, layer]
    measured = entry.model_copy(update={"parity": figures, "latency_ms": ms})
    _refuse(draft, measured, reasons)
    return None


def _refuse(draft: Draft, entry: EngineEntry, reasons: list[str]) -> None:
    """Take the engine out of the bundle and keep its figures with the reasons."""
    kept = entry.model_dump(include={"file", "precision", "mode", "latency_ms", "parity"})
    draft.rejected.append({**kept, "reasons": reasons})
    draft.engines = [e for e in draft.engines if e.file != entry.file]
    (draft.out / entry.file).unlink()


def _default(passed: list[EngineEntry]) -> str:
    """File of the engine that becomes the default: the fastest beyond the margin, else FP32.

    By the median and by the least time: on a busy machine medians alone preferred INT8 by a third
    that is 5 % of its time where nothing else runs.
    """

    def times(entry: EngineEntry) -> NDArray[np.float64]:
        return np.array([entry.latency_ms, entry.parity["least_ms"]], np.float64)

    plain = next(e for e in passed if e.precision == "fp32")
    faster = [e for e in passed if (times(e) <= MARGIN * times(plain)).all()]
    return min(faster, key=lambda e: float(times(e)[1]), default=plain).file


def _gate_mode(
    draft: Draft,
    mode: Mode,
    sides: tuple[TorchRunner, F32],
    sets: list[GateSet],
    progress: Progress,
) -> list[EngineEntry]:
    runner, anchors = sides
    runner.mode = mode
    reference = inspect(sets, runner.run, runner.bind, runner.run)
    entries = [e for e in draft.engines if e.mode == mode and e.kind == "detector"]
    judged = [judge(draft.bundle(), e, sets, anchors, reference) for e in entries]
    tiles = [f.tile for s in sets for f in s.frames]
    timed = iter(latencies([d for d, _ in judged if d.precision not in HALVES], tiles[0]))
    passed: list[EngineEntry] = []
    for entry, (_, findings) in zip(entries, judged, strict=True):
        ms, findings.figures["least_ms"] = (
            (None, None) if entry.precision in HALVES else next(timed)
        )
        settled = _settle(draft, entry, findings, ms, tiles)
        passed += [settled] if settled else []
        verdict = "passed" if settled else f"REFUSED: {'; '.join(draft.rejected[-1]['reasons'])}"
        took = "rounding emulated" if ms is None else f"{ms:.1f} ms"
        progress.step(f"gate {entry.file}: {took}, {verdict}")
    best = _default([e for e in passed if e.precision not in HALVES])
    stays = ("fp32", *HALVES)
    for entry in [e for e in passed if e.precision not in stays and e.file != best]:
        _refuse(draft, entry, [f"passed, but no faster: {entry.latency_ms} ms"])
    kept = [e for e in passed if e.precision in stays or e.file == best]
    return [e.model_copy(update={"default": e.file == best}) for e in kept]


def run_gate(draft: Draft, model: SpgddGpt, sets: list[GateSet], progress: Progress) -> None:
    """Measure every part and detector; keep figures, drop what fails, mark the fastest as default.

    Raises EngineError when a single part or an FP32 engine fails: then the export itself is wrong.
    """
    # Each side has anchors of its own: text.onnx may not vouch for itself.
    known = torch_anchors(model)
    kept = check_parts(draft, Bench.of(model, sets, known), progress)
    runner = TorchRunner(model, known[None])
    anchors = TextEncoder.open(draft.bundle()).anchors("object")[None]
    for mode in MODES:
        kept += _gate_mode(draft, mode, (runner, anchors), sets, progress)
    draft.engines = kept
    draft.drop_unused()
    draft.gate = {"sets": [s.name for s in sets], "frames": sum(len(s.frames) for s in sets)}
