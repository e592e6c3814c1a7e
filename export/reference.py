"""Raw outputs on the bundle's own frames: what the boot self-test holds an engine against."""

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from engines.bundle import Bundle, EngineEntry
from engines.detector import Answer, Detector
from engines.errors import EngineError
from engines.selftest import OUTPUTS, compared, reference_run
from engines.text import TextEncoder
from export.build_gpu import HALVES
from export.bundle_writer import Draft
from export.gate_run import emulated

GPU_MARGIN, GPU_LEAST = 4.0, 0.01
"""A GPU may be off by this many times what emulated rounding is off, and always by the least: its
sums run in another order, and sqrt(2-2cos) amplifies near zero."""


def _source(bundle: Bundle, entry: EngineEntry) -> EngineEntry:
    """FP32 is what a GPU engine should give; its own rounding differs from GPU to GPU."""
    if entry.precision not in HALVES:
        return entry
    return next(e for e in bundle.engines("detector", entry.mode) if e.precision == "fp32")


def _off(one: Answer, other: Answer) -> float:
    twin = compared(other)
    return float(
        np.max([np.abs(value - twin[name]).max() for name, value in compared(one).items()])
    )


def _stored(entry: EngineEntry, answers: tuple[Answer, Answer]) -> dict[str, NDArray[np.float32]]:
    """What the self-test compares, by name. EngineError where it is no number."""
    made = {
        f"{entry.file}/{case}/{name}": value
        for case, answer in zip(("zero", "few"), answers, strict=True)
        for name, value in compared(answer).items()
    }
    bad = [name for name, value in made.items() if not np.isfinite(value).all()]
    if bad:
        raise EngineError(
            f"{bad[0]} on the reference frames is not finite: {entry.file} cannot be shipped"
        )
    return made


def _gpu_atol(answers: tuple[Answer, Answer], twin: tuple[Answer, Answer]) -> float:
    """Tolerance of an engine for GPUs, from what emulated rounding is off on the CPU."""
    # np.max, not max(): that one drops NaN, or not, by its place
    off = GPU_MARGIN * float(np.max([_off(a, b) for a, b in zip(answers, twin, strict=True)]))
    if not np.isfinite(off):
        raise EngineError("an engine for GPUs gives numbers that are not finite: build without it")
    return float(f"{max(GPU_LEAST, off):.2g}")


def write_reference(draft: Draft) -> None:
    """reference/outputs.safetensors, and the self-test tolerance of the engines for GPUs.

    Raises EngineError when an engine's answer is not finite there: no self-test could be held
    against it.
    """
    bundle = draft.bundle()
    anchors = TextEncoder.open(bundle).anchors("object")
    stored, engines = {"anchors": anchors}, []
    for listed in draft.engines:
        entry = listed
        if entry.kind != "detector":
            engines.append(entry)
            continue
        answers = reference_run(Detector(bundle, _source(bundle, entry), "ort-cpu", 1), anchors)
        stored |= _stored(entry, answers)
        if entry.precision in HALVES:
            twin = Detector(*emulated(bundle, entry, "ort-cpu"), "ort-cpu", 1)
            atol = _gpu_atol(answers, reference_run(twin, anchors))
            entry = entry.model_copy(update={"self_test_atol": atol})
        engines.append(entry)
    draft.engines = engines
    save_file(stored, draft.out / OUTPUTS)
