"""The training stages on procedural kinds alone: no shared data, a minute of one core."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from calibration.corpus import Corpus, CorpusSpec, augment, build_corpus  # noqa: E402
from calibration.stage_text import ensemble_anchors, prompt, syllables  # noqa: E402
from calibration.stage_vision import (  # noqa: E402
    Sampler,
    VisionSettings,
    VisionTrainer,
    answers,
    bank_distances,
    start_from_stem,
    start_head,
)
from calibration.train import TAPS, Log, train_vision  # noqa: E402
from export.model import SpgddGpt  # noqa: E402

SPEC = CorpusSpec(sets=(), kinds=2, parts_per_kind=10)
SETTINGS = VisionSettings(steps=4, batch=6, few_shot=0.5, lr=1e-3)


@pytest.fixture(scope="module")
def stem():
    torch.set_num_threads(1)
    model = SpgddGpt.create("nano")
    return SpgddGpt.create("nano", vision=replace(model.config.vision, taps=TAPS)).eval()


@pytest.fixture(scope="module")
def corpus(stem, tmp_path_factory) -> Corpus:
    return build_corpus(SPEC, tmp_path_factory.mktemp("corpus"), stem, say=lambda text: None)


def fresh(corpus):
    model = SpgddGpt.create("nano")
    model = SpgddGpt.create("nano", vision=replace(model.config.vision, taps=TAPS))
    start_from_stem(model, corpus.features[:])
    start_head(model)
    return model


def test_a_corpus_is_computed_once_and_read_back_equal(stem, tmp_path):
    spec = replace(SPEC, kinds=1, parts_per_kind=5)
    said = []
    first = build_corpus(spec, tmp_path, stem, say=said.append)
    stamp = (tmp_path / spec.key() / "features.npy").stat().st_mtime_ns
    second = build_corpus(spec, tmp_path, stem, say=said.append)
    assert (tmp_path / spec.key() / "features.npy").stat().st_mtime_ns == stamp
    assert np.array_equal(first.features, second.features)
    assert first.normal.tolist() == [True, True, False, False, False]
    assert (first.labels.max((1, 2)) > 0).tolist() == [False, False, True, True, True]


def test_augmentation_moves_picture_and_mask_together():
    image = np.zeros((100, 150, 3), np.uint8)
    mask = np.zeros((100, 150), bool)
    image[40:60, 70:90] = 255
    mask[40:60, 70:90] = True
    for seed in range(20):
        seen, area = augment(np.random.default_rng(seed), image, mask)
        assert seen.shape[:2] == area.shape
        assert np.array_equal(seen[..., 0] > 128, area)


def test_the_frozen_parts_do_not_move_and_the_others_do(corpus, tmp_path):
    model = fresh(corpus)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train_vision(model, corpus, {}, SETTINGS, tmp_path, Log(tmp_path), every=100)
    after = dict(model.named_parameters())
    width = model.config.vision.width
    frozen = [n for n in before if ".stem." in n or "conv1" in n or "ln_pre" in n]
    assert frozen and all(torch.equal(before[n], after[n]) for n in frozen)
    values = "clip.visual.transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(before[values][2 * width :], after[values][2 * width :])
    assert not torch.equal(before[values][: 2 * width], after[values][: 2 * width])
    assert not torch.equal(before["head.out.weight"], after["head.out.weight"])


def test_training_broken_off_and_resumed_ends_like_one_run(corpus, tmp_path):
    whole, broken = fresh(corpus), fresh(corpus)
    plan = replace(SETTINGS, warmup=0.0)
    train_vision(whole, corpus, {}, plan, tmp_path / "a", Log(tmp_path / "a"), every=2)

    class Cut(Exception):
        pass

    log = Log(tmp_path / "b")
    draws = Sampler.draw
    count = {"n": 0}

    def draw(self):
        count["n"] += 1
        if count["n"] == 4:
            raise Cut
        return draws(self)

    Sampler.draw = draw
    try:
        with pytest.raises(Cut):
            train_vision(broken, corpus, {}, plan, tmp_path / "b", log, every=2)
    finally:
        Sampler.draw = draws
    again = fresh(corpus)
    train_vision(again, corpus, {}, plan, tmp_path / "b", log, every=2)
    ours, theirs = again.state_dict(), whole.state_dict()
    assert all(torch.allclose(ours[n], theirs[n], atol=1e-6) for n in ours)


def test_the_signed_loss_falls_and_the_literal_one_is_offered(corpus):
    model = fresh(corpus)
    settings = replace(SETTINGS, few_shot=0.0)
    trainer, sampler = VisionTrainer(model, settings), Sampler(corpus, settings)
    batch, shots = sampler.draw()
    optimiser = torch.optim.Adam(trainer.trainable(), 1e-3)
    sums = []
    for _ in range(12):
        terms = trainer.loss(batch, shots, sampler.rng)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        sums.append(float(sum(t.detach() for t in terms.values())))
    assert sums[-1] < 0.8 * sums[0]
    literal = VisionTrainer(model, replace(settings, paper_literal=True))
    assert "p" not in literal.loss(batch, shots, sampler.rng)


def test_memory_comes_from_good_parts_of_the_same_kind(corpus):
    sampler = Sampler(corpus, replace(SETTINGS, few_shot=1.0, batch=8))
    for _ in range(20):
        batch, shots = sampler.draw()
        assert 1 <= shots <= 4
        assert batch.normal[:shots].all()


def test_bank_distance_is_zero_for_what_is_in_memory_and_within_one():
    taps = tuple(torch.randn(3, 225, 8) for _ in range(3))
    am = bank_distances(taps, [t[:2] for t in taps])
    assert am[:2].max() < 1e-3
    assert am.min() >= 0 and am.max() <= 1


def test_left_out_kinds_are_never_drawn(corpus):
    view = Corpus(**{n: getattr(corpus, n) for n in Corpus.__dataclass_fields__ if n != "by_kind"})
    gone = next(iter(view.by_kind))
    rows = set(view.by_kind[gone].tolist())
    view.leave_out([gone])
    assert not rows & set(view.rows().tolist())
    assert gone not in Sampler(view, SETTINGS).made


def test_answers_have_the_stated_shapes_and_memory_changes_them(corpus):
    model = fresh(corpus)
    anchors = torch.nn.functional.normalize(torch.randn(2, 192), dim=-1)
    taps = [torch.nn.functional.normalize(torch.randn(2, 225, d), dim=-1) for d in (192,) * 3]
    zero, few = (answers(model, anchors, corpus, m) for m in (None, taps))
    assert zero["map"].shape == (len(corpus.kind), 60, 60)
    assert (zero["am"] == 1).all() and (few["am"] < 1).any()


def test_prompts_name_products_known_and_unknown():
    rng = np.random.default_rng(0)
    texts = [prompt(rng, abnormal=bool(i % 2)) for i in range(200)]
    assert len(set(texts)) > 150
    assert all(len(t) < 120 and "{" not in t for t in texts)
    assert syllables(rng).isalpha()
    model = SpgddGpt.create("nano").eval()
    pair = ensemble_anchors(model, "lid")
    assert pair.shape == (2, 192)
    assert torch.allclose(pair.norm(dim=-1), torch.ones(2), atol=1e-5)


def test_the_log_keeps_every_figure(tmp_path: Path):
    log = Log(tmp_path)
    log("step", loss=0.5)
    log("nothing to keep")
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
