"""A state belongs to one run: its own takes it up, every other is refused in one sentence."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from calibration import stage_text  # noqa: E402
from calibration.corpus import Corpus, CorpusSpec, build_corpus  # noqa: E402
from calibration.finish import made_tap  # noqa: E402
from calibration.resume import keep, take_up  # noqa: E402
from calibration.stage_text import TextSettings, train_text  # noqa: E402
from calibration.stage_vision import VisionSettings  # noqa: E402
from calibration.train import identity, train_vision  # noqa: E402
from calibration.training import start_model  # noqa: E402
from engines.errors import UsageError  # noqa: E402

OF = {"settings": {"steps": 3}, "data sets": ["abc"]}


def test_a_run_takes_up_its_own_state_and_no_other(tmp_path):
    path = tmp_path / "held" / "state.pt"
    assert take_up(path, OF) is None
    keep(path, OF, {"w": torch.ones(2), "rng": 2**100})
    left = take_up(path, {"data sets": ["abc"], "settings": {"steps": 3}})
    assert left is not None and left["rng"] == 2**100 and torch.equal(left["w"], torch.ones(2))
    with pytest.raises(UsageError) as told:
        take_up(path, {**OF, "data sets": ["xyz"]})
    said = str(told.value)
    assert "other data sets)" in said and str(path) in said and "name another --out" in said
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_a_state_that_is_damaged_or_says_not_whose_it_is_is_refused(tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"no state")
    with pytest.raises(UsageError, match="damaged"):
        take_up(path, OF)
    torch.save({"step": 3}, path)
    with pytest.raises(UsageError, match="does not say which run"):
        take_up(path, OF)


def corpus_of(*kinds, key="k1"):
    return SimpleNamespace(key=key, by_kind=dict.fromkeys(kinds))


SETTINGS = VisionSettings(steps=4)
VAL = {"mt": (None, corpus_of(key="v1"))}


@pytest.mark.parametrize(
    ("settings", "corpus", "val", "start", "said"),
    [
        (replace(SETTINGS, lr=1.0), corpus_of("mt"), VAL, "s", "other settings"),
        (SETTINGS, corpus_of("mt", key="k2"), VAL, "s", "other data sets"),
        (SETTINGS, corpus_of("mt"), {"mt": (None, corpus_of(key="v2"))}, "s", "other data sets"),
        (SETTINGS, corpus_of("mt", "bsdata"), VAL, "s", "other sets left out"),
        (SETTINGS, corpus_of("mt"), VAL, "t", "other start weights"),
    ],
)
def test_a_training_refuses_the_state_of_another(tmp_path, settings, corpus, val, start, said):
    keep(tmp_path / "state.pt", identity(SETTINGS, corpus_of("mt"), VAL, "s"), {})
    with pytest.raises(UsageError, match=said):
        train_vision(None, corpus, val, settings, tmp_path, None, start=start)


def test_another_device_may_go_on():
    there = replace(SETTINGS, device="cuda")
    assert identity(there, corpus_of("mt"), VAL, "") == identity(SETTINGS, corpus_of("mt"), VAL, "")


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return start_model(None)[0].eval()


@pytest.fixture(scope="module")
def corpus(model, tmp_path_factory) -> Corpus:
    spec = CorpusSpec(sets=(), kinds=1, parts_per_kind=8)
    return build_corpus(spec, tmp_path_factory.mktemp("corpus"), model, say=lambda text: None)


def test_a_tap_of_another_corpus_is_refused_and_ones_own_is_read(corpus, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr("calibration.finish.train_local", lambda *given: trained.append(given))
    first = made_tap(corpus, 96, tmp_path / "local.pt", None)
    again = made_tap(corpus, 96, tmp_path / "local.pt", None)
    assert len(trained) == 1
    assert torch.equal(first.mix.weight, again.mix.weight)
    with pytest.raises(UsageError, match="other data sets"):
        made_tap(replace(corpus, key="another"), 96, tmp_path / "local.pt", None)


def test_the_text_stage_broken_off_and_resumed_ends_like_one_run(
    model, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(stage_text, "EVERY", 2)
    settings = TextSettings(steps=4, batch=2)
    anchors = torch.nn.functional.normalize(torch.randn(2, 192), dim=-1)
    began = {k: v.clone() for k, v in model.state_dict().items()}
    corpus = replace(corpus)
    corpus.written = corpus.written.copy()
    corpus.written[0] = True  # so that the second draw of texts is resumed too
    train_text(model, anchors, corpus, settings, tmp_path / "a.pt")
    whole = {k: v.clone() for k, v in model.state_dict().items()}

    class Cut(Exception):
        pass

    draws, prompt = [], stage_text.prompt

    def cut(rng, abnormal):
        draws.append(abnormal)
        if len(draws) > 7:
            raise Cut
        return prompt(rng, abnormal)

    model.load_state_dict(began)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(stage_text, "prompt", cut)
        train_text(model, anchors, corpus, settings, tmp_path / "b.pt")
    model.load_state_dict(began)
    drawn = []
    monkeypatch.setattr(stage_text, "prompt", lambda *a: drawn.append(a) or prompt(*a))
    train_text(model, anchors, corpus, settings, tmp_path / "b.pt")
    assert len(drawn) == 4  # two steps of two, not four
    assert all(torch.allclose(v, whole[k], atol=1e-5) for k, v in model.state_dict().items())
    with pytest.raises(UsageError, match="other anchors"):
        train_text(model, -anchors, corpus, settings, tmp_path / "b.pt")
    model.load_state_dict(began)
