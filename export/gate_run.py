"""Runs the gate over a draft bundle and decides which detectors ship and which is the default."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.bundle import EngineEntry
from engines.detector import Answer, Detector, Memory
from engines.errors import EngineError
from engines.text import TextEncoder
from export.bundle_writer import Draft
from export.gate import Findings, Outcome, compare, inspect, latency_ms, torch_answer
from export.gate_frames import GateSet, gate_sets
from export.graph import WeightStore
from export.model import SpgddGpt
from export.progress import Progress

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class TorchRunner:
    """PyTorch behind the same three calls as a detector."""

    def __init__(self, model: SpgddGpt, anchors: F32, mode: str) -> None:
        self.model, self.anchors, self.mode = model, anchors, mode
        self.memory: Memory | None = None

    def bind(self, memory: Memory | None) -> None:
        """Set the memory."""
        self.memory = memory

    def run(self, tiles: U8) -> Answer:
        """Tiles -> answer."""
        return torch_answer(self.model, tiles, self.anchors, self.memory, self.mode)


def measure(
    draft: Draft, entry: EngineEntry, sets: list[GateSet], anchors: F32, reference: Outcome
) -> tuple[Findings, float]:
    """Figures of one engine and its latency here (ms, one tile, few-shot)."""
    detector = Detector(draft.bundle(), entry, "ort-cpu", 0)
    outcome = inspect(
        sets, detector.run, lambda memory: detector.bind(memory, anchors), detector.run
    )
    frames = [f for s in sets for f in s.frames]
    findings = compare(frames, reference, outcome, entry.precision)
    return findings, latency_ms(detector.run, frames[0].tile)


def run_gate(
    draft: Draft, model: SpgddGpt, store: WeightStore, data: Path | None, progress: Progress
) -> None:
    """Measure every detector; keep figures, drop what fails, mark the fastest as default.

    Raises EngineError when an FP32 engine fails: then the export itself is wrong.
    """
    torch.set_num_threads(2)
    sets = gate_sets(data)
    anchors = TextEncoder.open(draft.bundle()).anchors("object")[None]
    kept: list[EngineEntry] = [e for e in draft.engines if e.kind != "detector"]
    for mode in ("position", "nearest", "bank"):
        runner = TorchRunner(model, anchors, mode)
        reference = inspect(sets, runner.run, runner.bind, runner.run)
        passed: list[EngineEntry] = []
        for entry in [e for e in draft.engines if e.mode == mode and e.kind == "detector"]:
            findings, ms = measure(draft, entry, sets, anchors, reference)
            figures = {k: _short(v) for k, v in findings.figures.items()}
            if findings.passed:
                passed.append(entry.model_copy(update={"parity": figures, "latency_ms": ms}))
            elif entry.precision == "fp32":
                raise EngineError(f"{entry.file} fails the gate: {'; '.join(findings.failures)}")
            else:
                draft.rejected.append(_rejection(entry, figures, ms, findings))
                (draft.out / entry.file).unlink()
            verdict = "passed" if findings.passed else "REFUSED"
            progress.step(f"gate {entry.file}: {verdict}, {ms:.1f} ms")
        fastest = min(passed, key=lambda e: e.latency_ms or 0)
        kept += [e.model_copy(update={"default": e is fastest}) for e in passed]
    draft.engines = kept
    draft.gate = {"sets": [s.name for s in sets], "frames": sum(len(s.frames) for s in sets)}


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _rejection(
    entry: EngineEntry, figures: dict[str, Any], ms: float, findings: Findings
) -> dict[str, Any]:
    return {
        "file": entry.file,
        "precision": entry.precision,
        "mode": entry.mode,
        "latency_ms": ms,
        "figures": figures,
        "reasons": list(findings.failures),
    }
