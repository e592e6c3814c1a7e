"""A live camera or stream: a killable child process, watched, restarted and never given up.

The driver runs in `station.sources.worker`; here a pump thread takes its frames out of the ring,
notices repeats, stalls and damage, kills a hanging child and starts a new one. Decoding is left to
whoever uses the frame, so a triggered station decodes one picture per part.
"""

import json
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from engines.errors import SourceError
from station.settings import SourceSettings
from station.sources.base import Frame
from station.sources.pace import Pace
from station.sources.ring import Ring, Slot
from station.supervise import Backoff, RestartCap

_OPEN_S = 10.0  # V4L2 and RTSP may take seconds to open; more means it is not there
_MIN_STALL_NS = 250_000_000  # stall = max(3 frame periods, 250 ms)
# READY=0 must be on the bus by then, so it is decided a little before: the watchdog looks every
# 20 ms, and a status takes some milliseconds to be heard.
_TELL_NS = 30_000_000
_KEEP = 4  # frames that wait for a reader; older ones are dropped and counted
log = structlog.get_logger("camera")


@dataclass(frozen=True, slots=True)
class Health:
    """What READY and the metrics need to know of a live source."""

    ok: bool
    fault: str | None
    fps: float
    frames: int
    dropped: int
    repeats: int
    damaged: int
    restarts: int


