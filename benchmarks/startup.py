"""From the command to READY, first and cached; changeover to another recipe.

    python -m benchmarks.startup [--rounds 5] [--bundle DIR ...]

A real `station run` is started with a recipe over a folder of pictures and stopped again; a plain
subscriber notes its first heartbeat and the first status that says ready. "First on this machine"
includes measuring which engine and runtime is fastest, later starts find that decision kept.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import zmq

from benchmarks.common import ROOT, Report, Timing, publish
from station.client import Client, Refused

DEADLINE_S = 180.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def pictures(folder: Path, count: int = 30) -> Path:
    """Made textures, 400 x 300."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for number in range(count):
        small = rng.integers(80, 160, (38, 50, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"p{number:02d}.jpg"), cv2.resize(small, (400, 300)))
    return folder


class Home:
    """A station's folder, its environment and its ports."""

    def __init__(self, folder: Path, bundle: str) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.pub, self.ctl = free_ports(2)
        self.frames = pictures(folder / "frames")
        self.env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "STATION_CACHE": str(self.cache),
            "STATION_ENGINE__BUNDLE": bundle,
            "STATION_RECIPE__ROOT": str(folder / "recipes"),
            "STATION_LEDGER__PATH": str(folder / "ledger.db"),
            "STATION_ARCHIVE__FOLDER": str(folder / "archive"),
            "STATION_BUS__PUB_PORT": str(self.pub),
            "STATION_BUS__CTL_PORT": str(self.ctl),
            "STATION_METRICS__PORT": "0",
            "STATION_DESCRIBE__BACKEND": "template",
            "STATION_LOG__LEVEL": "error",
        }

    def station(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "station.cli", *words]

    def enrol(self, name: str) -> None:
        command = self.station("enroll", "--recipe", name, "--normals", str(self.frames))
        subprocess.run(
            [*command, "--shots", "4"], env=self.env, cwd=self.folder, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def start(home: Home) -> tuple[subprocess.Popen, float, float]:
    """(process, seconds to the first heartbeat, seconds to READY)."""
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.RECONNECT_IVL, 5)  # connect as soon as the port opens
    sub.subscribe("isp1/")
    sub.connect(f"tcp://127.0.0.1:{home.pub}")
    source = ("--source", str(home.frames), "--loop", "--fps", "5", "--recipe", "first")
    begin = time.monotonic()
    process = subprocess.Popen(
        home.station("run", *source), env=home.env, cwd=home.folder, stdout=subprocess.DEVNULL
    )
    first = None
    try:
        while time.monotonic() - begin < DEADLINE_S:
            if process.poll() is not None:
                raise SystemExit(f"station run ended with {process.returncode}")
            if not sub.poll(100):
                continue
            topic, body = sub.recv_multipart()
            if b"/status/" not in topic:
                continue
            first = first or time.monotonic() - begin
            if json.loads(body)["ready"]:
                return process, first, time.monotonic() - begin
    finally:
        sub.close(0)
        context.term()
    process.kill()
    raise SystemExit(f"not READY within {DEADLINE_S:g} s")


def stop(process: subprocess.Popen) -> float:
    """Seconds from SIGTERM to the end."""
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    return time.monotonic() - begin


def changeover(home: Home, to: str) -> tuple[float, float]:
    """Seconds of prepare (the old recipe goes on inspecting) and of commit.

    A commit is refused while a part is open: it is asked for again until it falls between two.
    """
    ctl, pub = f"tcp://127.0.0.1:{home.ctl}", f"tcp://127.0.0.1:{home.pub}"
    client = Client(ctl, pub, name="bench", timeout_s=60)
    client.hello()
    begin = time.monotonic()
    client.admin("RECIPE", action="prepare", recipe=to)
    prepared = time.monotonic()
    while True:
        try:
            client.admin("RECIPE", action="commit")
            break
        except Refused:
            if time.monotonic() - prepared > DEADLINE_S:
                raise
    done = time.monotonic()
    client.close()
    return prepared - begin, done - prepared


def measured(bundle: str, rounds: int, folder: Path) -> dict[str, list[float]]:
    """All samples in milliseconds by what they are."""
    home = Home(folder, bundle)
    home.enrol("first")
    home.enrol("second")
    shutil.rmtree(home.cache, ignore_errors=True)
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds * 1e3)

    for turn in range(rounds + 1):
        process, first, ready = start(home)
        try:
            kind = "cached" if turn else "first on this machine"
            note(f"first heartbeat, {kind}", first)
            note(f"READY, {kind}", ready)
            if turn:
                prepare, commit = changeover(home, "second")
                note("changeover: prepare", prepare)
                note("changeover: commit", commit)
        finally:
            seconds = stop(process)
        note("SIGTERM to the end", seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", action="append", default=[])
    options = parser.parse_args()
    rows, figures = [], {}
    for bundle in ["nano", *options.bundle]:
        name = Path(bundle).name
        with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
            found = measured(bundle, options.rounds, Path(folder))
        figures[name] = found
        for what, samples in found.items():
            timing = Timing(what, tuple(samples))
            rows.append(
                {
                    "bundle": name,
                    "what": what,
                    "ms, median": timing.median,
                    "ms, worst": max(samples),
                    "runs": len(samples),
                }
            )
    publish(
        Report(
            "startup",
            "From the command to READY",
            rows,
            notes=[
                "A real `station run` with ledger, bus, archive, template words and a recipe of 4 "
                "references; asked for: READY below 5 s (nano) and 15 s (paper) with cached "
                "engines, first heartbeat below 2 s.",
            ],
            figures=figures,
        )
    )


if __name__ == "__main__":
    main()
