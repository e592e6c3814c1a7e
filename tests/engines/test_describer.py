"""The language model describer on the real SmolLM2: right, bounded, in time, and never stuck."""

import struct

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from engines.consistency import contradiction
from engines.describer import MAX_TOKENS, DescribeRequest, DescriberSettings, open_describer
from engines.errors import EngineError
from engines.facts import COLOURS, LOCATIONS, SHAPES, Area
from engines.gguf_describer import KEPT, LlmDescriber
from engines.gguf_file import check_gguf, find_gguf
from engines.gguf_grammar import Grammar
from engines.gguf_model import LlamaModel, Span
from engines.gguf_prefix import open_prefix
from engines.gguf_prompt import (
    Findings,
    answer_text,
    fields_grammar,
    findings_text,
    forced,
    parse,
    plain,
    wordings,
)
from engines.known import Known

NOUNS = ("magnetic tile", "solar cell", "ball screw", "printed circuit board")
KINDS = (("crack",), ("blowhole", "crack"), ())


def request(i, verdict="NG", **changes):
    rng = np.random.default_rng(i)
    heat = np.zeros((120, 120), np.float32)
    for _ in range(1 + i % 3):
        y, x = rng.integers(0, 100, 2)
        h, w = rng.integers(4, 30, 2)
        heat[y : y + h, x : x + w] = rng.uniform(0.6, 1)
    values = {
        "part_id": f"part {i}", "trigger_id": f"{i:016x}", "noun": NOUNS[i % 4],
        "verdict": verdict, "score": float(rng.uniform(0.5, 1)), "threshold": 0.5, "map": heat,
        "area": Area(0, 0, 480, 360), "categories": KINDS[i % 3],
        "crop": rng.integers(0, 255, (30, 40, 3)).astype(np.uint8),
        "mm_per_px": 0.05 if i % 2 else None,
    }  # fmt: skip
    return DescribeRequest(**values | changes)


@pytest.fixture(scope="module")
def describer():
    found = LlmDescriber.open(DescriberSettings(batch=8, threads=2, deadline_s=250))
    yield found
    found.close()


def check_many(describer, count):
    requests = [request(i, "OK" if i % 10 == 9 else "NG") for i in range(count)]
    said = describer.describe_many(requests, deadline_s=3000)
    assert [(d.part_id, d.trigger_id) for d in said] == [
        (r.part_id, r.trigger_id) for r in requests
    ]
    invalid = [d.note for d in said if d.source != "llm"]
    assert not invalid
    assert max(d.tokens for d in said) <= MAX_TOKENS
    found = [contradiction(d, r.facts()) for d, r in zip(said, requests, strict=True)]
    return [c for c in found if c]


@pytest.mark.timeout(900)
def test_fifty_descriptions_are_valid_and_agree_with_the_map(describer):
    assert len(check_many(describer, 50)) <= 1


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_five_hundred_descriptions_are_valid_and_agree_with_the_map(describer):
    assert len(check_many(describer, 500)) <= 10


def test_a_part_is_described_the_same_alone_and_beside_others(describer):
    alone = describer.describe(request(3))
    beside = describer.describe_many([request(1), request(2), request(3), request(4)])[2]
    wanted = {"defective", "category", "count", "location", "shape", "size_mm_or_px", "sentence"}
    assert alone.model_dump(include=wanted) == beside.model_dump(include=wanted)


def test_a_count_of_two_digits_is_said_as_it_was_counted(describer):
    said = describer.describe_many([request(i, count=n) for i, n in enumerate((10, 12, 100, 0))])
    assert [d.count for d in said] == [10, 12, 100, 0]
    assert "10 defects" in said[0].sentence and "no single place" in said[3].sentence


def test_nothing_of_a_part_stays_in_the_context(describer):
    describer.describe(request(5))
    model = describer._model
    assert [model.length(seq) for seq in range(1, 9)] == [0] * 8
    assert model.length(KEPT) == len(describer._kept)


def test_a_deadline_that_passed_gives_the_template_and_the_next_part_is_fine(describer):
    late = describer.describe(request(6), deadline_s=0.0)
    assert late.source == "template" and "late" in late.note
    assert late.part_id == "part 6"
    assert describer.describe(request(7)).source == "llm"


def test_recycling_after_k_parts_changes_nothing_that_is_said(describer):
    before = describer.describe(request(8)).sentence
    describer._recycle()
    assert describer.describe(request(8)).sentence == before


def test_a_question_about_the_part_is_answered_within_bounds(describer):
    asked = request(0)
    description = describer.describe(asked)
    first = describer.answer(asked, description, "Where is the defect?")
    again = describer.answer(asked, description, "How large is it?", [("Where is it?", first)])
    assert first and again
    assert "\n" not in first + again
    with pytest.raises(EngineError, match="longer than the describer's context"):
        describer.answer(asked, description, "What? " * 2000)


