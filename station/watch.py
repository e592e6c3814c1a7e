"""Who looks after the station: probes for READY, systemd's watchdog, retention, disk space."""

import shutil
import threading
import time
from typing import TYPE_CHECKING

from station.sdnotify import notify, watchdog_s

if TYPE_CHECKING:
    from station.daemon import Daemon

_HOUSEKEEPING_S = 60.0
_RETENTION_S = 3600.0
_LOOK_S = 0.02  # a stall must show in READY within 250 ms, so look well inside that


class Watch:
    """A thread of its own: nothing it looks after can hold it up."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._disk_fault: str | None = None
        self._size_told = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def probe_all(self) -> None:
        """Register every reason not to be READY."""
        probe = self._daemon.readiness.probe
        probe("stop", lambda: "stopping" if self._daemon.stopping.is_set() else None)
        probe("ledger", self._ledger_fault)
        probe("disk", lambda: self._disk_fault)
        probe("engine", self._daemon.detector.fault)
        probe("deadlines", lambda: self._daemon.flow.keeper_fault(time.monotonic_ns()))
        probe("mode", lambda: "stopped by command" if self._daemon.mode == "stopped" else None)
        probe("camera", self._camera_fault)

    def _ledger_fault(self) -> str | None:
        if self._daemon.ledger.healthy:
            return None
        return (
            f"the ledger cannot be written: {self._daemon.ledger.fault or 'its thread has ended'}"
        )

    def _keep_house(self) -> None:
        """Once a minute: does the disk still have room, is the ledger growing beyond its size."""
        limits, path = self._daemon.settings.ledger, self._daemon.settings.ledger.path
        free = shutil.disk_usage(path.parent).free
        short = free < limits.min_free_bytes
        self._disk_fault = (
            f"{path.parent}: only {free >> 20} MiB of disk are free" if short else None
        )
        size = path.stat().st_size if path.exists() else 0
        if size > limits.max_bytes and not self._size_told:
            self._size_told = True
            self._daemon.event(
                "ledger_large", "warning", f"{path} has {size >> 20} MiB (ledger.max_bytes)"
            )

    def look_at_disk(self) -> None:
        """`_keep_house`; a disk that cannot be looked at is one that READY cannot trust."""
        try:
            self._keep_house()
        except OSError as error:
            self._disk_fault = f"the disk cannot be looked at ({error.strerror})"

    def _tick_for_the_ended(self) -> None:
        """A source that has ended has no thread any more; the rest of the station lives on."""
        for lane in self._daemon.lanes.values():
            if lane.finished:
                self._daemon.ticks.tick(lane.worker)

    def _retain(self) -> None:
        """Delete rows that are old and that every consumer has acknowledged."""
        days = self._daemon.settings.ledger.retention_days
        old_us = time.time_ns() // 1000 - int(days * 86_400e6)
        self._daemon.ledger.retain(max(0, old_us)).add_done_callback(lambda f: f.exception())

    def _camera_fault(self) -> str | None:
        for lane in self._daemon.lanes.values():
            if fault := lane.fault():
                return fault
            if lane.finished and not self._daemon.stopping.is_set():
                return "the source has ended"
        return None

    def _run(self) -> None:
        """Tell systemd that we live, only while every worker ticks; notice READY flips quickly."""
        period = watchdog_s() or 1.0
        told, mark, kept = 0.0, time.monotonic_ns(), 0.0
        retained = time.monotonic()  # not in the first hour: starting up has better things to do
        while not self._daemon.stopping.is_set():
            self._daemon.readiness.evaluate()
            now = time.monotonic()
            if now - kept >= _HOUSEKEEPING_S:
                self.look_at_disk()
                kept = now
            if now - retained >= _RETENTION_S:
                self._retain()
                retained = now
            if now - told >= min(period, 1.0):
                self._daemon.take_ticks()
                self._tick_for_the_ended()
                names = self._daemon.workers
                if all(self._daemon.ticks.ticked_since(name, mark) for name in names):
                    notify("WATCHDOG=1")
                    mark = time.monotonic_ns()
                told = now
            self._daemon.stopping.wait(_LOOK_S)