class CameraSource:
    """See `Source`; `live` and endless. `on_event(kind, text)` is called from the pump thread."""

    live = True
    ends = False

    def __init__(self, spec: str, settings: SourceSettings) -> None:
        self.spec = spec
        self.settings = settings
        self.on_event: Callable[[str, str], None] = lambda _kind, _text: None
        self.tick_ns = time.monotonic_ns()
        self._frames: deque[Frame] = deque(maxlen=_KEEP)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._backoff = Backoff(first_s=0.5, most_s=8.0)
        self._cap = RestartCap(most=20, window_s=60.0)  # one that dies after each first frame
        self._child: subprocess.Popen[bytes] | None = None
        self._counts = {"frames": 0, "dropped": 0, "repeats": 0, "damaged": 0, "restarts": 0}
        self._fault: str | None = "camera not opened"
        self._mismatch: str | None = None
        self._last_ns = 0
        self._last_digest = 0
        self._pace = Pace(int(1e9 / settings.fps) if settings.fps else 0)
        self._base = 0
        self._next_try_ns = 0
        self._told = False  # of the stall that goes on
        self._wanted = dict(settings.controls)
        self._native: dict[str, float] = {}  # values of the driver before anybody set them
        self._ended: list[subprocess.Popen[bytes]] = []  # killed, not yet gone

    # -- Source ------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the child and wait until the driver has opened. SourceError when it cannot."""
        self._ring = Ring.create(self.settings.ring_slots, self.settings.ring_bytes)
        self._spawn()
        end = time.monotonic() + _OPEN_S
        while time.monotonic() < end:
            for message in self._messages(0.05):
                if message.get("event") == "opened":
                    self._opened(message)
                    self._pump = threading.Thread(target=self._run, name="camera", daemon=True)
                    self._pump.start()
                    return
                if message.get("event") == "lost":
                    self.close()
                    raise SourceError(f"source {self.spec}: {message.get('text')}")
        self.close()
        raise SourceError(f"source {self.spec}: did not open within {_OPEN_S:.0f} s")

    def read(self, timeout_s: float) -> Frame | None:
        """The oldest frame not yet read (at most four wait), None when none came in time."""
        with self._changed:
            if not self._frames:
                self._changed.wait(timeout_s)
            return self._frames.popleft() if self._frames else None

    def close(self) -> None:
        """Stop the pump (it starts no new child then), kill the child."""
        self._stop.set()
        pump = getattr(self, "_pump", None)
        if pump and pump is not threading.current_thread():
            pump.join(1.0)
        self._kill()
        ring = getattr(self, "_ring", None)
        if ring is not None and not (pump and pump.is_alive()):
            ring.close()
            del self._ring

    def tune(self, controls: dict[str, float]) -> None:
        """Set other exposure, gain and the like: not ready until a driver has read them back."""
        if controls != self._wanted:
            self._fault = f"camera {self.spec}: its controls are being set"
            self._wanted = dict(controls)
            with self._changed:
                self._frames.clear()  # they were seen by the old ones

    def health(self) -> Health:
        """The state of this moment; cheap, from any thread."""
        tuning = self._wanted != self.settings.controls
        fault = self._fault or self._mismatch or self._stalled(time.monotonic_ns())
        if tuning:
            fault = fault or f"camera {self.spec}: its controls are being set"
        elif not (pump := getattr(self, "_pump", None)) or not pump.is_alive():
            fault = fault or f"camera {self.spec}: nobody watches it"
        period_ns = self._pace.period_ns
        fps = 1e9 / period_ns if period_ns else 0.0
        return Health(fault is None, fault, fps, **self._counts)

    # -- pump --------------------------------------------------------------------------------

    def stall_ns(self) -> int:
        """How long without a frame is a stall: told within max(3 frame periods, 250 ms)."""
        if self.settings.stall_ms:
            return self.settings.stall_ms * 1_000_000
        return max(3 * self._pace.period_ns, _MIN_STALL_NS) - _TELL_NS

    def _stalled(self, now_ns: int) -> str | None:
        silent = now_ns - self._last_ns
        if silent > self.stall_ns():
            return f"camera {self.spec}: no frame for {silent / 1e9:.1f} s"
        return None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Exception as error:  # a camera is never given up, whatever went wrong
                log.error("camera_watch_failed", camera=self.spec, exc_info=True)
                self._lost(f"watching it failed ({type(error).__name__}: {error})")

    def _look(self) -> None:
        """One turn of the pump: what the child sent, and whether it must be replaced."""
        for message in self._messages(0.02):
            self._on_message(message)
        now = self.tick_ns = time.monotonic_ns()
        self._ended = [child for child in self._ended if child.poll() is None]
        stall = self._stalled(now)
        if stall and not self._told:
            self.on_event("camera_stalled", stall)
        self._told = stall is not None
        if self._child is None:
            if now >= self._next_try_ns and not self._stop.is_set():
                self._restart()
        elif self._wanted != self.settings.controls:
            self._retune()
        elif self._child.poll() is not None:
            self._lost("the camera process ended")
        elif stall and now - max(self._last_ns, self._started_ns) > self._patience_ns():
            self._lost(stall)

    def _retune(self) -> None:
        """A new child sets the new controls and reads them back; the old one's frames are gone."""
        self.settings = self.settings.model_copy(update={"controls": self._wanted})
        self._kill()
        self._told = True  # it stalls because it was asked to
        self._respawn()

    def _patience_ns(self) -> int:
        """A hanging child is replaced after `restart_s`; one that is still opening gets longer."""
        if self._last_ns < self._started_ns:
            return int(_OPEN_S * 1e9)
        return int(max(self.settings.restart_s * 1e9, self.stall_ns()))

    def _on_message(self, message: dict[str, Any]) -> None:
        kind = message.get("event")
        if "frame" in message:
            self._take(message)
        elif kind == "opened":
            self._opened(message)
            self.on_event("camera_opened", f"camera {self.spec} is back")
        elif kind == "lost":
            if self._child is not None:
                self._lost(str(message.get("text")))
        elif kind == "too_large":
            self._fault = f"camera {self.spec}: {message.get('text')}"

    def _opened(self, message: dict[str, Any]) -> None:
        wrong = message.get("mismatch") or []
        self._native = {**message.get("before", {}), **self._native}
        self._mismatch = f"camera {self.spec}: {'; '.join(wrong)}" if wrong else None
        self._fault = None if self._wanted == self.settings.controls else self._fault
        self._last_ns = 0 if not self._counts["frames"] else self._last_ns
        self._pace.told(float(message.get("fps") or 0))

    def _take(self, message: dict[str, Any]) -> None:
        """One frame out of the ring; a slot that was overwritten meanwhile is a dropped frame."""
        slot = self._ring.read(int(message["frame"]), check=True)
        if slot is None or slot.index != message["index"]:
            self._counts["dropped"] += 1
            return
        if self._wanted != self.settings.controls:
            return  # seen by the old controls
        self._fault = None
        self._backoff.reset()
        self._pace.frame(slot.t_capture_ns, self._base + slot.index)
        self._last_ns = slot.t_capture_ns
        frame = self._frame(slot, message.get("fault"))
        with self._changed:
            self._counts["dropped"] += len(self._frames) == _KEEP
            self._frames.append(frame)
            self._changed.notify_all()

    def _frame(self, slot: Slot, damage: str | None) -> Frame:
        digest = slot.crc | (len(slot.payload) & 0xFFFFFFFF) << 32
        repeat = digest == self._last_digest
        self._last_digest = digest
        self._counts["frames"] += 1
        self._counts["repeats"] += repeat
        self._counts["damaged"] += damage is not None
        name = f"{self.spec.rsplit('/', 1)[-1] or 'camera'}#{self._base + slot.index}"
        return Frame(
            image=slot.image() if slot.kind == "bgr" and not damage else None,
            raw=slot.payload if slot.kind == "encoded" else None,
            name=name,
            t_capture_ns=slot.t_capture_ns,
            wall_us=slot.wall_us,
            index=self._base + slot.index,
            fault=damage and f"{name}: {damage}",
            digest=digest,
            repeat=repeat,
        )

    # -- child -------------------------------------------------------------------------------

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = {
            "spec": self.spec,
            "slots": self._ring.slots,
            "slot_bytes": self._ring.slot_bytes,
            "settings": self.settings.model_dump(mode="json"),
            # What another recipe set and this one does not name goes back to what it was.
            "restore": {n: v for n, v in self._native.items() if n not in self.settings.controls},
        }
        argv = [sys.executable, "-m", "station.sources.worker"]
        argv += [str(theirs.fileno()), str(self._ring.fd), json.dumps(config)]
        self._child = subprocess.Popen(
            argv,
            pass_fds=(theirs.fileno(), self._ring.fd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal is the station's to handle
        )
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._started_ns = time.monotonic_ns()

    def _restart(self) -> None:
        self._counts["restarts"] += 1
        log.info("camera_restart", camera=self.spec, restarts=self._counts["restarts"])
        self._respawn()

    def _respawn(self) -> None:
        self._base += 1 << 32  # indices of a new child never meet those of the old one
        try:
            self._spawn()
        except OSError as error:  # no process, no descriptor: later perhaps
            self._lost(f"its process cannot be started ({error.strerror})")

    def _lost(self, why: str) -> None:
        # A driver may name the camera itself: once is enough.
        why = why.removeprefix(f"camera {self.spec}").lstrip(": ")
        self._fault = f"camera {self.spec}: {why}"
        self._kill()
        wait = self._backoff.next_s() if self._cap.allow() else self._backoff.most_s
        self._next_try_ns = time.monotonic_ns() + int(wait * 1e9)
        self.on_event("camera_lost", f"{self._fault}; trying again in {wait:g} s")

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            try:
                child.wait(1.0)
            except subprocess.TimeoutExpired:  # inside the driver: it ends when that returns
                self._ended.append(child)
            self._socket.close()

    @property
    def pid(self) -> int | None:
        """The child's process id (fault tests kill it)."""
        child = self._child
        return child.pid if child else None

    def _messages(self, wait_s: float) -> list[dict[str, Any]]:
        """Datagrams that are there, waiting at most `wait_s` for the first."""
        import select

        if self._child is None:
            self._stop.wait(wait_s)
            return []
        try:
            ready, _, _ = select.select([self._socket], [], [], wait_s)
        except (OSError, ValueError):
            return []
        found: list[dict[str, Any]] = []
        while ready and len(found) < 64:
            try:
                data = self._socket.recv(65536)
            except OSError:
                break
            if not data:
                break
            found.append(json.loads(data))
        return found