def test_the_papers_format_gives_the_same_shape_of_answer():
    found = LlmDescriber.open(DescriberSettings(format="paper", batch=1, deadline_s=250))
    said = found.describe(request(2))
    assert found.frame.head == "### Human: "
    found.close()
    assert said.source == "llm" and said.defective


# --- prompt and grammar ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    found = LlamaModel(find_gguf("auto"), n_ctx=1024, sequences=3)
    yield found
    found.close()


def test_the_longest_answer_fits_into_128_tokens(model):
    longest = lambda words: max(words, key=lambda w: len(model.tokenize(w)))  # noqa: E731
    noun = plain("electroluminescence photovoltaic submodule xylophone quartz")
    worst = Findings(
        noun, (), True, 999, longest(LOCATIONS), longest(SHAPES), "99999.9 mm", longest(COLOURS),
        "medium", None,
    )  # fmt: skip
    answer = answer_text(worst, plain("electrochemical delamination", 24))
    assert len(model.tokenize(answer)) <= MAX_TOKENS


def test_the_grammar_forbids_what_is_not_in_its_lists(model):
    answer = answer_text(
        Findings("plate", (), True, 1, "top", "line", "3 px", "grey", "low", None), "crack"
    )
    for text, allowed in (
        (answer, True),
        (answer.replace('"top"', '"roof"'), False),
        (answer.replace("crack", "unicorn"), False),
        (answer.replace('"count":1', '"count":-1'), False),
    ):
        fields = text[: text.index('"sentence"')]
        rules = Grammar(model, fields_grammar(("crack",)))
        assert all(rules.take(t) for t in model.tokenize(fields)) is allowed
        rules.close()


def test_forced_text_always_leads_to_the_right_answer():
    for good in (True, False):
        f = Findings("plate", (), good, 2, "top left", "line", "3.5 px", "grey", "low", None)
        if not good:
            f = Findings("plate", (), False, 0, "none", "none", "0 px", "none", "low", None)
        answer = answer_text(f, "crack" if good else "none")
        fields = answer[: answer.index('"sentence":"') + len('"sentence":"')]
        for at in range(len(fields)):
            rest = forced(fields[:at])
            assert fields.startswith(fields[:at] + rest)


def test_a_defective_part_without_a_region_is_given_no_place_in_its_sentence():
    f = Findings("plate", (), True, 0, "top", "spot", "0 px", "grey", "low", "anomaly")
    fields = answer_text(f, "anomaly")
    fields = fields[: fields.index('"sentence":"') + len('"sentence":"')]
    for ending in wordings(fields, "plate"):
        sentence = ending.removesuffix('"}')
        assert "no single place" in sentence and "top" not in sentence


def test_an_answer_that_is_no_json_is_refused():
    for text in ('{"defective":"yes"', "yes, a crack", '{"defective":"perhaps"}'):
        with pytest.raises((ValueError, KeyError)):
            parse(text, request(0), "m")


def test_findings_repeat_the_nouns_of_the_recipes_phrases():
    f = Findings("plate", ("crack", "dent"), True, 1, "top", "line", "3 px", "grey", "low", None)
    assert findings_text(f).startswith("part: plate; kinds: crack, dent\n")
    assert request(0, categories=("{} with a crack", "dent")).kinds == ("crack", "dent")


# --- embeddings instead of ids -----------------------------------------------------------------

PROMPTS = [
    f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n"
    for ask in (
        "What is a crack?", "Name a colour.", "Where is Paris?", "Count to five.", "What is steel?",
        "Why do tiles break?", "What is glass?", "Say hello.", "What does a magnet do?",
        "How long is a mile?", "What is rust?", "Name three metals.", "What is a solar cell?",
        "Is ice hot?", "What is a bearing?", "Who inspects parts?", "What is a scratch?",
        "How do cameras see?", "What is a dent?", "Name a tool.",
    )
]  # fmt: skip


def greedy(model, logits, seq, count=8):
    said = []
    for _ in range(count):
        said.append(int(logits.argmax()))
        (logits,) = model.decode([Span(seq, model.length(seq), said[-1:])])
    return said


def test_own_embeddings_continue_as_their_ids_do_with_and_without_kept_state(model):
    gguf = pytest.importorskip("gguf")
    table = next(
        t for t in gguf.GGUFReader(find_gguf("auto")).tensors if t.name == "token_embd.weight"
    )
    words = gguf.quants.dequantize(table.data, table.tensor_type).astype(np.float32)
    for prompt in PROMPTS:
        ids = model.tokenize(prompt)
        half = len(ids) // 2
        model.forget(0), model.forget(1), model.forget(2)
        by_id = greedy(model, model.decode([Span(0, 0, ids)])[0], 0)
        fresh = greedy(model, model.decode([Span(1, 0, embeddings=words[ids])])[0], 1)
        model.forget(0)
        model.decode([Span(0, 0, ids[:half])])  # the kept part as ids, the rest as embeddings
        model.fork(0, 2)
        kept = greedy(model, model.decode([Span(2, half, embeddings=words[ids[half:]])])[0], 2)
        assert by_id == fresh == kept, prompt
    for seq in range(3):
        model.forget(seq)


