"""The harness of every benchmark: side by side in one run, medians, and a record of where.

A machine is never quiet, so candidates are interleaved: every round times each of them once, in
rotated order, and a ratio is the median of the ratios of the rounds. What disturbs one candidate
disturbs its neighbours in the same round.

    timings = measure([Case("ours", f), Case("theirs", g)], rounds=15)
    publish(Report("encoder", "What the encoder costs", rows, notes, figures=...))
"""

import fcntl
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PLOTS = ROOT / "benchmarks" / "plots"
RAW = ROOT / "build" / "bench"
PACKAGES = (
    "numpy", "onnxruntime", "openvino", "torch", "opencv-python", "llama-cpp-python", "pyzmq",
    "faiss-cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One candidate. `call` does `items` units of work (frames, tiles, tokens)."""

    name: str
    call: Callable[[], Any]
    items: int = 1


@dataclass(frozen=True)
class Timing:
    """Milliseconds per item over the rounds; `samples` keeps the order of the rounds."""

    name: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.samples)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def summary(self) -> dict[str, float]:
        keys = {"p10_ms": 0.1, "p90_ms": 0.9, "p99_ms": 0.99}
        tail = {key: round(self.quantile(q), 4) for key, q in keys.items()}
        return {"median_ms": round(self.median, 4), "best_ms": round(self.best, 4), **tail}


def _sample(case: Case, repeat: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeat):
        case.call()
    return (time.perf_counter() - begin) * 1e3 / (repeat * case.items)


def _repeats(case: Case, warmup: int, min_ms: float) -> int:
    """Calls per sample so that a sample lasts `min_ms`: timers and wake-ups cost microseconds."""
    once = min(_sample(case, 1) for _ in range(max(warmup, 1))) * case.items
    return max(1, int(min_ms / max(once, 1e-6)))


def measure(
    cases: Sequence[Case], rounds: int = 15, warmup: int = 2, min_ms: float = 5.0
) -> dict[str, Timing]:
    """Interleaved timings by name: round r calls every case once, starting with case r."""
    repeats = {case.name: _repeats(case, warmup, min_ms) for case in cases}
    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(rounds):
        start = turn % len(cases)
        for case in [*cases[start:], *cases[:start]]:
            samples[case.name].append(_sample(case, repeats[case.name]))
    return {name: Timing(name, tuple(values)) for name, values in samples.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster `fast` is: the median of the ratios of the rounds."""
    pairs = zip(slow.samples, fast.samples, strict=True)
    return statistics.median(s / f for s, f in pairs)


def _cpu_name() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    flags = re.search(r"flags\s*: (.*)", text)
    have = set(flags[1].split()) if flags else set()
    vector = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile") if f in have]
    return f"{found[1] if found else platform.processor()} ({', '.join(vector) or 'no AVX2'})"


def commit() -> str:
    """Short commit of the tree, with `+` when it holds changes that are not committed."""

    def git(*words: str) -> str:
        run = subprocess.run(
            ["git", "-C", ROOT, *words], capture_output=True, text=True, check=False
        )
        return run.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "no git") + (
        "+" if git("status", "--porcelain", "-uno") else ""
    )


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, load of the others, versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


@dataclass(frozen=True)
class Report:
    """One section of RESULTS.md. `rows` are dicts with the same keys: the table."""

    name: str
    title: str
    rows: Sequence[dict[str, Any]]
    notes: Sequence[str] = ()
    threads: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    plot: str | None = None
    """File name of a plot under benchmarks/plots/ (see bar_plot)."""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table; columns are the keys of the first row."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cell(row.get(h)) for h in heads) + " |" for row in rows]
    return "\n".join(lines)


def section(report: Report, facts: dict[str, Any]) -> str:
    """The Markdown of a report between its two marks."""
    where = (
        f"{facts['cpu']}, {facts['cores']} cores, threads {report.threads or 'default'}, "
        f"load {facts['load_1min']}, commit {facts['commit']}, {facts['when']}, "
        f"`python -m benchmarks.{report.name.split('.')[0]}`"
    )
    parts = [f"<!-- bench:{report.name} -->", f"## {report.title}", "", where, ""]
    parts += [table(report.rows), ""] if report.rows else []
    parts += [f"![{report.title}](plots/{report.plot})", ""] if report.plot else []
    parts += [f"- {note}" for note in report.notes]
    return "\n".join([*parts, f"<!-- /bench:{report.name} -->"])


def replace_section(text: str, name: str, new: str) -> str:
    """`text` with the section of that name replaced, or appended when it is new."""
    marks = re.compile(
        rf"<!-- bench:{re.escape(name)} -->.*?<!-- /bench:{re.escape(name)} -->", re.DOTALL
    )
    if marks.search(text):
        return marks.sub(lambda _: new, text, count=1)
    return text.rstrip() + "\n\n" + new + "\n"


def publish(report: Report, results: Path = RESULTS, raw: Path = RAW) -> Path:
    """Print the table, keep every figure as JSON, replace the section of RESULTS.md."""
    facts = {
        **machine(),
        "commit": commit(),
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    raw.mkdir(parents=True, exist_ok=True)
    stored = raw / f"{report.name}.json"
    stored.write_text(json.dumps({"machine": facts, **asdict(report)}, indent=1, default=str))
    with results.open("a+") as file:  # several benchmarks may end at once
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = replace_section(file.read() or "# Speed\n", report.name, section(report, facts))
        file.truncate(0)
        file.write(text)
    print(f"\n{report.title}\n{table(report.rows) if report.rows else ''}")
    print("\n".join(report.notes), f"\n-> {results.relative_to(ROOT)}, {stored.relative_to(ROOT)}")
    return stored


def bar_plot(name: str, values: dict[str, float], label: str, log: bool = False) -> str | None:
    """Horizontal bars as SVG; None when matplotlib is not installed (extra 'export')."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 0.45 * len(values) + 1), layout="tight")
    axes = figure.add_subplot()
    bars = axes.barh(list(values), list(values.values()), color="#3a6ea5", log=log)
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return _save(figure, name)


def line_plot(
    name: str, lines: dict[str, Sequence[tuple[float, float]]], x: str, y: str, log: bool = True
) -> str | None:
    """One line per key through (x, y) points as SVG; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4.5), layout="tight")
    axes = figure.add_subplot()
    for key, points in lines.items():
        axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=key)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()
    return _save(figure, name)


def _save(figure: Any, name: str) -> str:
    PLOTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    return f"{name}.svg"
