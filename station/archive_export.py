"""`station export`: the archive as a folder with a CSV, or as a data set ready for re-training."""

import csv
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import SourceError, UsageError
from station.archive import CLASSES
from station.archive_index import Entry, entries
from station.record_pictures import LEVEL_GREY

COLUMNS = (
    "file",
    "class",
    "part_id",
    "trigger_id",
    "attempt",
    "verdict",
    "reason",
    "late",
    "score",
    "threshold",
    "region_count",
    "recipe",
    "t_trigger_us",
    "category",
    "description",
)
NOTE = """The pictures of this data set were sorted by the station's own verdicts, not by a person.
train/good holds parts judged OK, test/<category> parts judged NG. proposed_masks/ was drawn from
the station's anomaly maps at the alarm level; a black mask means that no map was kept. Look through
all of it, move what is wrong, correct the masks, and only then rename proposed_masks to
ground_truth: until then no reader of this layout takes them for the truth.
"""


@dataclass
class ExportReport:
    """What was written."""

    out: Path
    parts: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    without_picture: int = 0


def export(
    archive: Path, out: Path, layout: Literal["folder", "mvtec"] = "folder", test_share: int = 5
) -> ExportReport:
    """Copy the archive's parts into `out`.

    folder: pictures by class beside `parts.csv`. mvtec: `train/good`, `test/good` (one in
    `test_share` good parts), `test/<category>`, `proposed_masks/<category>`, all of them PNG.
    Raises SourceError (nothing archived), UsageError (`out` is in use).
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: not empty; export into a new folder")
    found = [entry for kind in CLASSES for entry in entries(archive, kind)]
    if not found:
        raise SourceError(f"{archive}: no archived parts; run the station with archive.enabled")
    out.mkdir(parents=True, exist_ok=True)
    report = ExportReport(out)
    rows = [_export_one(entry, out, layout, test_share, report) for entry in found]
    with (out / "parts.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    if layout == "mvtec":
        (out / "README.txt").write_text(NOTE, encoding="utf-8")
    return report


def _export_one(
    entry: Entry, out: Path, layout: str, test_share: int, report: ExportReport
) -> dict[str, Any]:
    row = json.loads(entry.read(".json") or b"{}")
    words = json.loads(entry.read(".desc.json") or b"{}")
    row |= {"class": entry.kind, "category": words.get("category") or "", "file": ""}
    row["description"] = words.get("sentence", "")
    report.parts += 1
    report.classes[entry.kind] += 1
    picture = entry.picture
    if picture is None:
        report.without_picture += 1
        return row
    nth = report.classes[entry.kind]
    where = _place(row, entry, layout, nth % test_share == 0 if test_share else False)
    if where is None:
        return row
    name = f"{entry.stem.name}{'.png' if layout == 'mvtec' else picture.suffix}"
    row["file"] = f"{where}/{name}"
    (out / where).mkdir(parents=True, exist_ok=True)
    _copy(picture, out / where / name)
    if layout == "mvtec" and entry.kind == "ng":
        mask = out / "proposed_masks" / Path(where).name / f"{entry.stem.name}_mask.png"
        _mask(entry, mask)
    return row


def _copy(picture: Path, path: Path) -> None:
    """The archived bytes, or as PNG where the layout's readers look for nothing else."""
    image = None
    if path.suffix != picture.suffix:
        image = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
    if image is None:
        shutil.copyfile(picture, path)
    else:
        cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _place(row: dict[str, Any], entry: Entry, layout: str, in_test: bool) -> str | None:
    """The folder of a part's picture; None: it has no place in this layout."""
    if layout == "folder":
        return entry.kind
    if entry.kind in {"ok", "borderline"}:
        return "test/good" if in_test else "train/good"
    if entry.kind != "ng":
        return None  # undecided and error parts show the station's faults, not the product's
    return "test/" + (re.sub(r"[^a-z0-9]+", "_", row["category"].lower()).strip("_") or "defect")


def _grey(data: bytes) -> NDArray[np.uint8] | None:
    """A picture's grey values u8 (H,W); None when it is none."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    return None if found is None else np.asarray(found, np.uint8)


def _mask(entry: Entry, path: Path) -> None:
    """Where the map is above its level; black without one, since every reject needs a mask."""
    data, picture = entry.read(".map.png") or b"", entry.picture
    frame = None if picture is None else _grey(picture.read_bytes())
    if frame is None:
        return
    grey = _grey(data)
    size = (frame.shape[1], frame.shape[0])
    full = np.zeros_like(frame) if grey is None else cv2.resize(grey, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), (full > LEVEL_GREY).astype(np.uint8) * 255)
