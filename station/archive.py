"""The archive: pictures with their verdicts as plain files, for people and for re-training.

Kept are every part that is not OK, borderline good ones (score within `borderline` of the
threshold) and one in N of the others, each class within its own byte budget, the oldest first
out. Layout: `<folder>/<class>/<YYYYMMDD>/<t_trigger_us>_<trigger_id>.json` (the body as sent),
`.jpg` or `.png` (the frame without loss where it can be), `.map.png`, `.desc.json`.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from station.archive_index import SUFFIXES, ArchiveIndex, Entry, Queue
from station.parts import PartRecord
from station.record_budget import Budget, Unit, free_bytes
from station.record_mcap import image_format
from station.record_pictures import map_png, png
from station.schema import Result, Verdict
from station.settings import ArchiveSettings
from station.sources.decode import decoded

CLASSES = ("ng", "undecided", "error", "borderline", "ok")
DEFAULTS: dict[str, float] = {
    "every_ok": 20,
    "borderline": 0.1,
    "budget_ng_bytes": 1 << 30,
    "budget_undecided_bytes": 256 << 20,
    "budget_error_bytes": 128 << 20,
    "budget_borderline_bytes": 512 << 20,
    "budget_ok_bytes": 512 << 20,
    "min_free_bytes": 512 << 20,
}
TELL_S = 60.0
RETRY_S = 10.0
MEDIA = {".jpg": "image/jpeg", ".png": "image/png"}
Picture = tuple[str, bytes]  # media type, bytes


def class_of(result: Result, borderline: float) -> str:
    """ng, undecided, error, borderline or ok."""
    if result.verdict is not Verdict.OK:
        return result.verdict.value.lower()
    score, threshold = result.score, result.threshold
    assert score is not None and threshold is not None  # the schema refuses an OK without
    return "borderline" if abs(score - threshold) <= borderline * abs(threshold) else "ok"


class Archive:
    """PartObserver; one thread calls it. `on_event(kind, severity, text)` must be thread-safe."""

    def __init__(
        self,
        settings: ArchiveSettings,
        on_event: Callable[[str, str, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.folder = settings.folder
        self._values = {key: getattr(settings, key, value) for key, value in DEFAULTS.items()}
        self._tell = on_event
        self._clock = clock
        self._told: dict[str, float] = {}
        self._ok_seen = 0
        self._retry_at = float("-inf")
        self.dropped = 0
        self._index = ArchiveIndex(self.folder, CLASSES)
        self._budgets = {kind: self._open(kind, free) for kind in CLASSES}

    def _open(self, kind: str, free: Callable[[Path], int]) -> Budget:
        queue = Queue(self._index, kind)
        return Budget(
            int(self._values[f"budget_{kind}_bytes"]),
            self._remove,
            queue,
            queue.used,
            int(self._values["min_free_bytes"]),
            lambda: free(self.folder),
        )

    def part(self, record: PartRecord) -> None:
        """Archive the part if its class is kept."""
        kind = class_of(record.result, self._values["borderline"])
        if self._clock() < self._retry_at or (kind == "ok" and not self._sampled()):
            return
        files = _files(record)
        size = sum(len(data) for data in files.values())
        budget = self._budgets[kind]
        removed = budget.state.removed
        unit = Unit(_name(kind, record.result), size)
        try:
            room = budget.room(size)
            if room:
                self._write(unit.name, files)
                budget.add(unit)
        except OSError as error:
            with suppress(OSError):  # half a part would count nowhere and never be deleted
                self._remove(unit)
            self.dropped += 1
            self._retry_at = self._clock() + RETRY_S
            self._once("archive_failed", "error", f"{kind}: {error}; verdicts go on")
            return
        self.dropped += not room
        if not room:
            self._once("archive_full", "warning", f"no room for {kind}: parts not archived")
        elif budget.state.removed > removed:
            self._once("archive_budget", "info", f"oldest {kind} parts removed")

    def message(self, stream: str, body: bytes) -> None:
        """Put a description beside its part, within the budget of the part's class."""
        if stream != "desc":
            return
        trigger_id = json.loads(body).get("trigger_id", "")
        entry = self._find(trigger_id)
        if entry is None:
            return
        path = entry.stem.with_name(entry.stem.name + ".desc.json")
        budget = self._budgets[entry.kind]
        try:
            more = len(body) - (path.stat().st_size if path.exists() else 0)
            if more > 0 and not budget.room(more):
                self._once("archive_full", "warning", f"no room for words of {entry.kind}")
            elif self._index.find(trigger_id) == entry:  # the room may have been its own
                path.write_bytes(body)
                self._index.enlarge(entry, more)
                budget.enlarge(more)
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            self._once("archive_failed", "error", f"description: {error}; verdicts go on")

    def image(self, trigger_id: str, kind: str) -> Picture | None:
        """A picture of an archived part for GET ("" or "map"; no thumbnails); any thread."""
        entry = self._find(trigger_id)
        if entry is None:
            return None
        if kind == "map":
            data = entry.read(".map.png")
            return (MEDIA[".png"], data) if data is not None else None
        path = entry.picture if kind == "" else None
        if path is None:
            return None
        return MEDIA[path.suffix], path.read_bytes()

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def _find(self, trigger_id: str) -> Entry | None:
        try:
            return self._index.find(trigger_id)
        except OSError:
            return None

    def _sampled(self) -> bool:
        self._ok_seen += 1
        every = int(self._values["every_ok"])
        return bool(every) and (self._ok_seen - 1) % every == 0

    def _write(self, name: str, files: dict[str, bytes]) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        for suffix, data in files.items():  # the .json comes last: with it the entry exists
            (self.folder / (name + suffix)).write_bytes(data)

    def _remove(self, unit: Unit) -> None:
        for suffix in SUFFIXES:
            (self.folder / (unit.name + suffix)).unlink(missing_ok=True)

    def _once(self, event: str, severity: str, text: str) -> None:
        now = self._clock()
        if now - self._told.get(event, float("-inf")) >= TELL_S:
            self._told[event] = now
            self._tell(event, severity, text)


def _name(kind: str, result: Result) -> str:
    """The stem of a part's files below the archive's folder."""
    day = datetime.fromtimestamp(result.t_trigger_us / 1e6, UTC).strftime("%Y%m%d")
    return f"{kind}/{day}/{result.t_trigger_us:016d}_{result.trigger_id}"


def _files(record: PartRecord) -> dict[str, bytes]:
    """Suffix to bytes. A frame's own JPEG or PNG is kept as it came; pixels become PNG."""
    files: dict[str, bytes] = {}
    frame = record.frame
    form = image_format(frame.raw) if frame is not None else None
    if frame is not None and form is not None and frame.raw is not None:
        files[".jpg" if form == "jpeg" else ".png"] = frame.raw
    elif frame is not None and frame.image is not None:
        files[".png"] = png(frame.image)
    if frame is not None and record.map is not None:
        image = decoded(frame).image
        if image is not None:
            hw = (image.shape[0], image.shape[1])
            files[".map.png"] = map_png(record.map, record.region_box, hw, record.alarm_level)
    files[".json"] = record.body
    return files
