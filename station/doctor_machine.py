"""Doctor: software, runtimes, GPU, clock, memory, disks and ports of this machine."""

import os
import platform
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from station.address import reach
from station.doctor import Finding
from station.record_budget import free_bytes
from station.settings import Settings

SYNCS = 20
SLOW_SYNC_MS = 20.0  # a verdict waits for one fdatasync; 20 ms eat a tenth of a 200 ms deadline
SHM_MIN = 64 << 20  # a ring of four 12-megapixel colour frames needs 150 MiB, a small one far less
FIXED_WAL = (3, 51, 3)  # older SQLite can corrupt a WAL shared by two connections


def software(settings: Settings) -> Iterator[Finding]:
    """Versions of what decides behaviour."""
    good = sys.version_info >= (3, 11)
    yield Finding("Python", "ok" if good else "fail", platform.python_version())
    version = tuple(int(part) for part in sqlite3.sqlite_version.split("."))
    note = "" if version >= FIXED_WAL else " (WAL fault with two connections; we use one)"
    yield Finding("SQLite", "ok", sqlite3.sqlite_version + note)
    curve = "CURVE available" if zmq.has("curve") else "without CURVE: loopback only"
    yield Finding("libzmq", "ok", f"{zmq.zmq_version()}, pyzmq {zmq.__version__}, {curve}")
    import cv2

    yield Finding("OpenCV", "ok", str(cv2.__version__))


def runtimes(settings: Settings) -> Iterator[Finding]:
    """Every runtime with the reason where it cannot run; none at all is a failure."""
    from engines.session import runtimes as all_runtimes

    found = all_runtimes()
    for runtime in found:
        precisions = f" ({', '.join(runtime.precisions)})" if runtime.precisions else ""
        if runtime.available:
            yield Finding(runtime.name, "ok", f"{runtime.reason}{precisions}")
        else:
            yield Finding(runtime.name, "info", f"not here: {runtime.reason}")
    if not any(runtime.available for runtime in found):
        text = "no runtime can run here: make install brings one, or pip install onnxruntime"
        yield Finding("runtime", "fail", text, 5)


def machine(settings: Settings) -> Iterator[Finding]:
    """CPU, GPU, clock, shared memory."""
    cores = len(os.sched_getaffinity(0))
    yield Finding("CPU", "ok", f"{cores} core(s), {platform.machine()}")
    yield _gpu()
    yield _clock()
    yield _shared_memory()


def disks(settings: Settings) -> Iterator[Finding]:
    """Free space where we write, and what a durable commit costs there."""
    yield _fsync(settings.ledger.path.parent)
    places = {
        "ledger": (settings.ledger.path.parent, settings.ledger.min_free_bytes),
        "archive": (settings.archive.folder, settings.archive.min_free_bytes),
        "recordings": (settings.record.folder, settings.record.min_free_bytes),
    }
    for name, (folder, least) in places.items():
        free = free_bytes(folder.absolute())
        text = f"{free / 2**30:.1f} GiB free at {folder}"
        if free < least:
            yield Finding(name, "fail", f"{text}; {least / 2**30:.1f} GiB are kept free", 6)
        else:
            yield Finding(name, "ok", text)


def ports(settings: Settings) -> Iterator[Finding]:
    """Whether our ports are free, or held by a station that answers."""
    bus = settings.bus
    wanted = [
        ("bus.ctl_port", bus.host, bus.ctl_port),
        ("bus.pub_port", bus.host, bus.pub_port),
        ("ui.port", settings.ui.host, settings.ui.port),
        ("metrics.port", settings.metrics.host, settings.metrics.port),
    ]
    running = _station_answers(bus.host, bus.ctl_port)
    for key, host, port in wanted:
        if port == 0:
            yield Finding(key, "info", "switched off")
        elif _bindable(host, port):
            yield Finding(key, "ok", f"{host}:{port} is free")
        elif running:
            yield Finding(key, "ok", f"{host}:{port} is in use; a station answers at the bus")
        else:
            text = f"{host}:{port} is held by another program; stop it or set {key}"
            yield Finding(key, "fail", text, 9)


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", "info", "no NVIDIA driver (nvidia-smi is not installed)")
    command = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("GPU", "warn", f"nvidia-smi does not answer: {error}")
    if done.returncode != 0:
        return Finding("GPU", "warn", f"nvidia-smi failed: {done.stdout.strip()[:200]}")
    return Finding("GPU", "ok", "; ".join(done.stdout.strip().splitlines()))


def _clock() -> Finding:
    tool = shutil.which("timedatectl")
    resolution = time.get_clock_info("monotonic").resolution
    text = f"monotonic resolution {resolution * 1e9:.0f} ns"
    if time.time() < 1_700_000_000:
        return Finding("clock", "warn", f"the date is {time.ctime()}: labels will be wrong; {text}")
    if tool is None:
        return Finding("clock", "info", f"synchronisation unknown (no timedatectl); {text}")
    command = [tool, "show", "-p", "NTPSynchronized", "--value"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("clock", "info", f"synchronisation unknown; {text}")
    if done.stdout.strip() == "yes":
        return Finding("clock", "ok", f"synchronised; {text}")
    if done.stdout.strip() == "no":
        return Finding("clock", "warn", f"not synchronised: only labels suffer; {text}")
    return Finding("clock", "info", f"synchronisation unknown; {text}")


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("/dev/shm", "fail", "is missing: cameras need shared memory", 4)
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"
    if usage.free < SHM_MIN:
        return Finding("/dev/shm", "fail", f"{text}; frames need at least 64 MiB", 4)
    return Finding("/dev/shm", "ok", text)


def _fsync(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.absolute().parent
    try:
        times = _time_syncs(folder)
    except OSError as error:
        return Finding("fsync", "fail", f"cannot write in {folder}: {error.strerror}", 6)
    median, worst = statistics.median(times), max(times)
    text = f"median {median:.1f} ms, worst {worst:.1f} ms of {SYNCS} in {folder}"
    if median > SLOW_SYNC_MS:
        return Finding("fsync", "warn", f"{text}: every verdict waits that long")
    return Finding("fsync", "ok", text)


def _time_syncs(folder: Path) -> list[float]:
    times = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor") as file:
        for _ in range(SYNCS):
            file.write(b"\0" * 4096)
            file.flush()
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begun) * 1000)
    return times


def _bindable(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((re.sub(r"^\*$", "0.0.0.0", host), port))
        except OSError:
            return False
    return True


def _station_answers(host: str, port: int) -> bool:
    from station.client import Client, NoAnswer, Refused

    client = Client(reach(host, port), name="doctor", timeout_s=0.5)
    try:
        client.ping()
    except Refused:
        return True  # it answers, if not with yes
    except NoAnswer:
        return False
    finally:
        client.close()
    return True
