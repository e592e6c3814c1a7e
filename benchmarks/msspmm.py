"""What the memory costs from 1 to 1,024 references, beside torch.cdist and faiss.

    python -m benchmarks.msspmm [--max 1024] [--block 4] [--threads 2]

Time, bytes of memory bound, and the process's largest extra bytes while it ran (sampled), per
candidate in a process of its own. `torch.cdist` is what a user writes first (the whole distance
matrix, then its minimum); faiss (IndexFlatL2, k=1) answers the bank question only.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Case, Report, line_plot, measure, publish
from engines.bundle import load_bundle
from engines.session import Session

F32 = NDArray[np.float32]
MODES = ("position", "nearest", "bank")
PEERS = ("cdist nearest", "cdist bank", "faiss bank")
PATCHES = 225


def _unit(rng: np.random.Generator, *shape: int) -> F32:
    x = rng.standard_normal(shape, np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x


def tokens(dims: tuple[int, ...]) -> list[F32]:
    """Unit tokens of one tile, per tap."""
    rng = np.random.default_rng(0)
    return [_unit(rng, 1, PATCHES, d) for d in dims]


def references(count: int, dims: tuple[int, ...]) -> list[F32]:
    """`count` random unit references, per tap (N,225,D)."""
    rng = np.random.default_rng(1)
    return [_unit(rng, count, PATCHES, d) for d in dims]


def ours(mode: str, graph: Path, count: int, dims: tuple[int, ...], threads: int) -> Any:
    """The bundle's memory engine: () -> squared distances (225,3)."""
    session = Session(graph, threads=threads)
    for name, block in zip("abc", references(count, dims), strict=True):
        session.bind(f"memory_{name}", block[None])
    session.bind("few_shot", np.array(True))
    feeds: dict[str, Any] = {"group": np.zeros(1, np.int64)}
    feeds |= {f"tap_{n}": t for n, t in zip("abc", tokens(dims), strict=True)}
    return lambda: session.run(feeds)["distances"].reshape(PATCHES, 3)


def cdist(mode: str, count: int, dims: tuple[int, ...], threads: int) -> Any:
    """torch.cdist over all references at once."""
    import torch

    torch.set_num_threads(threads)
    query = [torch.from_numpy(t[0]) for t in tokens(dims)]
    memory = [torch.from_numpy(m.reshape(-1, m.shape[-1])) for m in references(count, dims)]

    def nearest() -> Any:
        each = [
            torch.cdist(q, m).view(PATCHES, count, PATCHES).amin(2)
            for q, m in zip(query, memory, strict=True)
        ]
        d = torch.stack(each, -1)  # (225,N,3)
        return d[:, d.sum((0, 2)).argmin()].numpy()

    def bank() -> Any:
        pairs = zip(query, memory, strict=True)
        return torch.stack([torch.cdist(q, m).amin(1) for q, m in pairs], -1).numpy()

    return nearest if mode == "nearest" else bank


def faiss_bank(count: int, dims: tuple[int, ...], threads: int) -> Any:
    """One flat index per tap, one nearest neighbour."""
    import faiss

    faiss.omp_set_num_threads(threads)
    query, indices = [t[0] for t in tokens(dims)], []
    for block in references(count, dims):
        index = faiss.IndexFlatL2(block.shape[-1])
        index.add(block.reshape(-1, block.shape[-1]))
        indices.append(index)

    def call() -> Any:
        found = [i.search(q, 1)[0][:, 0] for i, q in zip(indices, query, strict=True)]
        return np.sqrt(np.maximum(np.stack(found, -1), 0))

    return call


def candidate(name: str, graphs: Path, count: int, dims: tuple[int, ...], threads: int) -> Any:
    """The call of a candidate by its name."""
    if name in MODES:
        return ours(name, graphs / f"msspmm.{name}.onnx", count, dims, threads)
    kind, mode = name.split()
    if kind == "faiss":
        return faiss_bank(count, dims, threads)
    return cdist(mode, count, dims, threads)


def _resident() -> int:
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024


