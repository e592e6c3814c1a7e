"""What makes the model fit for kinds it never saw: the stem's tap and the head's trust."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from calibration import leave_out  # noqa: E402
from calibration.stage_head import Example, choose_trust, write_head  # noqa: E402
from calibration.stage_local import attach, read_oddness, start_local  # noqa: E402
from calibration.stage_vision import encode_features  # noqa: E402
from export.model import SpgddGpt  # noqa: E402
from export.model.clip import LocalTap, neighbours  # noqa: E402


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(4).normal(0, 1, (3, 272, 15, 15)).astype(np.float16)


@pytest.fixture(scope="module")
def local(features):
    tap = LocalTap(96)
    start_local(tap, features)
    return tap


def test_a_patch_unlike_its_own_picture_is_left_unexplained(local, features):
    column = features[:1, :, :1, :1].astype(np.float32)
    picture = np.tile(column, (1, 1, 15, 15))
    picture[0, :112, 7, 4] = features[1, :112, 3, 3]
    with torch.no_grad():
        tap = local(torch.from_numpy(picture))[0].numpy()
    assert tap.shape == (225, 192)
    inner = np.zeros((15, 15), bool)
    inner[1:-1, 1:-1] = True
    rest = np.linalg.norm(tap[:, 96:], axis=1).reshape(15, 15)
    rest[~inner] = 0  # at the rim the blur sees nothing outside
    assert np.unravel_index(rest.argmax(), rest.shape) == (7, 4)
    assert rest[3, 10] < 0.05 * rest[7, 4]


def test_only_patches_farther_than_two_away_explain_one():
    away = neighbours(2).numpy()
    for p in (0, 112, 224):
        near = {q for q in range(225) if abs(p // 15 - q // 15) <= 2 and abs(p % 15 - q % 15) <= 2}
        assert set(np.flatnonzero(away[p] < 0).tolist()) == near


def test_oddness_reads_as_abnormal_whatever_its_direction():
    anchors = torch.nn.functional.normalize(torch.randn(2, 192), dim=-1)
    linear = torch.nn.Linear(192, 192)
    read_oddness(linear, anchors, 0.03)
    rng = np.random.default_rng(1)
    ways = rng.normal(0, 1, (20, 96))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    u = rng.normal(0, 1, (20, 96))
    found = []
    for length in (0.05, 0.2, 0.6):
        rows = np.concatenate([u, length * ways], 1).astype(np.float32)
        z = linear(torch.from_numpy(rows)).detach().numpy().astype(np.float64)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        e = anchors.numpy().astype(np.float64)
        normal, abnormal = (np.linalg.norm(z - side, axis=1) for side in e)
        found.append(normal - abnormal)
    assert (found[0] < found[1]).all() and (found[1] < found[2]).all()
    assert np.ptp(found[2]) < 1e-3


def test_attaching_changes_tap_a_and_nothing_else(local, features):
    model = SpgddGpt.create("nano").eval()
    anchors = torch.nn.functional.normalize(torch.randn(2, 192), dim=-1)
    made = attach(model, local, anchors)
    x = torch.from_numpy(features.astype(np.float32))
    with torch.no_grad():
        before, after = encode_features(model, x), encode_features(made, x)
    assert torch.equal(before.cls, after.cls)
    assert torch.equal(before.taps[1], after.taps[1])
    assert torch.equal(before.taps[2], after.taps[2])
    assert not torch.allclose(before.taps[0], after.taps[0])


def test_the_written_head_is_the_weighted_sum():
    model = SpgddGpt.create("nano")
    weights = torch.tensor([0.5, 0, 1, 2, 0, 3, 0.25, 4, 1.5])
    write_head(model, weights, -2.0)
    rng = np.random.default_rng(0)
    f, p, am = rng.uniform(0, 1, (3, 2, 225, 3)).astype(np.float32)
    z = model.head.logits(*(torch.from_numpy(x) for x in (f, p, am))).detach().numpy()
    expected = np.concatenate([f, p, am], -1) @ weights.numpy() - 2.0
    assert np.allclose((z[:, 1] - z[:, 0]).reshape(2, 225), expected, atol=1e-5)


def test_trust_is_a_factor_on_the_odds_of_the_text_cue():
    model = SpgddGpt.create("nano")
    weights = np.arange(9) / 9
    write_head(model, torch.tensor(weights, dtype=torch.float32), -2.0)
    f, p, am = np.random.default_rng(7).uniform(0, 1, (3, 2, 225, 3)).astype(np.float32)
    trust = np.array([1.0, 0.25], np.float32)
    given = [torch.from_numpy(x) for x in (f, p, am, trust)]
    z = model.head.logits(*given).detach().numpy()
    odds = p.astype(np.float64) / (1 - p)
    odds[1, :, 1:] *= 0.25
    expected = np.concatenate([f, odds / (1 + odds), am], -1) @ weights - 2
    assert np.allclose((z[:, 1] - z[:, 0]).reshape(2, 225), expected, atol=1e-4)


def known_set() -> Example:
    """40 pictures, a fifth of them with a defect that P sees well and AM weakly."""
    rng = np.random.default_rng(3)
    labels = np.zeros((40, 60, 60), np.float32)
    labels[:8, 20:32, 20:32] = 1
    cells = labels.reshape(40, 15, 4, 15, 4).mean((2, 4)).reshape(40, 225)
    am = 0.15 + 0.05 * rng.normal(0, 1, (40, 225)) + 0.03 * cells
    p = 0.1 * rng.uniform(0, 1, (40, 225)) + 0.7 * cells
    stack = [torch.from_numpy(np.repeat(x[..., None], 3, -1).astype(np.float32)) for x in (p, am)]
    normal = np.arange(40) >= 8
    return Example(*stack, torch.from_numpy(labels), normal, np.ones(40, bool))


def test_one_class_alone_has_no_figure_and_says_so(monkeypatch):
    count = 3
    held = SimpleNamespace(
        located=np.ones(count, bool), normal=np.ones(count, bool), labels=np.zeros((count, 60, 60))
    )
    found = {"cls": np.zeros(count), "peak": np.ones(count), "map": np.zeros((count, 60, 60))}
    monkeypatch.setattr(leave_out, "answers", lambda *given: found)
    model = SimpleNamespace(score=SimpleNamespace(weight=0.5))
    told = leave_out.judge(model, None, None, held, 0, 1)
    assert told["mean"] == {"image": None, "pixel": None}
    assert told["reasons"]["image"] == "no defective picture is judged"


def test_the_text_cue_is_trusted_no_more_than_the_known_kinds_need():
    said = {}
    trust = choose_trust([known_set()], lambda text, **k: said.update(k))
    assert 0.1 <= trust < 3.2
    assert all(said[f"{t}"] < max(said.values()) - 0.3 for t in (0.1, 0.2) if t < trust)
