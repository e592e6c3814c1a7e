"""The detector engine: shapes, groups, zero-shot, and refusals, without torch."""

import numpy as np
import pytest

from engines.bundle import load_bundle
from engines.detector import Detector, Memory, aggregate
from engines.errors import EngineError
from engines.session import choose, runtimes
from engines.text import TextEncoder, tokenise

MODES = ("position", "nearest", "bank")


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("nano")


@pytest.fixture(scope="module")
def anchors(bundle):
    return TextEncoder.open(bundle).anchors("object")[None]


@pytest.fixture(scope="module")
def tiles():
    """Four smooth, different tiles."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    return coarse.repeat(20, 1).repeat(20, 2)


def opened(bundle, mode):
    return Detector.open(bundle, mode, runtime="ort-cpu", threads=1, precision="fp32")


def tokens(detector, anchors, tiles):
    detector.bind(None, anchors)
    return detector.run(tiles).tokens


@pytest.mark.parametrize("mode", MODES)
def test_answer_shapes_and_ranges(bundle, anchors, tiles, mode):
    d = opened(bundle, mode)
    d.bind(None, anchors)
    a = d.run(tiles)
    dims = bundle.manifest.tap_dims
    assert a.score.shape == (4,)
    assert a.map.shape == (4, 240, 240)
    assert a.p.shape == a.distances.shape == a.f_out.shape == (4, 15, 15, 3)
    assert [t.shape for t in a.tokens] == [(4, 225, n) for n in dims]
    assert (a.distances == 2).all()
    assert ((a.p > 0) & (a.p < 1)).all()
    for t in (*a.tokens, a.cls):
        assert np.allclose(np.linalg.norm(t, axis=-1), 1, atol=1e-5)
    assert np.allclose(a.f_out, a.p, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_tile_in_memory_is_at_distance_zero_alone_and_in_a_batch(bundle, anchors, tiles, mode):
    d = opened(bundle, mode)
    t = tokens(d, anchors, tiles)
    d.bind(Memory(tuple(x[None] for x in t)), anchors)
    batch = d.run(tiles)
    assert not batch.distances.any()
    assert not batch.f_out.any()
    alone = d.run(tiles[1:2])
    assert np.allclose(alone.score, batch.score[1], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_distances_are_those_of_float64_numpy(bundle, anchors, tiles, mode, count):
    d = opened(bundle, mode)
    rng = np.random.default_rng(count)
    memory = [rng.normal(size=(1, count, 225, n)) for n in bundle.manifest.tap_dims]
    memory = [(m / np.linalg.norm(m, axis=-1, keepdims=True)).astype(np.float32) for m in memory]
    d.bind(Memory(tuple(memory)), anchors)
    answer = d.run(tiles[:1])
    cos = []
    for q, m in zip(answer.tokens, memory, strict=True):
        q64, m64 = q[0].astype(float), m[0].astype(float)
        if mode == "position":
            cos.append(np.einsum("pd,npd->np", q64, m64))
        else:
            cos.append(np.einsum("pd,nkd->npk", q64, m64).max(-1))
    squared = np.maximum(2 - 2 * np.stack(cos, -1), 0)  # (N,225,3)
    dist = np.sqrt(squared)
    best = dist.min(0) if mode == "bank" else dist[dist.sum((1, 2)).argmin()]
    assert np.abs(answer.distances.reshape(225, 3) ** 2 - best**2).max() <= 1e-6


def test_each_group_has_its_own_memory(bundle, anchors, tiles):
    d = opened(bundle, "position")
    t = tokens(d, anchors, tiles)
    d.bind(Memory(tuple(x[:, None] for x in t)), anchors)
    assert not d.run(tiles).distances.any()
    swapped = d.run(tiles, np.array([1, 0, 3, 2]))
    assert swapped.distances.mean() > 0.1
    back = d.run(tiles[[1, 0]], np.array([1, 0]))
    assert not back.distances.any()


def test_the_same_tiles_give_the_same_bits(bundle, anchors, tiles):
    d = opened(bundle, "nearest")
    d.bind(None, anchors)
    first, second = d.run(tiles), d.run(tiles)
    assert first.map.tobytes() == second.map.tobytes()
    assert first.score.tobytes() == second.score.tobytes()


def test_answers_do_not_change_when_the_engine_runs_again(bundle, anchors, tiles):
    d = opened(bundle, "nearest")
    d.bind(None, anchors)
    first = d.run(tiles[:1])
    kept = first.map.copy()
    d.run(tiles[1:2])
    assert np.array_equal(first.map, kept)


def test_running_before_binding_says_so(bundle, tiles):
    with pytest.raises(EngineError, match="before"):
        opened(bundle, "nearest").run(tiles)


def test_wrong_shapes_are_named(bundle, anchors, tiles):
    d = opened(bundle, "nearest")
    with pytest.raises(EngineError, match="anchors must be"):
        d.bind(None, anchors[0])
    with pytest.raises(EngineError, match="does not fit taps"):
        d.bind(Memory((np.zeros((1, 1, 225, 3), np.float32),) * 3), anchors)
    d.bind(None, anchors)
    with pytest.raises(EngineError, match="tiles must be"):
        d.run(tiles.astype(np.float32))
    with pytest.raises(EngineError, match="group"):
        d.run(tiles, np.array([0, 0, 0, 1]))


def test_unknown_modes_and_runtimes_are_refused_with_the_choices(bundle):
    with pytest.raises(EngineError, match="no detector for mode 'other'"):
        Detector.open(bundle, "other")
    with pytest.raises(EngineError, match="use auto or one of"):
        choose("abacus")


def test_every_runtime_gives_a_reason():
    for info in runtimes():
        assert info.reason
    assert any(r.available for r in runtimes())


def test_part_score_is_the_worst_tile():
    assert aggregate(np.array([0.1, 0.7, 0.3], np.float32)) == pytest.approx(0.7)


def test_clip_tokens_of_the_model_card_sentence():
    ids = tokenise(["a photo of a damaged magnetic tile."])
    assert ids[0].tolist() == [49406, 320, 1125, 539, 320, 13568, 13838, 8227, 269, 49407]


def test_anchors_are_unit_and_phrases_move_only_the_abnormal_one(bundle):
    text = TextEncoder.open(bundle)
    plain, more = text.anchors("tile"), text.anchors("tile", ["{} with a burr"])
    assert np.allclose(np.linalg.norm(plain, axis=-1), 1, atol=1e-5)
    assert np.array_equal(plain[0], more[0])
    assert not np.array_equal(plain[1], more[1])


def test_prompt_ensemble_is_wide_enough_and_has_no_duplicates(bundle):
    text = TextEncoder.open(bundle)
    normal, abnormal = text.prompts("tile")
    assert len(normal) >= 72
    assert len(abnormal) >= 72
    assert len(set(normal + abnormal)) == len(normal + abnormal)
    assert all("{}" not in t for t in normal + abnormal)


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-static", "fp32"])
def test_a_score_of_dynamic_int8_does_not_depend_on_its_neighbours(precision):
    """Its scales are those of a whole batch: so each tile is a call of its own, in order."""
    detector = Detector.__new__(Detector)
    detector.precision, calls = precision, []

    def answer(feeds):
        calls.append(feeds["tiles"][:, 0, 0, 0].tolist())
        return {"score": feeds["tiles"].max((1, 2, 3)) + feeds["group"]}

    detector._answer = answer
    tiles = np.zeros((3, 240, 240, 3), np.uint8)
    tiles[:, 0, 0, 0] = 7, 5, 9
    out = detector._apart(tiles, np.array([0, 2, 1]))
    assert out["score"].tolist() == [7, 7, 10]
    assert calls == ([[7], [5], [9]] if precision == "int8-dynamic" else [[7, 5, 9]])
