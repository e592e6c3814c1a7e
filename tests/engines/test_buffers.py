"""Arrays used again: never while somebody holds them, and then a frame allocates nothing large."""

import tracemalloc
from types import SimpleNamespace

import numpy as np

from calibration.plausible import Plausibility
from engines.buffers import Buffers
from engines.bundle import load_bundle
from engines.detector import Detector
from engines.preprocess import tile_boxes
from engines.text import TextEncoder
from station.inspection import Product, infer, outcome, prepare
from station.schema import Verdict
from station.sources.base import Frame

SHAPE = (3, 5)
SMALL = 64 << 10
"""Bytes: a tile has 172,800, a map 230,400, the tokens of a tap 172,800."""


def test_an_array_is_used_again_only_when_nobody_holds_it():
    pool = Buffers()
    first = pool.take(SHAPE, np.float32)
    place, first[:] = first.ctypes.data, 7
    view = first[1:]
    del first
    other = pool.take(SHAPE, np.float32)
    assert other.ctypes.data != place
    other[:] = 1
    assert (view == 7).all()
    del view
    assert pool.take(SHAPE, np.float32).ctypes.data == place
    assert pool.take(SHAPE, np.uint8).dtype == np.uint8


def test_more_than_are_kept_are_made_and_forgotten():
    pool = Buffers(most=2)
    held = [pool.take(SHAPE, np.float32) for _ in range(4)]
    assert len({a.ctypes.data for a in held}) == 4
    del held
    assert pool.count == 2


def test_a_frame_in_steady_state_allocates_no_large_array():
    """From pixels to verdict; the picture itself (decoding) is the part's own and not counted."""
    bundle = load_bundle("nano")
    detector = Detector.open(bundle, "bank", "ort-cpu", 1, "fp32")
    detector.bind(None, TextEncoder.open(bundle).anchors("object")[None])
    recipe = SimpleNamespace(
        region=None, learning=False,
        boxes=lambda shape: tile_boxes(shape, None, (1, 1)),
        groups=lambda count: np.zeros(count, np.int64),
    )  # fmt: skip
    loaded = SimpleNamespace(recipe=recipe, plausible=Plausibility(), threshold=1.0)
    product = Product(detector, loaded)  # every part is OK: a reject also gets its regions outlined
    picture = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)

    def inspect():
        frame = Frame(image=picture, raw=None, name="x", t_capture_ns=0, wall_us=0, index=0)
        ready = prepare(frame, product, live=False)
        judged = outcome(ready, infer([ready], product), product)
        assert judged.verdict is Verdict.OK
        return ready, judged

    kept = [inspect() for _ in range(3)]  # these are still held, as by observers
    for _ in range(2):  # one more tile is held by the engine's binding until its next call
        inspect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        scores = [inspect()[1].score for _ in range(5)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < SMALL
    assert scores == [kept[0][1].score] * 5


def test_an_old_score_never_passes_for_a_new_one():
    """If a run writes nothing, the score is not a number, which means reject."""
    session = Detector.open(load_bundle("nano"), "bank", "ort-cpu", 1, "fp32")._session
    silent = SimpleNamespace(
        bind_cpu_input=lambda *a: None, bind_output=lambda *a: None, get_outputs=list
    )
    for value in (0.25, np.nan):
        array = session._bind_output(silent, "score", {"B": 1})
        assert np.isnan(array).all()
        array[:] = value
        del array
