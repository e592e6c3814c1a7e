"""Any Llama checkpoint becomes a GGUF that says what transformers says."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("llama_cpp")

from ggufkit import PARTS, PLACES, sentences, smollm2_folder, tiny_llama  # noqa: E402

from engines.errors import EngineError  # noqa: E402
from engines.gguf_file import check_gguf, find_gguf  # noqa: E402
from engines.gguf_model import LlamaModel, Span  # noqa: E402
from export.gguf import make_gguf  # noqa: E402
from export.gguf_convert import _values  # noqa: E402
from export.gguf_quantize import perplexity, quantize  # noqa: E402
from export.gguf_source import Checkpoint  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def f16(folder, tmp_path_factory):
    return make_gguf(str(folder), tmp_path_factory.mktemp("out"), say=lambda text: None).path


@pytest.fixture(scope="module")
def reference(folder):
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def spm(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def logits_of(path, ids):
    model = LlamaModel(path, n_ctx=1024, sequences=1)
    try:
        return model.score(ids)
    finally:
        model.close()


def greedy(path, ids, count):
    model = LlamaModel(path, n_ctx=1024, sequences=1)
    said = []
    (row,) = model.decode([Span(0, 0, ids)])
    for _ in range(count):
        said.append(int(row.argmax()))
        (row,) = model.decode([Span(0, model.length(0), said[-1:])])
    model.close()
    return said


def greedy_torch(model, ids, count):
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return out[0, len(ids) :].tolist()


def test_token_ids_are_sentencepieces_on_two_hundred_sentences(f16, spm):
    model = LlamaModel(f16, n_ctx=64, sequences=1)
    for text in sentences(200, seed=2):
        assert model.tokenize(text, bos=True) == [spm.bos_id(), *spm.encode(text)]
    model.close()


def test_logits_are_those_of_transformers(f16, reference, spm):
    ids = [1, *spm.encode(" ".join(sentences(4, seed=3)))][:200]
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(logits_of(f16, ids) - expected).max() < 1e-2
    assert expected.std() > 0.2  # the bound must mean something


def test_greedy_continuations_are_those_of_transformers(f16, reference, spm):
    for text in sentences(5, seed=4):
        ids = [1, *spm.encode(text)]
        assert greedy(f16, ids, 24) == greedy_torch(reference, ids, 24)


def test_q8_stays_within_three_percent_of_the_logits_own_deviation(f16, spm, tmp_path):
    ids = [1, *spm.encode(" ".join(sentences(4, seed=5)))][:200]
    small = quantize(f16, tmp_path / "q8.gguf", "Q8_0", lambda text: None, threads=1)
    exact = logits_of(f16, ids)
    assert (logits_of(small, ids) - exact).std() <= 0.03 * exact.std()


def test_metadata_is_complete(f16):
    header = check_gguf(f16)
    m = header.metadata
    assert (header.hidden, header.layers, header.context) == (64, 3, 512)
    assert (m["llama.attention.head_count"], m["llama.attention.head_count_kv"]) == (4, 2)
    assert m["llama.rope.dimension_count"] == 16
    assert m["llama.rope.freq_base"] == 10000.0
    assert (m["tokenizer.ggml.bos_token_id"], m["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert m["tokenizer.ggml.add_bos_token"] is True


def test_an_up_to_date_file_is_not_written_again(folder, f16):
    before = f16.stat().st_mtime_ns
    make_gguf(str(folder), f16.parent, say=lambda text: None)
    assert f16.stat().st_mtime_ns == before


def test_an_interrupted_conversion_goes_on_and_gives_the_same_file(folder, f16, tmp_path):
    said = []

    def interrupt(text):
        said.append(text)
        if text.startswith("[12/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_gguf(str(folder), tmp_path, say=interrupt)
    assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
    resumed = []
    path = make_gguf(str(folder), tmp_path, say=resumed.append).path
    assert path.read_bytes() == f16.read_bytes()
    assert resumed[0].startswith(("[11/", "[12/"))


def test_bin_shards_give_the_same_tensors(folder, f16, tmp_path):
    copy = tmp_path / "tiny-llama"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16)
    names = list(state := weights.state_dict())
    halves = {n: f"pytorch_model-{1 + (i > 10)}-of-2.bin" for i, n in enumerate(names)}
    for file in set(halves.values()):
        torch.save({n: state[n].clone() for n in names if halves[n] == file}, copy / file)
    index = {"metadata": {}, "weight_map": halves}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    path = make_gguf(str(copy), tmp_path / "out", say=lambda text: None).path
    tail = 300_000  # the numbers; the header differs in the source's identity
    assert path.read_bytes()[-tail:] == f16.read_bytes()[-tail:]


def test_an_existing_gguf_is_taken_as_it_is(f16, tmp_path):
    report = make_gguf(str(f16), tmp_path, "Q4_K_M", say=lambda text: None)
    assert (report.path, report.quant) == (f16, "as given")
    assert not list(tmp_path.iterdir())


def test_other_architectures_are_refused_in_one_sentence(folder, tmp_path):
    copy = tmp_path / "gpt"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="GPT2LMHeadModel cannot be converted"):
        make_gguf(str(copy), tmp_path / "out", say=lambda text: None)
    assert not list((tmp_path / "out").iterdir())


def test_too_little_disk_space_is_told_before_anything_is_written(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("export.gguf_convert.shutil.disk_usage", lambda path: usage)
    with pytest.raises(EngineError, match="GiB free"):
        make_gguf(str(folder), tmp_path / "out", say=lambda text: None)
    assert not list((tmp_path / "out").iterdir())


_LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from engines.errors import EngineError
from export.gguf import make_gguf
try:
    make_gguf(sys.argv[1], Path(sys.argv[2]), say=lambda text: None)
except EngineError as error:
    print(error)
    sys.exit(5)
"""


