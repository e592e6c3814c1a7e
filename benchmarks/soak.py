"""Two cameras at 15 frames/s each for 20 minutes: dropped frames, and memory minute by minute.

    python -m benchmarks.soak [--minutes 20] [--fps 15] [--cameras 2]

The cameras are MJPEG over HTTP on loopback, served by a process of their own; the station is the
real one as shipped (words by template), free-running, with the recipe enrolled from the same
pictures. It wants about 60 % of two cores: not part of `make bench`. Where the whole process group
is stopped for a while (SIGSTOP, so that something else can be measured) the pause does not count as
time, and what is lost within a few seconds of it is told apart.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import ROOT, Report, line_plot, publish
from benchmarks.station import RECIPE, enrol, running
from engines.bundle import BUNDLES
from station.daemon import Daemon
from station.logs import set_up
from station.settings import Settings, load_settings

LATE_MIN = 15  # growth is judged over the last so many minutes
PAUSE_S = 3.0  # a second that takes longer was a stop of the whole group
AROUND_S = 8.0  # after a stop: cameras are opened anew, open parts end at their deadlines

CAMERAS = """
import sys, time
sys.path.insert(0, "tests")
from faultkit.camera import FaultCamera, jpeg, picture
count, fps = int(sys.argv[1]), float(sys.argv[2])
made = [jpeg(picture(i, (480, 640))) for i in range(40)]
cameras = [FaultCamera(fps, 1) for _ in range(count)]
for camera in cameras:
    camera._encoded = made
    camera.__enter__()
print(*[c.url for c in cameras], flush=True)
for _ in sys.stdin:
    print(*[c.sent for c in cameras], flush=True)
"""


class Cameras:
    """The camera process."""

    def __init__(self, count: int, fps: float) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", CAMERAS, str(count), str(fps)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.urls = self._line()

    def _line(self) -> list[str]:
        assert self._child.stdout is not None
        return self._child.stdout.readline().split()

    def sent(self) -> int:
        """Pictures sent so far by all of them."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        return sum(map(int, self._line()))

    def close(self) -> None:
        self._child.kill()
        self._child.wait(10)


def settings_of(home: Path, urls: list[str]) -> Settings:
    """The station as shipped, in a folder of its own, one recipe for every camera."""
    empty = home / "empty.toml"
    empty.write_text("")
    return load_settings(
        empty,
        {
            "ledger": {"path": home / "ledger.db"},
            "bus": {"pub_port": 0, "ctl_port": 0},
            "archive": {"folder": home / "archive"},
            "cameras": {f"cam{n}": {"spec": url} for n, url in enumerate(urls)},
            "recipe": {"name": RECIPE, "root": home / "recipes"},
            "describe": {"backend": "template"},
            "engine": {"bundle": str(home / "nano")},
            "log": {"level": "error", "format": "json"},
        },
    )


def textures(folder: Path, count: int) -> Path:
    """The pictures the cameras show, as files to enrol from."""
    sys.path.insert(0, str(ROOT / "tests"))
    from faultkit.camera import picture

    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"p{number:03d}.jpg"), picture(number, (480, 640)))
    return folder


def memory_mib() -> tuple[float, float]:
    """(this process, its station children but the cameras) resident, MiB: own share of shared."""
    own, children = _pss(os.getpid()), 0.0
    for task in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, task.read_text().split()):
            children += 0.0 if CAMERAS[:40] in _command(pid) else _pss(pid)
    return own, children


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def dropped(daemon: Daemon) -> int:
    """Frames that became no part, for whatever reason, and observers' losses."""
    lanes = [lane.counts for lane in daemon.lanes.values()]
    frames = sum(c.stale + c.superseded + c.not_accepting + c.refused for c in lanes)
    return frames + sum(observer.dropped for observer in daemon.after.observers)


@dataclass
class Clock:
    """Time while the process group runs, and what was lost around its stops."""

    running_s: float = 0.0
    pauses: int = 0
    lost_around: int = 0
    _after: float = 0.0
    _lost: int = 0
    _last: float = field(default_factory=time.monotonic)

    def second(self, lost: int) -> None:
        """Sleep a second; `lost` is the counter of losses so far."""
        time.sleep(1.0)
        now = time.monotonic()
        took, self._last = now - self._last, now
        if took > PAUSE_S:
            self.pauses, self._after = self.pauses + 1, AROUND_S
        if self._after > 0:
            self.lost_around += lost - self._lost
        self._after -= min(took, PAUSE_S)
        self._lost = lost
        self.running_s += min(took, 1.0 if took > PAUSE_S else took)


