"""Stage (d) as a whole on a small random model: the prefix learns, the model does not."""

import argparse
import json

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")

from ggufkit import tiny_llama  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from calibration import prefix as stage  # noqa: E402
from calibration.prefix_data import Example, examples_of, made_shelves  # noqa: E402
from calibration.prefix_known import known_of  # noqa: E402
from calibration.prefix_school import School, prefixes_of  # noqa: E402
from engines.errors import EngineError, UsageError  # noqa: E402
from engines.gguf_prompt import Findings  # noqa: E402
from engines.known import read_known  # noqa: E402
from export.gguf import make_gguf  # noqa: E402
from export.model.adapter import Prefix  # noqa: E402
from export.model.config import ModelConfig  # noqa: E402
from export.model.spgdd import SpgddGpt  # noqa: E402

pytestmark = pytest.mark.torch
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
DIM, HIDDEN = 8, 64
OF = {"settings": {"steps": 8}}
KINDS = ("crack", "hole")


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("llama"))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": CHATML}))
    return School(make_gguf(str(folder), folder.parent / "out", say=lambda text: None).path)


def example(kind, number):
    """The kind stands in CLS, the rest is the same for all."""
    cls = np.zeros(DIM, np.float32)
    cls[KINDS.index(kind)] = 1
    cls[2:] = np.random.default_rng(number).normal(0, 0.05, DIM - 2)
    found = Findings(
        "plate", KINDS, True, 1, "top" if number % 2 else "bottom left", "line", f"{9 + number} px",
        "grey", "high", None,
    )  # fmt: skip
    zeros = np.zeros((2, DIM), np.float32), np.zeros((15, 15, 3), np.float32)
    return Example(cls, *zeros, found, kind, "anomaly", "train", f"set/{number}", True)


def prefix():
    torch.manual_seed(3)
    made = Prefix.__new__(Prefix)
    torch.nn.Module.__init__(made)
    made.image, made.text = torch.nn.Linear(DIM, HIDDEN), torch.nn.Linear(DIM, HIDDEN)
    made.map = torch.nn.Linear(3, HIDDEN)
    made.learned = torch.nn.Parameter(0.02 * torch.randn(9, HIDDEN))
    return made


def test_the_prefix_learns_and_the_model_stays_as_it_is(school, tmp_path):
    lessons = [school.lesson(example(KINDS[i % 2], i)) for i in range(4)]
    before = {name: w.clone() for name, w in school.llama._w.items()}
    learner = prefix()
    stage.begin(learner, school, lessons)
    started = {k: v.clone() for k, v in learner.state_dict().items()}
    args = argparse.Namespace(lr=3e-2, batch=2, steps=8, minutes=60, out=tmp_path)
    scores = iter((0.25, 0.5))  # what a validation finds before and after
    losses = stage.train(school, learner, lessons, args, lambda p: next(scores), OF)
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    assert not torch.equal(learner.image.weight, started["image.weight"])
    assert all(torch.equal(before[name], w) for name, w in school.llama._w.items())


def test_a_training_broken_off_and_resumed_ends_like_one_run(school, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "EVERY", 2)
    lessons = [school.lesson(example(KINDS[i % 2], i)) for i in range(4)]

    def run(folder, until=100):
        folder.mkdir(exist_ok=True)
        learner, asked = prefix(), []
        loss = school.loss

        def cut(batch, prefixes):
            asked.append(batch)
            if len(asked) > until:
                raise KeyboardInterrupt
            return loss(batch, prefixes)

        args = argparse.Namespace(lr=3e-2, batch=2, steps=4, minutes=60, out=folder)
        with monkeypatch.context() as patch:
            patch.setattr(school, "loss", cut)
            losses = stage.train(school, learner, lessons, args, lambda p: 0.5, OF)
        return learner.state_dict(), losses, len(asked)

    whole, losses, _ = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", until=3)
    again, resumed, asked = run(tmp_path / "b")
    assert asked == 2 and resumed == pytest.approx(losses, abs=1e-5)
    assert all(torch.allclose(v, whole[k], atol=1e-5) for k, v in again.items())
    assert run(tmp_path / "b")[2] == 0  # a finished one is not begun anew
    args = argparse.Namespace(lr=3e-2, batch=2, steps=4, minutes=60, out=tmp_path / "b")
    with pytest.raises(UsageError, match="other settings"):
        stage.train(school, prefix(), lessons, args, lambda p: 0.5, {"settings": {"steps": 9}})


def test_a_prefix_training_is_known_by_what_it_reads(tmp_path):
    files = [tmp_path / name for name in ("w", "start", "m.gguf")]
    for file in files:
        file.write_text(file.name)
    (tmp_path / "good").mkdir()
    cv2.imwrite(str(tmp_path / "good" / "1.png"), np.zeros((9, 9), np.uint8))
    args = argparse.Namespace(
        steps=3, minutes=1.0, lr=1e-3, batch=8, made=0, limit=None, new_made=False,
        weights=files[0], start=files[1], start_weights=None, data=[tmp_path],
    )  # fmt: skip
    first = stage.identity(args, files[2])
    assert stage.identity(args, files[2]) == first
    files[1].write_text("another start")
    cv2.imwrite(str(tmp_path / "good" / "2.png"), np.zeros((9, 9), np.uint8))
    args.lr = 2e-3
    now = stage.identity(args, files[2])
    assert [k for k in first if now[k] != first[k]] == ["settings", "data sets", "start weights"]