# --- files that are no model -------------------------------------------------------------------


def small_gguf(path, architecture=b"llama"):
    key, value = b"general.architecture", architecture
    body = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
    body += struct.pack("<Q", len(key)) + key + struct.pack("<I", 8)
    path.write_bytes(body + struct.pack("<Q", len(value)) + value)
    return path


def text_file(path):
    path.write_text("not a model at all")
    return path


def cut(path, share):
    data = find_gguf("auto").read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (text_file, "not a GGUF file"),
        (lambda p: small_gguf(p, b"gpt2"), "architecture 'gpt2'"),
        (lambda p: cut(p, 0.5), "cut short"),
        (lambda p: cut(p, 0.001), "cut short"),
        (lambda p: p, "no such GGUF file"),
    ],
    ids=["text", "other architecture", "truncated", "truncated header", "missing"],
)
def test_an_unfit_gguf_gives_one_sentence_and_the_template(tmp_path, make, says):
    path = make(tmp_path / "model.gguf")
    with pytest.raises(EngineError, match=says) as caught:
        check_gguf(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    found = open_describer(DescriberSettings(model=str(path)))
    assert found.name == "template"
    assert found.reason == str(caught.value)
    said = found.describe(request(0))
    assert said.source == "template" and said.note == found.reason


def prefix_graph(path, hidden, trained, llm="", known=""):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    table = numpy_helper.from_array(np.full((1, 21, hidden), 0.01, np.float32), "table")
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("cls", ["B", 8]), ("anchors", ["B", 2, 8]), ("f_out", ["B", 15, 15, 3]))
    ]
    out = helper.make_tensor_value_info("prefix", TensorProto.FLOAT, [1, 21, hidden])
    node = helper.make_node("Identity", ["table"], ["prefix"])
    model = helper.make_model(
        helper.make_graph([node], "prefix", inputs, [out], [table]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    helper.set_model_props(model, {"trained": str(trained).lower(), "llm": llm, "known": known})
    onnx.save(model, path)
    return str(path)


def test_a_prefix_of_another_hidden_size_gives_one_sentence_and_the_template(tmp_path):
    path = prefix_graph(tmp_path / "prefix.onnx", 4096, True)
    found = open_describer(DescriberSettings(prefix=path))
    assert found.name == "template"
    assert "4096" in found.reason and "576" in found.reason and "\n" not in found.reason


def test_an_untrained_prefix_is_not_shown_to_the_model(tmp_path):
    prefix, why = open_prefix(prefix_graph(tmp_path / "p.onnx", 576, False), 576, "m")
    assert prefix is None
    assert "not trained" in why


def test_a_prefix_of_another_model_is_not_shown_and_another_quantization_is(tmp_path):
    path = prefix_graph(tmp_path / "p.onnx", 576, True, "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert open_prefix(path, 576, "SmolLM2-135M-Instruct.Q8_0")[0] is not None
    prefix, why = open_prefix(path, 576, "vicuna-7b")
    assert prefix is None
    assert "trained for SmolLM2" in why and "vicuna-7b" in why


def test_a_trained_prefix_stands_between_the_image_marks(tmp_path):
    path = prefix_graph(tmp_path / "p.onnx", 576, True)
    found = LlmDescriber.open(DescriberSettings(prefix=path, batch=1, deadline_s=250))
    vectors = {"cls": np.zeros(8), "anchors": np.zeros((2, 8)), "f_out": np.zeros((15, 15, 3))}
    speech = found._open(1, request(1, **vectors))
    pieces = found._pieces(speech, found.frame)
    assert [len(p) for p in pieces if isinstance(p, np.ndarray)] == [1, 20]
    assert found.describe(request(1, **vectors)).source == "llm"
    found.close()


def test_a_part_unlike_all_that_kinds_were_learned_from_is_called_an_anomaly(tmp_path):
    eye = np.eye(8, dtype=np.float32)
    known = Known(eye[:2], eye[:, 2:4], np.full(2, 0.01, np.float32), 0.01, 30.0)
    path = prefix_graph(tmp_path / "p.onnx", 576, True, known=known.to_text())
    found = LlmDescriber.open(DescriberSettings(prefix=path, batch=2, deadline_s=250))
    seen = {"anchors": np.zeros((2, 8)), "f_out": np.zeros((15, 15, 3))}
    parts = [
        request(1, categories=("crack", "dent", "stain"), cls=cls, **seen) for cls in eye[[0, 7]]
    ]
    like, unlike = found.describe_many(parts)
    found.close()
    assert like.category in {"crack", "dent", "stain"} and like.source == "llm"
    assert unlike.category == "anomaly" and unlike.source == "llm"
    assert "anomaly" in unlike.sentence