def test_a_disk_that_fills_up_leaves_one_sentence_and_no_half_file(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(folder), str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "cannot be written" in done.stdout and done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_perplexity_of_an_even_guess_is_the_vocabulary():
    assert perplexity(np.zeros((10, 50), np.float32), list(range(10))) == pytest.approx(50)


def test_the_checkpoint_is_read_lazily_by_shape(folder):
    checkpoint = Checkpoint(folder)
    assert checkpoint.shape("model.layers.0.self_attn.k_proj.weight") == (32, 64)
    assert checkpoint.load("model.norm.weight").dtype == np.float32


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """(Hugging Face folder, F16 GGUF made from it) of the real SmolLM2."""
    path = smollm2_folder(tmp_path_factory.mktemp("smol") / "SmolLM2-135M-Instruct")
    return path, make_gguf(str(path), path.parent / "out", say=lambda text: None).path


@pytest.mark.slow
def test_smollm2_there_and_back_says_what_transformers_says(smollm2):
    folder, path = smollm2
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    original = LlamaModel(find_gguf("auto"), n_ctx=64, sequences=1)
    for text in ("The part shows", "<|im_start|>user\nWhat is a crack?<|im_end|>\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == original.tokenize(text)
        assert greedy(path, ids, 32) == greedy_torch(reference, ids, 32)
    original.close()


@pytest.mark.slow
def test_q8_weights_of_smollm2_keep_the_top_word_in_99_of_100_places(smollm2, tmp_path):
    """On the text the describer writes: the weights of Q8_0, expanded to F16, and as it runs.

    As it runs llama.cpp rounds the activations to 8 bits too: .987 on 784 to 3,136 places, all
    those that differ where F16 itself is all but undecided (two words within .25, spread 5.9).
    """
    from engines.gguf_model import llama_cpp
    from engines.gguf_prompt import Findings, answer_text, findings_text

    _, path = smollm2
    say = lambda text: None  # noqa: E731
    small = quantize(path, tmp_path / "q8.gguf", "Q8_0", say, threads=1)
    lib = llama_cpp()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = 1, True, 1
    again = tmp_path / "again.gguf"
    assert lib.llama_model_quantize(str(small).encode(), str(again).encode(), params) == 0
    model = LlamaModel(path, n_ctx=1024, sequences=1)
    parts = [
        Findings(f"{noun} part", ("crack", "dent"), True, 1 + i % 3, place, "line",
                 f"{20 + 7 * i} px", "dark grey", "high", ("crack", "dent")[i % 2])
        for i, (noun, place) in enumerate(zip(PARTS[:6], PLACES, strict=False))
    ]  # fmt: skip
    texts = [findings_text(f) + answer_text(f, f.category) for f in parts]
    ids = model.tokenize("\n\n".join(texts))
    model.close()
    exact, quick, run = (logits_of(p, ids) for p in (path, again, small))
    assert (exact.argmax(1) == quick.argmax(1)).mean() >= 0.99
    same = exact.argmax(1) == run.argmax(1)
    top = np.sort(exact, axis=1)
    decided = top[:, -1] - top[:, -2] > 0.1 * exact.std()
    assert same.mean() >= 0.98
    assert decided.mean() > 0.85 and same[decided].mean() >= 0.998
    assert (quick - exact).std() <= 0.03 * exact.std()


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["Q6_K", "Q4_K_M"])
def test_each_quantization_passes_its_gate_or_is_not_shipped(smollm2, tmp_path, quant):
    folder, _ = smollm2
    shutil.copytree(folder.parent / "out", tmp_path / "out")
    try:
        report = make_gguf(str(folder), tmp_path / "out", quant, say=print)
    except EngineError as error:
        assert "is not shipped" in str(error)
        assert not list((tmp_path / "out").glob(f"*{quant}*"))
    else:
        assert report.gate.passed and report.path.exists()


def test_an_importance_matrix_changes_the_quantization(f16, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "imatrix")
    for layer in range(3):
        for name, width in (("attn_q", 64), ("ffn_up", 64), ("ffn_down", 160)):
            weights = np.linspace(0.01, 100, width, dtype=np.float32)
            writer.add_tensor(f"blk.{layer}.{name}.weight.in_sum2", weights)
            writer.add_tensor(f"blk.{layer}.{name}.weight.counts", np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    say = lambda text: None  # noqa: E731
    without = quantize(f16, tmp_path / "a.gguf", "Q4_K_M", say, threads=1)
    with_it = quantize(
        f16, tmp_path / "b.gguf", "Q4_K_M", say, tmp_path / "imatrix.gguf", threads=1
    )
    assert without.read_bytes() != with_it.read_bytes()
    with pytest.raises(EngineError, match="importance matrix"):
        quantize(f16, tmp_path / "c.gguf", "Q4_K_M", say, f16)


@pytest.mark.parametrize(
    ("value", "told"), [(np.nan, "not finite"), (np.inf, "not finite"), (1e5, "too large for F16")]
)
@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", "blk.0.attn_q.weight"])
def test_numbers_a_gguf_cannot_hold_are_refused_by_name(name, value, told):
    """NaN went through: it is not larger than the largest F16."""
    weight = np.ones((8, 4), np.float32)
    weight[5, 1] = value
    source = SimpleNamespace(
        folder="model", config={"num_attention_heads": 2}, load=lambda name: weight.copy()
    )
    tensor = SimpleNamespace(name=name, source="up", dtype=np.float16)
    with pytest.raises(EngineError, match=f"model: up has values .*{told}"):
        _values(source, tensor)