def test_a_prefix_that_validates_worse_is_not_kept(school, tmp_path):
    lessons = [school.lesson(example("crack", 0))]
    learner = prefix()
    started = {k: v.clone() for k, v in learner.state_dict().items()}
    args = argparse.Namespace(lr=3e-2, batch=1, steps=2, minutes=60, out=tmp_path)
    scores = iter((0.5, 0.25))
    stage.train(school, learner, lessons, args, lambda p: next(scores), OF)
    assert all(torch.equal(learner.state_dict()[k], v) for k, v in started.items())


def test_swapped_lessons_show_another_part_under_the_same_findings(school):
    lessons = [school.lesson(example(k, i)) for i, k in enumerate(("crack", "crack", "hole"))]
    shown = stage.swapped(lessons)
    for own, other in zip(lessons, shown, strict=True):
        assert own.before == other.before
        assert own.category == other.category
        assert not np.array_equal(own.example.cls, other.example.cls)


def test_accuracy_weighs_every_kind_the_same(school):
    lessons = [school.lesson(example(k, i)) for i, k in enumerate(("crack", "crack", "hole"))]
    assert stage.accuracy(["crack", "crack", "crack"], lessons) == 0.5
    assert stage.Examination(school, lessons).of(["crack", "hole", "hole"])["set/crack"] == 0.5


def test_a_lesson_reads_the_same_alone_and_beside_longer_ones(school):
    short, long = school.lesson(example("crack", 0)), school.lesson(example("hole", 1))
    learner = prefix()
    with torch.no_grad():
        both = school.run([short, long], prefixes_of(learner, [short, long]))
        for lesson, found in zip((short, long), both, strict=True):
            (alone,) = school.run([lesson], prefixes_of(learner, [lesson]))
            assert torch.allclose(alone, found, atol=2e-3)


def test_in_training_the_true_kind_stands_anywhere_or_is_not_offered(school):
    rng = np.random.default_rng(0)
    lessons = [school.lesson(example("crack", 0), rng) for _ in range(60)]
    places = {[word for word, _ in le.choices].index("crack") for le in lessons
              if le.category == "crack"}  # fmt: skip
    assert len(places) >= 4
    missing = [le for le in lessons if le.category == "anomaly"]
    assert 0 < len(missing) < 20
    assert all("crack" not in [word for word, _ in le.choices] for le in missing)


def test_a_prefix_is_carried_over_to_new_vision_weights(school, tmp_path):
    old = [example(KINDS[i % 2], i) for i in range(40)]
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, DIM)))[0].astype(np.float32)
    new = [school.lesson(stage.replace(e, cls=e.cls @ turn)) for e in old]
    first, second = prefix(), prefix()
    save_file(dict(first.state_dict()), tmp_path / "old.safetensors")
    stage.carry(second, tmp_path / "old.safetensors", old, new)
    said = stage.prototypes(first, old)
    now = stage.prototypes(second, [le.example for le in new])
    apart = (said["set", "crack"] - said["set", "hole"]).norm()
    assert all((now[kind] - said[kind]).norm() < 0.05 * apart for kind in said)


def test_kinds_that_a_prefix_never_met_begin_at_their_words(school, tmp_path):
    lessons = [school.lesson(example(KINDS[i % 2], i)) for i in range(40)]
    first, second = prefix(), prefix()
    save_file(dict(first.state_dict()), tmp_path / "old.safetensors")
    fresh = {("set", "hole"): school.word("hole")}
    stage.carry(second, tmp_path / "old.safetensors", None, lessons, fresh)
    examples = [le.example for le in lessons]
    was, now = stage.prototypes(first, examples), stage.prototypes(second, examples)
    apart = (was["set", "crack"] - fresh["set", "hole"]).norm()
    assert (now["set", "crack"] - was["set", "crack"]).norm() < 0.05 * apart
    assert (now["set", "hole"] - fresh["set", "hole"]).norm() < 0.05 * apart


def test_parts_unlike_all_that_kinds_were_learned_from_are_not_known():
    learned = [example(KINDS[i % 2], i) for i in range(60)]
    known = read_known(known_of(learned).to_text())
    fresh = [known.holds(example(KINDS[i % 2], 1000 + i).cls) for i in range(40)]
    assert np.mean(fresh) > 0.8
    turned = [example(KINDS[i % 2], i).cls[::-1] for i in range(40)]
    assert not any(known.holds(cls) for cls in turned)
    assert read_known("") is None
    with pytest.raises(EngineError, match="damaged"):
        read_known('{"shape": [1, 2]}')


def test_made_parts_become_examples_of_every_kind_without_a_photograph():
    torch.manual_seed(0)
    whole = next(iter(made_shelves(1)))
    assert {s.category for s in whole.parts} == set(whole.kinds)
    shelf = stage.replace(whole, parts=whole.parts[:2])
    found = examples_of(shelf, SpgddGpt(ModelConfig.from_json(_nano_config())).eval())
    assert len(found) == 2 * len(shelf.parts)
    assert {e.category for e in found} == {s.category for s in shelf.parts}
    assert {e.shots for e in found} == {True, False}
    assert all(e.found.category is None and e.found.defective for e in found)


def _nano_config():
    from safetensors import safe_open

    from engines.bundle import load_bundle

    with safe_open(load_bundle("nano").file("weights.safetensors"), framework="pt") as file:
        return file.metadata()["config"]
