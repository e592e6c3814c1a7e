"""Words: tokens a second beside llama-cpp-python's own loop, and time to the first token with and
without the kept prompt, in the model's own template and in the paper's order.

    python -m benchmarks.describer [--rounds 7] [--model GGUF]

One thread, as at the station. The generation loops run the same prompt greedily without a grammar;
a description is measured too: its grammar forces half of the tokens, which are then fed in one
step. "With" forks the kept prompt, "without" decodes the whole prompt again.
"""

import argparse
from collections.abc import Callable

import llama_cpp
import numpy as np

from benchmarks.common import Case, Report, measure, publish
from engines.describer import DescribeRequest, DescriberSettings
from engines.facts import Area
from engines.gguf_describer import KEPT, LlmDescriber
from engines.gguf_file import find_gguf
from engines.gguf_model import LlamaModel, Span

TOKENS = 48
PROMPT = (
    "<|im_start|>user\nHow is a metal part inspected for cracks?<|im_end|>\n<|im_start|>assistant\n"
)


def part() -> DescribeRequest:
    heat = np.zeros((240, 240), np.float32)
    heat[30:60, 20:140] = 0.9
    return DescribeRequest(
        part_id="p",
        noun="magnetic tile",
        verdict="NG",
        score=0.9,
        threshold=0.5,
        map=heat,
        area=Area(0, 0, 480, 480),
        crop=np.full((60, 60, 3), 90, np.uint8),
        categories=("crack",),
    )


def own_loop(model: LlamaModel) -> Callable[[], None]:
    ids = model.tokenize(PROMPT)

    def run() -> None:
        model.forget(0)
        (logits,) = model.decode([Span(0, 0, ids)])
        for _ in range(TOKENS - 1):
            token = int(logits.argmax())
            (logits,) = model.decode([Span(0, model.length(0), [token])])

    return run


def high_level_loop(path: str) -> Callable[[], None]:
    llama = llama_cpp.Llama(path, n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    eos = llama.token_eos()

    def run() -> None:
        llama.reset()
        # The loop under test must not end early: the end token is forbidden to both.
        llama.create_completion(PROMPT, max_tokens=TOKENS, temperature=0, logit_bias={eos: -100.0})

    return run


def first_token(describer: LlmDescriber, kept: bool) -> Callable[[], None]:
    """Prefill of one part up to its first answer token."""
    request, model = part(), describer._model

    def run() -> None:
        if not kept:
            model.forget(KEPT)
            describer._keep()
        speech = describer._open(1, request)
        describer._prefill([speech], describer.frame, float("inf"))
        describer._clear([speech])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="auto")
    args = parser.parse_args()
    settings = DescriberSettings(model=args.model, batch=1, deadline_s=600, recycle_after=10**6)
    own = LlmDescriber.open(settings)
    paper = LlmDescriber.open(replace_format(settings))
    path = find_gguf(args.model)
    plain = LlamaModel(path, n_ctx=1024, sequences=1)
    said = own.describe(part())
    found = measure(
        [
            Case("generate, ours", own_loop(plain), TOKENS),
            Case("generate, llama-cpp-python", high_level_loop(str(path)), TOKENS),
            Case("describe (grammar, prefill included)", lambda: own.describe(part()), said.tokens),
        ],
        rounds=args.rounds,
        warmup=1,
    )
    first = measure(
        [
            Case(f"{name}, {how}", first_token(describer, how == "kept"))
            for name, describer in (("own template", own), ("paper's order", paper))
            for how in ("kept", "not kept")
        ],
        rounds=args.rounds,
        warmup=1,
    )
    rows = [
        {"what": name, "ms": t.median, "a second": 1000 / t.median} for name, t in found.items()
    ] + [
        {"what": f"first token, {name}", "ms": t.median, "a second": None}
        for name, t in first.items()
    ]
    speed = found["generate, llama-cpp-python"].median / found["generate, ours"].median
    own_share = first["own template, kept"].median / first["own template, not kept"].median
    paper_share = first["paper's order, kept"].median / first["paper's order, not kept"].median
    publish(
        Report(
            "describer",
            "Words: tokens a second and time to the first token",
            rows,
            notes=[
                f"model {path.name}; generation runs at {speed:.2f} of llama-cpp-python's own loop",
                f"time to the first token with the kept prompt: {own_share:.2f} of without in the "
                f"model's own template, {paper_share:.2f} in the paper's order",
                f"one description is {said.tokens} tokens",
            ],
            threads=1,
            figures={"speed": speed, "kept_own": own_share, "kept_paper": paper_share},
        )
    )


def replace_format(settings: DescriberSettings) -> DescriberSettings:
    return settings.model_copy(update={"format": "paper"})


if __name__ == "__main__":
    main()
