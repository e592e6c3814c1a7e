"""The archive: pictures with their verdicts as plain files, for people and for re-training.

Kept are every part that is not OK, borderline good ones (score within `borderline` of the
threshold) and one in N of the others, each class within its own byte budget, the oldest first
out. Layout: `<folder>/<class>/<YYYYMMDD>/<t_trigger_us>_<trigger_id>.json` (the body as sent),
`.jpg` or `.png` (the frame without loss where it can be), `.map.png`, `.desc.json`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

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
SUFFIXES = (".json", ".jpg", ".png", ".map.png", ".desc.json")


@dataclass(frozen=True, slots=True)
class Entry:
    """One archived part: `stem` + suffix are its files. Small: an index of all of them is held."""

    kind: str
    folder: Path  # one object for all parts of a day
    name: str

    @property
    def stem(self) -> Path:
        """Path of its files without suffix."""
        return self.folder / self.name

    @property
    def trigger_id(self) -> str:
        """The part's trigger id, from the file name."""
        return self.name.rpartition("_")[2]

    def files(self) -> list[Path]:
        """The files that exist."""
        paths = [self.stem.with_name(self.stem.name + suffix) for suffix in SUFFIXES]
        return [path for path in paths if path.exists()]

    def read(self, suffix: str) -> bytes | None:
        """One of its files, or None."""
        path = self.stem.with_name(self.stem.name + suffix)
        return path.read_bytes() if path.exists() else None

    @property
    def picture(self) -> Path | None:
        """The frame's file."""
        for suffix in (".jpg", ".png"):
            path = self.stem.with_name(self.stem.name + suffix)
            if path.exists():
                return path
        return None


def entries(folder: Path, kind: str) -> list[Entry]:
    """The archived parts of a class, oldest first (their names begin with the time)."""
    found = (folder / kind).glob("*/*.json")
    stems = [path.with_suffix("") for path in found if not path.name.endswith(".desc.json")]
    folders: dict[Path, Path] = {}
    return [
        Entry(kind, folders.setdefault(stem.parent, stem.parent), stem.name)
        for stem in sorted(stems, key=lambda s: s.name)
    ]


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
        self._index: dict[str, Entry] = {}
        self._days: dict[str, Path] = {}
        self._budgets = {kind: self._open(kind, free) for kind in CLASSES}

    def _open(self, kind: str, free: Callable[[Path], int]) -> Budget:
        units = []
        for entry in entries(self.folder, kind):
            self._index[entry.trigger_id] = entry
            size = sum(path.stat().st_size for path in entry.files())
            units.append(Unit(entry.trigger_id, size))
        return Budget(
            int(self._values[f"budget_{kind}_bytes"]),
            self._remove,
            units,
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
        try:
            room = budget.room(size)
            if room:
                self._write(kind, record.result, files)
                budget.add(Unit(record.result.trigger_id, size))
        except OSError as error:
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
        """Put a description beside its part."""
        if stream != "desc":
            return
        entry = self._index.get(json.loads(body).get("trigger_id", ""))
        if entry is None:
            return
        try:
            entry.stem.with_name(entry.stem.name + ".desc.json").write_bytes(body)
        except OSError as error:
            self._once("archive_failed", "error", f"description: {error}; verdicts go on")

    def image(self, trigger_id: str, kind: str) -> Picture | None:
        """A picture of an archived part for GET ("" or "map"; no thumbnails); any thread."""
        entry = self._index.get(trigger_id)
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
        """Nothing is held open."""

    def _sampled(self) -> bool:
        self._ok_seen += 1
        every = int(self._values["every_ok"])
        return bool(every) and (self._ok_seen - 1) % every == 0

    def _write(self, kind: str, result: Result, files: dict[str, bytes]) -> None:
        day = datetime.fromtimestamp(result.t_trigger_us / 1e6, UTC).strftime("%Y%m%d")
        folder = self.folder / kind / day
        folder.mkdir(parents=True, exist_ok=True)
        folder = self._days.setdefault(f"{kind}/{day}", folder)
        entry = Entry(kind, folder, f"{result.t_trigger_us:016d}_{result.trigger_id}")
        for suffix, data in files.items():  # the .json comes last: with it the entry exists
            entry.stem.with_name(entry.stem.name + suffix).write_bytes(data)
        self._index[result.trigger_id] = entry

    def _remove(self, unit: Unit) -> None:
        entry = self._index.pop(unit.name, None)
        for path in entry.files() if entry else []:
            path.unlink(missing_ok=True)

    def _once(self, event: str, severity: str, text: str) -> None:
        now = self._clock()
        if now - self._told.get(event, float("-inf")) >= TELL_S:
            self._told[event] = now
            self._tell(event, severity, text)


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
