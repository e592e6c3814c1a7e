"""Raw outputs on the bundle's own frames: what the boot self-test holds an engine against."""

import numpy as np
from safetensors.numpy import save_file

from engines.bundle import Bundle, EngineEntry
from engines.detector import Answer, Detector
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


def write_reference(draft: Draft) -> None:
    """reference/outputs.safetensors, and the self-test tolerance of the engines for GPUs."""
    bundle = draft.bundle()
    anchors = TextEncoder.open(bundle).anchors("object")
    stored, engines = {"anchors": anchors}, []
    for listed in draft.engines:
        entry = listed
        if entry.kind != "detector":
            engines.append(entry)
            continue
        answers = reference_run(Detector(bundle, _source(bundle, entry), "ort-cpu", 1), anchors)
        for case, answer in zip(("zero", "few"), answers, strict=True):
            for name, value in compared(answer).items():
                stored[f"{entry.file}/{case}/{name}"] = value
        if entry.precision in HALVES:
            twin = Detector(*emulated(bundle, entry, "ort-cpu"), "ort-cpu", 1)
            pairs = zip(answers, reference_run(twin, anchors), strict=True)
            off = GPU_MARGIN * max(_off(a, b) for a, b in pairs)
            atol = float(f"{max(GPU_LEAST, off):.2g}")
            entry = entry.model_copy(update={"self_test_atol": atol})
        engines.append(entry)
    draft.engines = engines
    save_file(stored, draft.out / OUTPUTS)
