"""Procedural parts and ISP/1 bodies for the tests of recorder, archive, numbers and page."""

import time

import cv2
import numpy as np

from station.parts import PartRecord
from station.schema import Desc, Event, Region, Result, Stream, Timings, body, hex64
from station.sources.base import Frame

EPOCH = "00000000000000aa"
T0 = 1_700_000_000_000_000
WIDTH, HEIGHT = 480, 360


def part_picture(n: int, defect: tuple[int, int] | None = None) -> np.ndarray:
    """A turned steel disc on a dark belt, BGR uint8 (360,480,3); `defect`: centre of a pit."""
    rng = np.random.default_rng([7, n])
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    r = np.hypot(x - WIDTH / 2, y - HEIGHT / 2)
    turned = 150 + 9 * np.sin(r * 1.1) + 22 * np.cos(2 * np.arctan2(y - HEIGHT / 2, x - WIDTH / 2))
    grey = np.where((r < 150) & (r > 42), turned, 42 + 5 * np.sin(y / 3))
    grey += np.where(np.abs(r - 150) < 3, 50, 0) + np.where(np.abs(r - 42) < 3, 40, 0)
    if defect is not None:
        away = np.hypot((x - defect[0]) * 0.8, y - defect[1])
        grey -= 110 * np.exp(-((away / 11) ** 2))
    grey += rng.normal(0, 3, grey.shape)
    tint = np.stack([grey * 1.03, grey, grey * 0.97], axis=2)
    return tint.clip(0, 255).astype(np.uint8)


def part_map(defect: tuple[int, int] | None, peak: float = 0.9) -> np.ndarray:
    """f32 (360,480): what an engine would answer for `part_picture` with that defect."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    base = np.full((HEIGHT, WIDTH), 0.08, np.float32)
    if defect is not None:
        base += (peak - 0.08) * np.exp(-(np.hypot(x - defect[0], y - defect[1]) ** 2) / 700)
    return base.astype(np.float32)


def frame(n: int, image: np.ndarray | None = None, jpeg: bool = False) -> Frame:
    """Frame n; `jpeg`: as a camera delivers it (encoded bytes, not yet decoded)."""
    picture = part_picture(n) if image is None else image
    raw = cv2.imencode(".jpg", picture)[1].tobytes() if jpeg else None
    return Frame(
        image=None if jpeg else picture,
        raw=raw,
        name=f"part-{n:05d}",
        t_capture_ns=n * 100_000_000,
        wall_us=T0 + n * 100_000,
        index=n,
    )


def result(seq: int, verdict: str = "OK", **changes) -> Result:
    """A consistent result: OK .2, NG .8 against .5; others without a score."""
    reason = {"OK": "score", "NG": "score", "UNDECIDED": "deadline", "ERROR": "camera"}[verdict]
    score = {"OK": 0.2, "NG": 0.8}.get(verdict)
    regions = (Region(x=300, y=150, w=40, h=40, peak=0.9, area=900),) if verdict == "NG" else ()
    fields = {
        "line": "line1",
        "station": "st1",
        "epoch": EPOCH,
        "seq": seq,
        "trigger_id": hex64(seq),
        "part_id": f"part-{seq:05d}",
        "attempt": 1,
        "verdict": verdict,
        "reason": reason,
        "late": False,
        "simulated": True,
        "score": score,
        "threshold": 0.5,
        "regions": regions,
        "region_count": len(regions),
        "recipe": "disc",
        "recipe_sha": "a" * 64,
        "bundle_sha": "b" * 64,
        "config_sha": "c" * 64,
        "t_trigger_us": T0 + seq * 100_000 - 20_000,
        "t_capture_us": T0 + seq * 100_000,
        "t_done_us": T0 + seq * 100_000 + 15_000,
        "timings_us": Timings(queue=100, acquire=2000, infer=12000, commit=300),
        "image_ref": f"img/{seq}",
        "desc_state": "none",
    }
    return Result(**(fields | changes))


def record(
    seq: int, verdict: str = "OK", jpeg: bool = False, size: int = 1, **changes
) -> PartRecord:
    """A finished part; `size` scales its picture down (1 = 480x360)."""
    defect = (320, 170) if verdict == "NG" else None
    image = part_picture(seq, defect)[::size, ::size]
    answer = result(seq, verdict, **changes)
    return PartRecord(
        frame=frame(seq, np.ascontiguousarray(image), jpeg),
        body=body(answer),
        result=answer,
        map=part_map(defect)[::size, ::size] if answer.score is not None else None,
        regions=(),
        region_box=None,
        threshold=0.5,
    )


def description(seq: int, text: str = "A dark pit near the rim.") -> bytes:
    """The body of a description of part `seq`."""
    model = Desc(
        line="line1",
        station="st1",
        epoch=EPOCH,
        seq=seq,
        trigger_id=hex64(seq),
        part_id=f"part-{seq:05d}",
        sentence=text,
        source="template",
        category="pit",
        t_us=T0 + seq * 100_000 + 50_000,
    )
    return body(model)


def event(seq: int, kind: str = "recipe", severity: str = "info") -> bytes:
    """The body of an event."""
    model = Event(
        line="line1",
        station="st1",
        stream=Stream.EVENT,
        epoch=EPOCH,
        seq=seq,
        kind=kind,
        severity=severity,
        t_us=T0 + seq,
    )
    return body(model)


class Events:
    """Collects what observers tell."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def __call__(self, kind: str, severity: str, text: str) -> None:
        self.told.append((kind, severity, text))

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.told]


class Clock:
    """A clock that moves when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def wait_for(condition, seconds: float = 10.0, what: str = "condition") -> None:
    """Poll until true; AssertionError with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")