def extra_bytes(call: Callable[[], Any]) -> int:
    """Largest growth of resident memory while `call` runs, sampled every 0.2 ms."""
    gc.collect()
    base, worst, stop = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal worst
        while not stop.is_set():
            worst = max(worst, _resident() - base)
            time.sleep(0.0002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    stop.set()
    watcher.join()
    return worst


def child(name: str, graphs: Path, count: int, dims: tuple[int, ...], threads: int) -> None:
    """In a process of its own: extra bytes of the first call, as JSON."""
    call = candidate(name, graphs, count, dims, threads)
    print(json.dumps({"extra": extra_bytes(call)}))


def measured_bytes(name: str, graphs: Path, count: int, threads: int) -> float:
    """MB that a call needs beyond the memory it was given."""
    command = [sys.executable, "-m", "benchmarks.msspmm", "--child", name, str(count)]
    command += ["--graphs", str(graphs), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["extra"]) / 1e6


def one_size(
    count: int, graphs: Path, dims: tuple[int, ...], threads: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """A table row and the medians at one memory size, all candidates interleaved."""
    calls = {n: candidate(n, graphs, count, dims, threads) for n in (*MODES, *PEERS)}
    for mode in ("nearest", "bank"):
        off = np.abs(calls[mode]() ** 2 - calls[f"cdist {mode}"]() ** 2).max()
        if off > 1e-3:  # cdist itself is off by about 1e-4: it subtracts large squares
            raise SystemExit(f"{mode} at N={count}: differs from torch.cdist by {off:.2g}")
    rounds = 9 if count < 64 else 3
    timings = measure([Case(n, c) for n, c in calls.items()], rounds, warmup=1, min_ms=1.0)
    medians = {n: t.median for n, t in timings.items()}
    held = sum(count * PATCHES * d * 4 for d in dims) / 1e6
    row: dict[str, Any] = {"references": count, "memory MB": round(held, 1)}
    return row | {f"{n} ms": round(m, 3) for n, m in medians.items()}, medians


def graphs_of(block: int | None, folder: Path) -> Path:
    """Folder with the memory engines: the bundle's, or with another block size."""
    bundle = load_bundle("nano")
    if block is None:
        return bundle.path
    from export import compose
    from export.graph import Graph, WeightStore
    from export.model.config import ModelConfig

    store = WeightStore(bundle.file("weights.safetensors"))
    config = ModelConfig.from_json(store.metadata["config"])
    for mode in MODES:
        graph = compose.memory(Graph(store), config, mode, block)  # type: ignore[arg-type]
        path = folder / f"msspmm.{mode}.onnx"
        path.write_bytes(graph.model("msspmm").SerializeToString())
    return folder


def slope(rows: list[tuple[int, dict[str, float]]], name: str) -> float:
    """ms per further reference between the two largest sizes."""
    (small, a), (large, b) = rows[-2], rows[-1]
    return (b[name] - a[name]) / (large - small)


def report(
    rows: list[dict[str, Any]], medians: list[tuple[int, dict[str, float]]],
    extra: dict[str, float], threads: int,
) -> Report:  # fmt: skip
    """The published section."""
    largest = medians[-1][0]
    slopes = {n: slope(medians, n) for n in (*MODES, *PEERS)}
    per = ", ".join(f"{n} {s:.3f}" for n, s in slopes.items())
    factor = largest / medians[-2][0]
    growth = ", ".join(f"{m} {medians[-1][1][m] / medians[-2][1][m]:.2f}x" for m in MODES)
    notes = [
        f"From {medians[-2][0]} to {largest} references ({factor:g}x) time grows: {growth}.",
        f"ms per further reference: {per}. torch.cdist's slope is "
        f"{slopes['cdist nearest'] / slopes['nearest']:.2f}x ours (nearest), "
        f"{slopes['cdist bank'] / slopes['bank']:.2f}x (bank); faiss's "
        f"{slopes['faiss bank'] / slopes['bank']:.2f}x (bank).",
        f"MB that one call needs beyond the memory itself, at {largest} references: "
        + ", ".join(f"{n} {mb:.0f}" for n, mb in extra.items())
        + f". The whole matrix of one tap would be {largest * PATCHES * PATCHES * 4 / 1e6:.0f} MB.",
    ]
    names = ("nearest", "bank", *PEERS)
    lines = {n: [(count, m[n]) for count, m in medians] for n in names}
    plot = line_plot("msspmm", lines, "references N", "ms per tile")
    return Report("msspmm", "Memory: cost of N references", rows, notes, threads, plot=plot)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--max", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--block", type=int, help="references per block (default: the bundle's)")
    parser.add_argument("--graphs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help="print the rows, publish nothing")
    args = parser.parse_args()
    dims = load_bundle("nano").manifest.tap_dims
    if args.child:
        child(args.child[0], args.graphs, int(args.child[1]), dims, args.threads)
        return
    sizes = [n for n in (1, 4, 16, 64, 256, 1024) if n <= args.max]
    rows, medians = [], []
    with tempfile.TemporaryDirectory() as folder:
        graphs = graphs_of(args.block, Path(folder))
        for count in sizes:
            row, found = one_size(count, graphs, dims, args.threads)
            rows.append(row)
            medians.append((count, found))
            print(row, flush=True)
        if args.dry:
            return
        names = (*MODES, *PEERS)
        extra = {n: measured_bytes(n, graphs, sizes[-1], args.threads) for n in names}
    publish(report(rows, medians, extra, args.threads))


if __name__ == "__main__":
    main()
