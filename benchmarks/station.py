"""The whole station against the sum of its parts: frames a second, latency, memory.

    python -m benchmarks.station [--seconds 6] [--rounds 5] [--soak 120] [--threads 2] [--workers 2]

Frames are magnetic tiles of ../shared/data/mt where they are at hand, else made here. The bare
engine loop and the running daemon take turns in one process, so that what disturbs one disturbs
the other. `benchmarks.startup` measures starting, `benchmarks.bus` the ledger and bus alone.
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import ROOT, Case, Report, line_plot, measure, publish
from station.boot import EngineRoom
from station.daemon import Daemon, Options
from station.inspection import Prepared, Product, infer, outcome, prepare
from station.ledger import Ledger
from station.logs import set_up
from station.schema import Opening, Reason, ResultDraft, Verdict, new_id
from station.settings import Settings, load_settings
from station.sources.base import Frame
from station.wiring import engine_workers

MT = ROOT.parent / "shared" / "data" / "mt"
RECIPE = "bench"


def good_pictures(folder: Path, count: int) -> str:
    """`count` good parts as JPEG files in `folder`; what they are."""
    folder.mkdir(parents=True)
    index = MT / "index.jsonl"
    if index.exists():
        rows = [json.loads(line) for line in index.read_text().splitlines()]
        names = [row["image"] for row in rows if row["normal"]][:count]
        for number, name in enumerate(names):
            (folder / f"p{number:04d}.jpg").symlink_to(MT / name)
        return f"{len(names)} magnetic tiles of about 220-600 px"
    rng = np.random.default_rng(5)
    for number in range(count):
        small = rng.integers(80, 160, (38, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"p{number:04d}.jpg"), cv2.resize(small, (400, 300)))
    return f"{count} made textures of 400 x 300 px"


def settings_in(home: Path, frames: Path, args: argparse.Namespace, **source: object) -> Settings:
    """A station with ledger, bus, words and pictures as shipped, in a folder of its own."""
    empty = home / "empty.toml"
    empty.write_text("")
    return load_settings(
        empty,
        {
            "ledger": {"path": home / f"ledger-{time.monotonic_ns()}.db"},
            "bus": {"pub_port": 0, "ctl_port": 0},
            "metrics": {"port": 0},
            "archive": {"folder": home / "archive"},
            "source": {"spec": str(frames), "loop": True, **source},
            "recipe": {"name": RECIPE, "root": home / "recipes"},
            "engine": {"threads": args.threads, "workers": args.workers},
            "describe": {"backend": "template"},
            "log": {"level": "error", "format": "json"},
        },
    )


def enrol(home: Path, frames: Path, threads: int) -> None:
    """The recipe, learned by the real command."""
    env = os.environ | {
        "STATION_RECIPE__ROOT": str(home / "recipes"),
        "STATION_ENGINE__THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
    }
    words = [sys.executable, "-m", "station.cli", "enroll", "--recipe", RECIPE]
    subprocess.run([*words, "--normals", str(frames)], cwd=home, env=env, check=True)


def loop_fps(call: Callable[[int], object], seconds: float, threads: int) -> float:
    """Calls a second of `call(number)`, made by so many threads as the station has workers."""
    begun, counts = time.perf_counter(), [0] * threads

    def loop(thread: int) -> None:
        while time.perf_counter() - begun < seconds:
            call(counts[thread])
            counts[thread] += 1

    workers = [threading.Thread(target=loop, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begun)


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Daemon]:
    """The daemon, ready."""
    daemon = Daemon(settings, Options())
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


def station_run(settings: Settings, seconds: float) -> dict:
    """Frames a second, latencies and engine times of a running daemon after a warm-up second."""
    with running(settings) as daemon:
        time.sleep(1.0)
        before = daemon.after.totals()
        begun = time.perf_counter()
        time.sleep(seconds)
        after = daemon.after.totals()
        took = time.perf_counter() - begun
        fresh = after.parts - before.parts
    assert fresh, "the station gave no verdict"
    return {
        "fps": fresh / took,
        "latency_us": list(after.latencies_us[-fresh:]),
        "infer_us": list(after.infer_us[-fresh:]),
    }


def ms(values_us: list[int], share: float) -> float:
    """A percentile in milliseconds."""
    return float(np.percentile(values_us, share * 100)) / 1000


def stages(home: Path, product: Product, frames: list[Path]) -> dict[str, float]:
    """Median milliseconds of each step of one part, each alone."""
    data = frames[0].read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    ready = prepared_of(frames[0], product)
    answer = infer([ready], product)
    ledger = Ledger(home / "stages.db", line="bench", station="bench")

    def decode() -> None:
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    def commit() -> None:
        trigger_id = new_id()
        opening = Opening(
            trigger_id=trigger_id,
            received_ns=time.monotonic_ns(),
            deadline_ms=60_000,
            t_trigger_us=time.time_ns() // 1000,
            threshold=0.5,
        )
        ledger.open_part(opening).result()
        draft = ResultDraft(
            trigger_id=trigger_id, verdict=Verdict.OK, reason=Reason.SCORE, score=0.1, threshold=0.5
        )
        ledger.commit_result(draft).result()

    cases = [
        Case("decode", decode),
        Case("check, cut, resize", lambda: prepare(frame(image), product, live=False)),
        Case("engine", lambda: infer([ready], product)),
        Case("map, regions, verdict", lambda: outcome(ready, answer, product)),
        Case("two durable commits", commit),
    ]
    found = {name: t.median for name, t in measure(cases, rounds=25).items()}
    ledger.close()
    return found


def frame(image: np.ndarray) -> Frame:
    """A frame as a source gives it."""
    now = time.monotonic_ns()
    return Frame(
        image=image, raw=None, name="x", t_capture_ns=now, wall_us=now // 1000, index=0, fault=None
    )


def prepared_of(path: Path, product: Product) -> Prepared:
    """A picture ready for the engine."""
    return prepare(frame(cv2.imread(str(path))), product, live=False)


def resident_mib() -> float:
    """Resident memory of this process and its children, MiB."""
    total = 0
    pids = [os.getpid()]
    for task in Path("/proc/self/task").glob("*/children"):
        pids += [int(pid) for pid in task.read_text().split()]
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(settings: Settings, seconds: float) -> dict:
    """Resident memory over time and its slope over the last three quarters."""
    points: list[tuple[float, float]] = []
    with running(settings) as daemon:
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < seconds:
            points.append((now, resident_mib()))
            time.sleep(min(1.0, seconds / 60))
        parts = daemon.after.totals().parts
    late = [(t, m) for t, m in points if t > seconds / 4]
    slope = float(np.polyfit(*zip(*late, strict=True), 1)[0])
    return {"points": points, "mib_per_hour": slope * 3600, "last": points[-1][1], "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="engine.workers; 0 = as shipped")
    parser.add_argument("--paced", type=float, default=50.0, help="Frames a second, second run.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-station-") as folder:
        run(Path(folder), args)


def run(home: Path, args: argparse.Namespace) -> None:
    """Measure and publish."""
    frames = home / "frames"
    what = good_pictures(frames, 200)
    enrol(home, frames, args.threads)
    free = settings_in(home, frames, args)
    paced = settings_in(home, frames, args, fps=args.paced)
    set_up(free.log)
    room, workers = EngineRoom(free), engine_workers(free)
    room.callers = workers
    product = room.product(RECIPE)
    files = sorted(frames.iterdir())
    ready = [prepared_of(path, product) for path in files[:32]]
    assert all(one.tiles is not None for one in ready), "a good part was refused"
    cost = stages(home, product, files)
    rounds = []
    for _ in range(args.rounds):
        bare = loop_fps(lambda n: infer([ready[n % 32]], product), args.seconds, workers)
        rounds.append({"bare_fps": bare, **station_run(free, args.seconds)})
    steady = station_run(paced, args.seconds * 2)
    gc.collect()
    grown = soak(paced, args.soak)
    report(args, what, cost, rounds, steady, grown, product)


def percentiles(paced: list[int], free: list[int]) -> str | None:
    """The plot of both latency distributions, percentile by percentile."""
    return line_plot(
        "station",
        {
            name: [(q / 10, ms(sample, q / 1000)) for q in range(10, 1000, 10)]
            for name, sample in (("paced", paced), ("free", free))
        },
        "percentile",
        "trigger to verdict, ms",
        log=False,
    )


def report(
    args: argparse.Namespace,
    what: str,
    cost: dict[str, float],
    rounds: list[dict],
    steady: dict,
    grown: dict,
    product: Product,
) -> None:
    """The tables, the notes and the plot."""
    latency = [us for r in rounds for us in r["latency_us"]]
    engine = [us for r in rounds for us in r["infer_us"]]
    fps = statistics.median(r["fps"] for r in rounds)
    bare = statistics.median(r["bare_fps"] for r in rounds)
    share = statistics.median(r["fps"] / r["bare_fps"] for r in rounds)
    rows = [{"step": name, "ms alone": value} for name, value in cost.items()]
    rows.append({"step": "sum", "ms alone": sum(cost.values())})
    rows.append({"step": "engine inside the running station, p50", "ms alone": ms(engine, 0.5)})
    in_turn = 1000 / sum(cost.values())
    steady_p50, steady_p99 = ms(steady["latency_us"], 0.5), ms(steady["latency_us"], 0.99)
    notes = [
        f"frames: {what}; engine {product.engine.runtime} {product.engine.precision}, "
        f"one tile a part, mode {product.loaded.recipe.mode}",  # type: ignore[union-attr]
        f"as fast as it can: **{fps:.1f} frames/s**, bare engine loop {bare:.1f}/s, "
        f"**{share:.0%}** of it; one step after the other would be {in_turn:.1f}/s",
        f"latency then (up to four parts in flight): p50 {ms(latency, 0.5):.1f} ms, "
        f"p99 {ms(latency, 0.99):.1f} ms",
        f"paced at {args.paced:g}/s: {steady['fps']:.1f}/s, p50 {steady_p50:.1f} ms, "
        f"p99 {steady_p99:.1f} ms ({steady_p99 / steady_p50:.2f}x)",
        f"memory: {grown['last']:.0f} MiB with children after {args.soak:g} s and "
        f"{grown['parts']} parts, slope {grown['mib_per_hour']:+.1f} MiB/h over the last 3/4",
    ]
    publish(
        Report(
            "station",
            "The whole station against the sum of its parts",
            rows,
            notes,
            threads=args.threads,
            figures={
                "stages_ms": cost,
                "fps": fps,
                "bare_fps": bare,
                "share": share,
                "paced": {"p50_ms": steady_p50, "p99_ms": steady_p99, "fps": steady["fps"]},
                "free": {"p50_ms": ms(latency, 0.5), "p99_ms": ms(latency, 0.99)},
                "memory": grown,
            },
            plot=percentiles(steady["latency_us"], latency),
        )
    )


if __name__ == "__main__":
    main()
