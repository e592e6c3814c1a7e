"""What the engineer's tab tells about recipe and bundle, read from their folders. Never written.

Flagging a reference is a note for the next enrolment, kept beside the page's own files: a recipe
is never changed behind the station's back.
"""

import json
import re
import threading
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

PICTURES = {".png", ".jpg", ".jpeg"}
_SAFE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
_SIDE = 32  # grey thumbnail for "nearest good reference": position and light, nothing finer


class Products:
    """Reads `recipes/<name>` and a bundle folder; any thread."""

    def __init__(self, recipes: Path, bundle: Path | None, flags: Path) -> None:
        self._recipes = recipes
        self._bundle = bundle
        self._flags = flags
        self._lock = threading.Lock()
        self._small: dict[str, tuple[list[str], NDArray[np.float32]]] = {}

    def describe(self, name: str) -> dict[str, Any]:
        """Recipe, calibration and gate figures as they stand in their files; missing = absent."""
        folder = self._folder(name)
        told: dict[str, Any] = {"name": name, "references": self.references(name)}
        if folder is not None:
            told["recipe"] = _toml(folder / "recipe.toml")
            told["calibration"] = _brief(_json(folder / "calibration.json"))
        if self._bundle is not None:
            told["bundle"] = gate(_json(self._bundle / "manifest.json"))
        told["flags"] = self.flags(name)
        return told

    def references(self, name: str) -> list[str]:
        """File names of the pictures in the recipe's memory, sorted (not those held out)."""
        folder = self._folder(name)
        if folder is None or not (folder / "references").is_dir():
            return []
        files = {p.name for p in (folder / "references").iterdir() if p.suffix.lower() in PICTURES}
        shots = _json(folder / "calibration.json").get("shots")
        if isinstance(shots, list):
            files &= {shot.get("file", "") for shot in shots if isinstance(shot, dict)}
        return sorted(files)

    def reference(self, name: str, file: str) -> Path | None:
        """The path of a reference, None when the recipe has no such file."""
        folder = self._folder(name)
        if folder is None or file not in self.references(name):
            return None
        return folder / "references" / file

    def region(self, name: str) -> dict[str, int] | None:
        """x, y, w, h of the frame that the references are cut from; None: the whole frame."""
        folder = self._folder(name)
        found = _toml(folder / "recipe.toml").get("region") if folder else None
        return found if isinstance(found, dict) and {*"xywh"} <= found.keys() else None

    def nearest(self, name: str, picture: bytes) -> str | None:
        """The reference that looks most like a picture (distance of 32x32 grey thumbnails)."""
        query = _thumbnail(np.frombuffer(picture, np.uint8), self.region(name))
        if query is None:
            return None
        files, table = self._table(name)
        return files[int(np.square(table - query).sum(1).argmin())] if files else None

    def flags(self, name: str) -> dict[str, str]:
        """Flagged references and why."""
        with self._lock:
            return dict(_json(self._flags).get(name, {}))

    def flag(self, name: str, file: str, why: str) -> bool:
        """Flag (or with an empty `why` clear) a reference; False if there is no such file."""
        if self.reference(name, file) is None:
            return False
        with self._lock:
            everything = _json(self._flags)
            mine = everything.setdefault(name, {})
            mine.pop(file, None)
            if why:
                mine[file] = why[:200]
            self._flags.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._flags.with_suffix(".new")
            scratch.write_text(json.dumps(everything, indent=1), encoding="utf-8")
            scratch.replace(self._flags)
        return True

    def _folder(self, name: str) -> Path | None:
        if not _SAFE.match(name):
            return None  # a name from outside never becomes a path
        folder = self._recipes / name
        return folder if folder.is_dir() else None

    def _table(self, name: str) -> tuple[list[str], NDArray[np.float32]]:
        files = self.references(name)
        folder = self._folder(name)
        made = (folder / "recipe.toml") if folder is not None else None
        stamp = made.stat().st_mtime_ns if made is not None and made.exists() else 0
        key = f"{name}:{len(files)}:{stamp}"  # enrolled again: the same names, other pictures
        with self._lock:
            if key in self._small:
                return self._small[key]
        rows, names = [], []
        for file in files:
            path = self.reference(name, file)
            row = _thumbnail(np.fromfile(path, np.uint8)) if path else None
            if row is not None:
                rows.append(row)
                names.append(file)
        table = np.stack(rows) if rows else np.zeros((0, _SIDE * _SIDE), np.float32)
        with self._lock:
            self._small = {key: (names, table)}  # one product at a time is on the line
        return names, table


def gate(manifest: dict[str, Any]) -> dict[str, Any]:
    """Of a bundle's manifest: what it is, and per engine its measured figures, flattened."""
    engines = []
    found = manifest.get("engines", [])
    rows = found.items() if isinstance(found, dict) else ((e.get("name", ""), e) for e in found)
    for name, engine in rows:
        figures = {
            key: engine[key]
            for key in ("precision", "parity", "gate", "latency", "latency_ms", "sha256", "opset")
            if engine.get(key) not in (None, {}, [])
        }
        engines.append({"name": name or engine.get("file", ""), "figures": figures})
    facts = {
        key: value
        for key, value in manifest.items()
        if isinstance(value, str | int | float | bool) and len(str(value)) < 300
    }
    return {"facts": facts, "engines": engines}


def _brief(data: dict[str, Any]) -> dict[str, Any]:
    """A calibration without its long lists (the page shows figures, not scores)."""
    return {k: v for k, v in data.items() if not isinstance(v, list | dict) or len(str(v)) < 400}


def _thumbnail(
    data: NDArray[np.uint8], region: dict[str, int] | None = None
) -> NDArray[np.float32] | None:
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if image is not None and region is not None:
        x, y = region["x"], region["y"]
        image = image[y : y + region["h"], x : x + region["w"]]
    if image is None or image.size == 0:
        return None
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(small.ravel(), np.float32)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the page shows "not there"; the station itself is the one to complain
    return data if isinstance(data, dict) else {}


def _toml(path: Path) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(tomllib.loads(path.read_text(encoding="utf-8")), default=str))
    except (OSError, ValueError):
        return {}