def lost(daemon: Daemon) -> int:
    """Frames dropped and parts that no engine judged."""
    verdicts = daemon.after.totals().verdicts
    return dropped(daemon) + verdicts.get("ERROR", 0) + verdicts.get("UNDECIDED", 0)


def why(daemon: Daemon) -> str:
    """Where losses come from."""
    lanes = "; ".join(f"{name}: {lane.counts}" for name, lane in daemon.lanes.items())
    observers = {o.name: o.dropped for o in daemon.after.observers if o.dropped}
    totals = daemon.after.totals()
    return f"{lanes}; observers {observers}; {totals.verdicts} {totals.reasons}"


def look(daemon: Daemon, cameras: Cameras, clock: Clock) -> dict[str, float]:
    """One row of the table."""
    own, children = memory_mib()
    return {
        "minute": round(clock.running_s / 60, 2),
        "station MiB": own,
        "children MiB": children,
        "frames sent": cameras.sent(),
        "verdicts": daemon.after.totals().parts,
        "lost": lost(daemon),
        "of it around stops": clock.lost_around,
    }


def watch(daemon: Daemon, cameras: Cameras, minutes: int) -> list[dict[str, float]]:
    """Look once a minute."""
    clock = Clock()
    rows = [look(daemon, cameras, clock)]
    while len(rows) <= minutes:
        while clock.running_s < 60 * len(rows):
            clock.second(lost(daemon))
        rows.append(look(daemon, cameras, clock))
        print({k: round(v, 1) for k, v in rows[-1].items()}, why(daemon), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=int, default=20)
    parser.add_argument("--fps", type=float, default=15.0)
    parser.add_argument("--cameras", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-soak-") as folder:
        home = Path(folder)
        shutil.copytree(BUNDLES / "nano", home / "nano")  # a new build must not change this run
        os.environ["STATION_ENGINE__BUNDLE"] = str(home / "nano")
        enrol(home, textures(home / "frames", 40), 0)
        cameras = Cameras(args.cameras, args.fps)
        settings = settings_of(home, cameras.urls)
        set_up(settings.log)
        try:
            with running(settings) as daemon:
                time.sleep(5)
                rows = watch(daemon, cameras, args.minutes)
                latencies = daemon.after.totals().latencies_us
        finally:
            cameras.close()
    report(args, rows, np.asarray(latencies) / 1000)


def report(args: argparse.Namespace, rows: list[dict[str, float]], latency: np.ndarray) -> None:
    """Table, plot and the sentences."""
    late = [r for r in rows if r["minute"] >= rows[-1]["minute"] - LATE_MIN - 0.1]
    total = [r["station MiB"] + r["children MiB"] for r in late]
    minutes = [r["minute"] for r in late]
    slope = float(np.polyfit(minutes, total, 1)[0]) * (minutes[-1] - minutes[0])
    change = {key: rows[-1][key] - rows[0][key] for key in rows[0]}
    p50, p99 = np.percentile(latency, [50, 99])
    publish(
        Report(
            "soak",
            f"{args.cameras} cameras at {args.fps:g} frames/s for {args.minutes} minutes",
            list(rows),
            notes=[
                f"{change['frames sent']:.0f} frames sent, {change['verdicts']:.0f} verdicts, "
                f"**{change['lost'] - change['of it around stops']:.0f} lost** (dropped, or judged "
                f"without engine) besides {change['of it around stops']:.0f} around stops of the "
                f"whole process group; latency p50 {p50:.1f} ms, p99 {p99:.1f} ms",
                f"memory over the last {minutes[-1] - minutes[0]:.0f} minutes: "
                f"**{total[-1] - total[0]:+.2f} MiB** last against first, {slope:+.2f} MiB by a "
                "fitted line (proportional set size: shared pages counted by share)",
            ],
            threads=0,
            figures={"rows": rows, "p50_ms": float(p50), "p99_ms": float(p99)},
            plot=line_plot(
                "soak",
                {
                    "station": [(r["minute"], r["station MiB"]) for r in rows],
                    "children": [(r["minute"], r["children MiB"]) for r in rows],
                },
                "minute",
                "MiB",
                log=False,
            ),
        )
    )


if __name__ == "__main__":
    main()
