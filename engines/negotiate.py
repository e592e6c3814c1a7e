"""Which engine on which runtime: measured once on this machine, among what passed the gate.

No table of processors decides: on one AVX2 machine ONNX Runtime is ahead of OpenVINO, with
AVX-512 VNNI it is the other way round. The decision is kept, because a recipe belongs to the
engine that enrolled it: deciding anew at every start could flip between two equally fast ones.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from engines.bundle import Bundle, EngineEntry
from engines.cuda import gpu_here, missing
from engines.errors import EngineError
from engines.session import RuntimeInfo, runtimes, thread_count

ROUNDS = 9
MARGIN = 0.95
"""A later candidate must be at least 5 % faster than the one before it to be taken: below that the
clock decides, not the engine."""


@dataclass(frozen=True)
class Choice:
    """One candidate: `ms` is the best per tile, None when it cannot be used (see `remark`)."""

    file: str
    runtime: str
    precision: str
    ms: float | None
    remark: str = ""


@dataclass(frozen=True)
class Negotiated:
    """The engine and runtime to use here; `refused`: those that cannot be used, with the reason."""

    entry: EngineEntry
    runtime: str
    refused: tuple[str, ...] = ()


Clock = Callable[[EngineEntry, str], float]
"""Milliseconds of an engine on a runtime; raises EngineError when it must not be used."""


def cache_folder() -> Path:
    """Where decisions are kept: $STATION_CACHE or ~/.cache/inspection-station."""
    return Path(os.environ.get("STATION_CACHE", Path.home() / ".cache" / "inspection-station"))


def candidates(
    bundle: Bundle, mode: str, infos: Sequence[RuntimeInfo], precision: str | None = None
) -> list[tuple[EngineEntry, str]]:
    """Every shipped engine of the mode on every available runtime; the bundle's default first."""
    shipped = [e for e in bundle.engines("detector", mode) if e.passed]
    return [
        (entry, info.name)
        for entry in shipped
        for info in infos
        if info.available and entry.precision.split("-")[0] in info.precisions
        if precision in (None, entry.precision)
    ]


def decide(options: Sequence[tuple[EngineEntry, str]], clock: Clock) -> tuple[Choice, list[Choice]]:
    """The fastest that can be used, and all with their figures.

    Raises EngineError with every reason when none can.
    """
    tried = []
    for entry, runtime in options:
        try:
            ms, remark = clock(entry, runtime), ""
        except EngineError as error:
            ms, remark = None, str(error)
        tried.append(Choice(entry.file, runtime, entry.precision, ms, remark))
    best: Choice | None = None
    for choice in tried:
        if choice.ms is not None and (best is None or choice.ms < MARGIN * (best.ms or 0.0)):
            best = choice
    if best is None:
        reasons = "; ".join(f"{c.file} on {c.runtime}: {c.remark}" for c in tried)
        raise EngineError(f"no engine of the bundle can be used here: {reasons or 'none fits'}")
    return best, tried


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [x for x in text.splitlines() if x.startswith(("model name", "flags"))][:2]
    return sha256("".join(lines).encode()).hexdigest()[:12] if lines else platform.processor()


def _key(bundle: Bundle, options: Sequence[tuple[EngineEntry, str]]) -> str:
    """The number of threads is no part of it: re-inspection gives each of its processes one

    thread, and a recipe must find the engine that enrolled it.
    """
    packages = []
    for name in ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx_cu13"):
        try:
            packages.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    facts = [[f"{bundle.identity(e)} {e.precision} {r}" for e, r in options], packages]
    gpu = vars(gpu_here()) if not missing() else None
    text = json.dumps([facts, _processor(), thread_count(), gpu])
    return sha256(text.encode()).hexdigest()[:16]


def _clock(bundle: Bundle, mode: str) -> Clock:
    from engines.detector import Detector
    from engines.preprocess import tile_boxes, to_tiles
    from engines.selftest import FRAMES, read_frame, self_test

    frame = read_frame(bundle, FRAMES[1])
    tiles = to_tiles(frame, tile_boxes(frame.shape[:2], None, (1, 1)))

    def clock(entry: EngineEntry, runtime: str) -> float:
        detector = Detector(bundle, entry, runtime)
        self_test(detector)  # leaves the reference memory bound: few-shot is what is timed
        times = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            detector.run(tiles)
            times.append(time.perf_counter() - begin)
        return round(min(times) * 1e3, 3)  # the least disturbed: candidates run one by one

    return clock


def negotiate(bundle: Bundle, mode: str, precision: str | None = None) -> Negotiated:
    """What to use here: the kept decision, else measured now and kept.

    With one candidate nothing is measured. Raises EngineError when none can be used.
    """
    options = candidates(bundle, mode, runtimes(), precision)
    if not options:
        raise EngineError(
            f"bundle {bundle.path} has no detector for mode '{mode}'"
            f"{f' in {precision}' if precision else ''} that a runtime of this machine can run"
        )
    if len(options) == 1:
        return Negotiated(*options[0])
    kept = cache_folder() / "negotiated" / f"{_key(bundle, options)}.json"
    known = {(entry.file, runtime): (entry, runtime) for entry, runtime in options}
    record = _read(kept)
    if record is None or (record[0].file, record[0].runtime) not in known:
        record = decide(options, _clock(bundle, mode))
        _keep(kept, *record)
    best, tried = record
    refused = [f"{c.file} on {c.runtime} is not used: {c.remark}" for c in tried if c.ms is None]
    return Negotiated(*known[best.file, best.runtime], tuple(refused))


def _read(path: Path) -> tuple[Choice, list[Choice]] | None:
    try:
        record = json.loads(path.read_text())
        return Choice(**record["chosen"]), [Choice(**c) for c in record["tried"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, best: Choice, tried: Sequence[Choice]) -> None:
    """A cache that cannot be written costs a measurement at the next start, nothing else."""
    record = {"chosen": asdict(best), "tried": [asdict(c) for c in tried]}
    part = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(record, indent=1))
        part.replace(path)
