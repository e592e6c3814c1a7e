"""Engines for tests: fast, slow, raising, not finite, hanging. They judge by mean brightness."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from calibration.plausible import Plausibility
from calibration.recipe import Calibration, LoadedRecipe, Recipe
from engines.detector import Answer, Memory
from station.inspection import Product
from station.options import EngineSource


@dataclass
class FakeEngine:
    """Score = mean brightness / 255 of the tile. `fault`: "", raise, nan, inf, hang, shape."""

    delay_s: float = 0.0
    fault: str = ""
    engine_sha: str = "f" * 64
    precision: str = "test"
    runtime: str = "test"
    calls: int = 0
    release: threading.Event = field(default_factory=threading.Event)

    def run(self, tiles, group=None) -> Answer:
        self.calls += 1
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.fault == "raise":
            raise RuntimeError("the engine fell over")
        if self.fault == "hang":
            self.release.wait(60)
        count = len(tiles)
        score = tiles.reshape(count, -1).mean(1).astype(np.float32) / 255
        if self.fault == "nan":
            score = np.full_like(score, np.nan)
        if self.fault == "inf":
            score = np.full_like(score, -np.inf)
        if self.fault == "shape":
            score = score[:0]
        heat = np.zeros((count, 240, 240), np.float32)
        heat[:, 100:140, 60:90] = 0.9
        grid = np.zeros((count, 15, 15, 3), np.float32)
        tokens = tuple(np.zeros((count, 225, 4), np.float32) for _ in range(3))
        cls = np.zeros((count, 4), np.float32)
        return Answer(
            score=score, map=heat, p=grid, distances=grid, tokens=tokens, cls=cls, f_out=grid
        )


def fake_recipe(
    name: str = "test", threshold: float = 0.9, *, learning: bool = False, **changes
) -> LoadedRecipe:
    """A recipe whose plausible range refuses black, white and flat pictures."""
    changes.setdefault("deadline_ms", 5000)  # a crowded machine must not decide what tests see
    taps = tuple(np.zeros((1, 1, 225, 4), np.float32) for _ in range(3))
    return LoadedRecipe(
        recipe=Recipe(name=name, noun="test part", learning=learning, **changes),
        path=None,
        memory=Memory(taps=taps),
        anchors=np.zeros((1, 2, 4), np.float32),
        threshold=threshold,
        calibration=_calibration(threshold, learning=learning),
        plausible=Plausibility(mean=(30, 225), spread=(3, 120), sharpness=(0.5, 500)),
        sha="a" * 64,
    )


def _calibration(threshold: float, *, learning: bool) -> Calibration:
    return Calibration(
        engine_sha="f" * 64,
        precision="test",
        fingerprint="",
        memory_sha256="",
        alpha=0.05,
        n=0,
        k=0,
        threshold=threshold,
        learning=learning,
        guarantee="none",
        interval_parts=0,
        interval=None,
        scores=(),
        shots=(),
        held_out=(),
        usual=(0.1,) * 225,
    )


class FakeRoom(EngineSource):
    """Gives products of one fake engine; recipe None is zero-shot."""

    def __init__(self, engine: FakeEngine | None = None, shape=None, **recipe) -> None:
        self.engine = engine or FakeEngine()
        self.shape = shape
        self.recipe = recipe

    def __call__(self, _settings) -> "FakeRoom":
        return self

    def product(self, name: str | None) -> Product:
        loaded = None if name is None else fake_recipe(name, **self.recipe)
        return Product(self.engine, loaded, "b" * 64, np.zeros((2, 4), np.float32), self.shape)
