"""Models for the tests: a small random Llama, and the real SmolLM2 as a Hugging Face folder."""

import json

import gguf
import numpy as np
import sentencepiece
import torch
import transformers
from safetensors.torch import save_file

from engines.gguf_file import find_gguf

PARTS = ["tile", "plate", "ring", "screw", "bottle", "cell", "pipe", "gear", "valve", "board"]
FAULTS = ["crack", "dent", "hole", "stain", "scratch", "burr", "chip", "bubble", "pit", "fray"]
PLACES = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom"]


def sentences(count, seed=0):
    rng = np.random.default_rng(seed)
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    return [
        f"The {pick(PARTS)} has {rng.integers(1, 99)} {pick(FAULTS)}s at the {pick(PLACES)}, "
        f"about {rng.uniform(0.1, 9):.1f} mm long; é{'!' * rng.integers(3)}"
        for _ in range(count)
    ]


def tiny_llama(folder):
    """A small random Llama with grouped heads and a SentencePiece tokenizer of its own."""
    path = folder / "tiny-llama"
    path.mkdir()
    corpus = path.parent / "corpus.txt"
    corpus.write_text("\n".join(sentences(2000, seed=1)))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus), model_prefix=str(path / "tokenizer"), vocab_size=500, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, minloglevel=2, num_threads=1,
    )  # fmt: skip
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.12, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.half().save_pretrained(path)
    (path / "tokenizer_config.json").write_text(
        json.dumps({"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
                    "eos_token": "</s>", "unk_token": "<unk>"})
    )  # fmt: skip
    return path


_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm2_folder(path):
    """Write config.json, model.safetensors and tokenizer.json; returns the path."""
    path.mkdir(parents=True)
    reader = gguf.GGUFReader(find_gguf("auto"))
    save_file({_name(t.name): _values(t) for t in reader.tensors}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(_config()))
    field = lambda key: reader.fields[f"tokenizer.ggml.{key}"].contents()  # noqa: E731
    tokens, types = field("tokens"), field("token_type")
    special = [i for i, t in enumerate(types) if t == 3]
    (path / "tokenizer.json").write_text(json.dumps(_tokenizer(tokens, special, field("merges"))))
    (path / "tokenizer_config.json").write_text(
        json.dumps({
            "add_bos_token": False, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>", "chat_template": field("chat_template")
            if "tokenizer.ggml.chat_template" in reader.fields
            else reader.fields["tokenizer.chat_template"].contents(),
            "tokenizer_class": "PreTrainedTokenizerFast",
        })
    )  # fmt: skip
    return path


def _name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{_NAMES[kind]}.weight"


def _values(tensor):
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    heads = {"attn_q": 9, "attn_k": 3}.get(tensor.name.split(".")[-2])
    if heads:  # rotated pairs back to two halves
        half = values.shape[0] // heads // 2
        values = values.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape)
    return torch.from_numpy(np.ascontiguousarray(values)).half()


def _config():
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0, "vocab_size": 49152, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    }  # fmt: skip


def _tokenizer(tokens, special, merges):
    added = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i in special
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": True}]},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True,
                                            "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": [m.split(" ") for m in merges]},
    }  # fmt: skip
