"""The exported engines over a labelled set: encoder once per picture, the rest per run of shots.

`tddf`, `msspmm.<mode>` and `head` of the bundle are the detector in pieces, so that five runs of
four numbers of shots cost one encoding. `fused_difference` states how far the pieces lie from the
fused detector on the same pictures: nothing, or rounding.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.datasets import Sample, read_image, read_mask, small_mask
from calibration.trust import carry, reference_trust
from engines.bundle import Bundle, EngineEntry, Kind
from engines.detector import Detector, Memory
from engines.errors import EngineError
from engines.preprocess import resize
from engines.session import Session

F32 = NDArray[np.float32]
BATCH = 8
SIDE = 240


@dataclass(frozen=True)
class Encoded:
    """Engine features of N pictures: cls (N,E), taps 3 x (N,225,D)."""

    cls: F32
    taps: tuple[F32, F32, F32]

    def rows(self, index: Sequence[int]) -> "Encoded":
        """A subset."""
        chosen = list(index)
        a, b, c = (tap[chosen] for tap in self.taps)
        return Encoded(self.cls[chosen], (a, b, c))


@dataclass(frozen=True)
class Labelled:
    """Pictures ready for metrics: tiles u8 (N,240,240,3) RGB, masks bool (N,240,240), flags (N,).

    `located` False: defective, but the place is not labelled.
    """

    samples: tuple[Sample, ...]
    tiles: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    defective: NDArray[np.bool_]
    located: NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """Answers: maps f32 (N,240,240), scores (N,), p and am (N,15,15,3)."""

    maps: F32
    scores: F32
    p: F32
    am: F32


def load_labelled(samples: Sequence[Sample]) -> Labelled:
    """Read pictures and masks of samples (none is fine), once, at the model's size."""
    tiles, masks = [np.zeros((0, SIDE, SIDE, 3), np.uint8)], [np.zeros((0, SIDE, SIDE), np.bool_)]
    for sample in samples:
        image = read_image(sample)
        tiles.append(np.ascontiguousarray(resize(image)[None, ..., ::-1]))
        known = sample.located and not sample.normal
        full = read_mask(sample, image.shape[:2]) if known else np.zeros((1, 1), bool)
        masks.append(small_mask(full)[None])
    return Labelled(
        tuple(samples),
        np.concatenate(tiles),
        np.concatenate(masks),
        np.array([not s.normal for s in samples], np.bool_),
        np.array([s.located for s in samples], np.bool_),
    )


class EngineRun:
    """The pieces of one bundle, loaded."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle, self.threads = bundle, threads
        self._sessions: dict[tuple[str, str | None], Session] = {}

    def _session(self, kind: Kind, mode: str | None = None) -> Session:
        key = (kind, mode)
        if key not in self._sessions:
            entry: EngineEntry = self.bundle.engines(kind, mode)[0]
            path: Path = self.bundle.file(entry.file)
            self._sessions[key] = Session(path, threads=self.threads)
        return self._sessions[key]

    def encode(
        self, tiles: NDArray[np.uint8], progress: Callable[[int, int], None] | None = None
    ) -> Encoded:
        """encoder.onnx over tiles u8 (N,240,240,3); N may be 0."""
        if not len(tiles):
            return self.encode(np.zeros((1, SIDE, SIDE, 3), np.uint8)).rows([])
        session, parts = self._session("encoder"), []
        for start in range(0, len(tiles), BATCH):
            parts.append(session.run({"tiles": tiles[start : start + BATCH]}))
            if progress:
                progress(min(start + BATCH, len(tiles)), len(tiles))
        names = ("cls", "tap_a", "tap_b", "tap_c")
        cls, a, b, c = (np.concatenate([p[n] for p in parts]) for n in names)
        return Encoded(cls, (a, b, c))

    def learn(self, shots: Encoded, anchors: F32) -> tuple[Memory, F32]:
        """What enrolment with these parts binds: memory, and anchors (2,E) with their trust."""
        return memory_of(shots), carry(anchors, reference_trust(self._p(shots, anchors)))

    def _p(self, encoded: Encoded, anchors: F32) -> F32:
        taps = dict(zip(("tap_a", "tap_b", "tap_c"), encoded.taps, strict=True))
        wide = np.broadcast_to(anchors, (len(encoded.cls), *anchors.shape)).copy()
        return self._session("tddf").run({**taps, "anchors": wide})["p"]

    def detect(self, encoded: Encoded, anchors: F32, memory: Memory | None, mode: str) -> Found:
        """tddf, msspmm and head over encoded pictures; anchors (2,E); memory one group or None.

        EngineError when an answer is no number.
        """
        outs = [
            self._detect(
                encoded.rows(range(i, min(i + 32, len(encoded.cls)))), anchors, memory, mode
            )
            for i in range(0, len(encoded.cls), 32)
        ]
        fields = ("maps", "scores", "p", "am")
        maps, scores, p, am = (np.concatenate([getattr(o, f) for o in outs]) for f in fields)
        if not (np.isfinite(scores).all() and np.isfinite(maps).all()):
            raise EngineError(
                f"bundle {self.bundle.path}: an answer of its engines is no number: build it anew"
            )
        return Found(maps, scores, p, am)

    def _detect(self, encoded: Encoded, anchors: F32, memory: Memory | None, mode: str) -> Found:
        count = len(encoded.cls)
        taps = dict(zip(("tap_a", "tap_b", "tap_c"), encoded.taps, strict=True))
        wide = np.broadcast_to(anchors, (count, *anchors.shape)).copy()
        p = self._p(encoded, anchors)
        am: F32 = np.ones_like(p)
        if memory is not None:
            banks = dict(zip(("memory_a", "memory_b", "memory_c"), memory.taps, strict=True))
            feeds: dict[str, Any] = {**taps, **banks, "group": np.zeros(count, np.int64)}
            feeds["few_shot"] = np.array(True)
            am = self._session("msspmm", mode).run(feeds)["distances"] * np.float32(0.5)
        out = self._session("head").run(
            {"f_out": am * p, "p": p, "am": am, "cls": encoded.cls, "anchors": wide}
        )
        return Found(out["map"], out["score"], p, am)

    def fused_difference(
        self, tiles: NDArray[np.uint8], anchors: F32, memory: Memory | None, mode: str
    ) -> float:
        """Largest difference of score or map between these pieces and the fused FP32 detector."""
        pieces = self.detect(self.encode(tiles), anchors, memory, mode)
        detector = Detector.open(self.bundle, mode, threads=self.threads, precision="fp32")
        detector.bind(memory, anchors[None])
        answer = detector.run(tiles)
        gaps = (np.abs(answer.map - pieces.maps).max(), np.abs(answer.score - pieces.scores).max())
        return float(max(gaps))

    def time_per_image(self, tile: NDArray[np.uint8], anchors: F32, memory: Memory | None) -> float:
        """Median milliseconds of one picture through the bundle's default `bank` detector."""
        detector = Detector.open(self.bundle, "bank", threads=self.threads)
        detector.bind(memory, anchors[None])
        times = []
        for _ in range(20):
            start = time.perf_counter()
            detector.run(tile[None])
            times.append(1e3 * (time.perf_counter() - start))
        return float(np.median(times))


def memory_of(encoded: Encoded) -> Memory:
    """Encoded good pictures (K) as one memory group, (1,K,225,D) per tap, unit length."""
    units = [t / np.maximum(np.linalg.norm(t, axis=-1, keepdims=True), 1e-12) for t in encoded.taps]
    return Memory(taps=tuple(np.ascontiguousarray(u[None], np.float32) for u in units))
