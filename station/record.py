"""The recorder: an observer of the daemon that keeps parts in MCAP files, within budgets.

It sees a part after its verdict was sent, in the observer thread, behind a bounded queue: what
does not fit is dropped and counted, a verdict never waits. Kept are all parts that are not OK
(with the pictures of the seconds before them) and one in N that is; `every_ok` 1 keeps all parts
in one series of files, the form that `station replay --verify` wants.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from station.parts import PartRecord
from station.record_budget import free_bytes
from station.record_mcap import McapFile, picture_size
from station.record_recover import recover
from station.record_segments import Clock, Free, Identity, Segments
from station.schema import Verdict
from station.settings import RecordSettings
from station.sources.base import Frame

OnEvent = Callable[[str, str, str], None]  # kind, severity, text
RING_BYTES = 64 << 20  # ceiling of the pre-trigger ring whatever the frame rate
RETRY_S = 10.0  # after a failed write: a full disk is not asked again for every part
OVERHEAD = 8192  # a result, its boxes and MCAP's own bytes
TELL_S = 60.0  # at most one budget event a minute and class
MIN_FREE = 512 << 20


class Recorder:
    """PartObserver. Not thread-safe: one thread calls it. `on_event` must be thread-safe."""

    def __init__(
        self,
        settings: RecordSettings,
        identity: Identity,
        on_event: OnEvent,
        *,
        clock: Clock = time.monotonic,
        free: Free = free_bytes,
    ) -> None:
        self._settings = settings
        self._tell = on_event
        self._clock = clock
        self._ring: deque[Frame] = deque()
        self._ring_bytes = 0
        self._ok_seen = 0
        self._retry_at = float("-inf")
        self._told: dict[str, float] = {}
        self.written = 0
        self.dropped = 0
        self._recover()
        self._classes = self._open_classes(identity, free)

    def _open_classes(self, identity: Identity, free: Free) -> dict[str, Segments]:
        s = self._settings
        limits = {"notok": s.budget_not_ok_bytes, "ok": s.budget_ok_bytes}
        if s.every_ok == 1:
            limits = {"all": s.budget_not_ok_bytes + s.budget_ok_bytes}
        return {
            kind: Segments(
                s.folder,
                kind,
                limit=limit,
                file_bytes=s.file_bytes,
                min_free=getattr(s, "min_free_bytes", MIN_FREE),
                identity=identity,
                clock=self._clock,
                free=free,
            )
            for kind, limit in limits.items()
        }

    def _recover(self) -> None:
        """Nothing that lies in the folder may keep the station from starting."""

        def failed(part: Path, why: str) -> None:
            self._tell("recording_failed", "error", f"recovery of {part.name}: {why}")

        for found in recover(self._settings.folder, failed):
            self._tell("recording_recovered", "warning", str(found))

    def frame(self, frame: Frame) -> None:
        """A frame that belongs to no part: kept `pre_trigger_s` long in the ring."""
        if self._settings.pre_trigger_s <= 0:
            return
        self._ring.append(frame)
        self._ring_bytes += picture_size(frame)
        oldest = frame.t_capture_ns - int(self._settings.pre_trigger_s * 1e9)
        while self._ring and (self._ring[0].t_capture_ns < oldest or self._ring_bytes > RING_BYTES):
            self._ring_bytes -= picture_size(self._ring.popleft())

    def part(self, record: PartRecord) -> None:
        """Keep the part if the policy says so."""
        kind = self._class_of(record.result.verdict)
        if kind is None:
            return
        ring = self._take_ring() if record.result.verdict is not Verdict.OK else []
        size = picture_size(record.frame) + OVERHEAD + sum(picture_size(f) for f in ring)

        def put(file: McapFile) -> None:
            for frame in ring:
                file.image(frame, before=True)
            if record.frame is not None:
                file.image(record.frame, seq=record.result.seq)
            file.result(record.result, record.body, _label_us(record))

        self._write(kind, size, put)

    def message(self, stream: str, body: bytes) -> None:
        """Keep a description or an event beside the parts that are not OK."""
        kind = "all" if "all" in self._classes else "notok"
        self._write(kind, len(body) + 256, lambda file: file.body(stream, body))

    def tick(self) -> None:
        """Once a second everything written becomes durable."""
        for kind, files in self._classes.items():
            try:
                files.sync_if_due()
            except OSError as error:
                self._failed(kind, error)

    def close(self) -> None:
        """Finish the open files: index, sync, final name."""
        for kind, files in self._classes.items():
            try:
                files.rotate()
            except OSError as error:
                self._failed(kind, error)

    def _class_of(self, verdict: Verdict) -> str | None:
        if "all" in self._classes:
            return "all"
        if verdict is not Verdict.OK:
            return "notok"
        self._ok_seen += 1
        every = self._settings.every_ok
        return "ok" if every and self._ok_seen % every == 1 else None

    def _take_ring(self) -> list[Frame]:
        frames = list(self._ring)
        self._ring.clear()
        self._ring_bytes = 0
        return frames

    def _write(self, kind: str, size: int, put: Callable[[McapFile], None]) -> None:
        if self._clock() < self._retry_at:
            self.dropped += 1
            return
        files = self._classes[kind]
        removed = files.budget.state.removed
        try:
            kept = files.write(size, put)
            files.sync_if_due()
        except OSError as error:
            self._failed(kind, error)
            return
        self.written += kept
        self.dropped += not kept
        if not kept:
            self._once(kind, "recording_full", "warning", f"no room for {kind}: parts not recorded")
        elif files.budget.state.removed > removed:
            self._once(kind, "recording_budget", "info", f"oldest {kind} recordings removed")

    def _failed(self, kind: str, error: OSError) -> None:
        self.dropped += 1
        self._retry_at = self._clock() + RETRY_S
        self._once(kind, "recording_failed", "error", f"{kind}: {error}; verdicts go on")

    def _once(self, kind: str, event: str, severity: str, text: str) -> None:
        now = self._clock()
        key = f"{kind}:{event}"
        if now - self._told.get(key, float("-inf")) >= TELL_S:
            self._told[key] = now
            self._tell(event, severity, text)


def _label_us(record: PartRecord) -> int:
    """The wall time of a part's messages: its picture's, so that Foxglove pairs them."""
    return record.frame.wall_us if record.frame is not None else record.result.t_trigger_us
