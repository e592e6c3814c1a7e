"""Build a bundle: from weights to engines that prove themselves.

usage: python -m export.build_engines --preset nano --out DIR
"""

import argparse
import hashlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle import load_bundle
from engines.errors import EngineError, StationError
from engines.tensorrt import TARGETS
from export import compose
from export.build_gpu import HALVES, build_ahead, build_gpu, drop_twins
from export.build_request import check_request
from export.build_weights import WeightsRequest, prepare_weights
from export.bundle_writer import (
    WEIGHTS,
    Draft,
    entry_of,
    write_engine,
    write_frames,
    write_prompts,
)
from export.gate_data import DRAWN, USUAL, GateData, find_data
from export.gate_frames import gate_sets
from export.gate_run import run_gate
from export.graph import Graph, WeightStore
from export.model.config import ModelConfig
from export.model.memory import MODES
from export.model.weights import first_line, load_weights
from export.progress import Progress
from export.quantise import SCHEMES, quantised_encoder, shared_weights
from export.reference import write_reference
from export.staging import beside, install

DECIDES = ("bundle", "detector", "preprocess", "selftest", "text")
"""Modules of `engines` that decide what a bundle holds."""

MANUAL = """\
Builds a bundle: the folder a station runs from, made once per model.

What happens, in this order; each line of progress shows step, seconds and what was done:
  1. weights    read, checked, rounded to FP16 and written once (weights.safetensors)
  2. engines    encoder, text, tddf, msspmm (3 modes), head, prefix, and the fused detector of each
                mode; graphs refer to the weights, they do not copy them
  3. INT8       (unless --no-int8) the tower twice, quantised: dynamic, and static calibrated with
                good frames of --data; grafted into the detector of each mode
  4. GPU        (with --gpu or --target) loop-free detectors with FP16 and with BF16 products
  5. gate       every part alone, then every detector, against PyTorch on at least 32 full-size
                frames: cosine per token, distances, map, score, AUC, verdicts, latency. What fails
                is not shipped: the reason, the figures and the first layer that drifted stay in the
                manifest. GPU engines are judged with their rounding emulated on this CPU
  6. reference  raw outputs on drawn frames for the boot self-test
  7. manifest   hashes and every measured figure; written last
  8. beside it  TensorRT engines (--target), a language model (--llm)

All of it happens in a folder beside --out and is moved there at the end: a build that fails or is
broken off leaves the bundle that was there as it was.

Nothing is rebuilt that is up to date: same weights, code, options, frames of the gate and files.
Minutes on 2 cores: nano about 1 (2 with INT8), paper about 3 (6 with INT8), and 2 GB of memory.

examples:
  the shipped model again, from its own weights
    python -m export.build_engines --preset nano --out engines/bundles/nano
  nano with weights you trained
    python -m export.build_engines --preset nano --weights trained.safetensors --out DIR
  the paper's towers from OpenCLIP, with this project's own trained parts
    python -m export.build_engines --preset paper --out DIR \\
      --checkpoint vit_b_16_plus_240-laion400m_e32-699c4b84.pt --parts own.safetensors
  for a station with an RTX 4090 (sm89) and one with an RTX 5090 (sm120), built without any GPU
    python -m export.build_engines --preset nano --out DIR --target sm89 sm120

A checkpoint is checked: a .pt file against the eight hex digits in its own name, any other file
against --sha256. Epoch 31 is refused by name: open_clip 3.3.0 serves it for the tag of epoch 32.

exit codes: 0 built or up to date; 2 the command line is wrong; 130 interrupted (Ctrl-C); 5 anything
else, in one sentence.
"""

CARDS = "sm75 RTX 20, sm80 A100, sm86 RTX 30, sm89 RTX 40 and L4, sm120 RTX 50, sm121 GB10"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m export.build_engines",
        description=MANUAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--preset", choices=("nano", "paper"), default="nano", help="which model")
    p.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    p.add_argument("--force", action="store_true", help="build even if everything is up to date")
    _weights_options(p.add_argument_group("weights"))
    gate = p.add_argument_group("gate")
    gate.add_argument(
        "--data", metavar=f"DIR|{DRAWN}",
        help="folder of sets with index.jsonl for the gate and INT8, or the word "
        f"'{DRAWN}' for drawn parts (default: {USUAL} if it is there, else drawn parts)",
    )  # fmt: skip
    gate.add_argument(
        "--int8", action=argparse.BooleanOptionalAction, default=True,
        help="also try INT8 twins of the detectors (the gate decides which ship)",
    )  # fmt: skip
    gpu = p.add_argument_group("GPU")
    gpu.add_argument(
        "--gpu", action="store_true", help="also FP16 and BF16 detectors for NVIDIA GPUs"
    )
    gpu.add_argument(
        "--target", nargs="+", default=[], metavar="SM", choices=TARGETS,
        help=f"TensorRT-RTX engines ahead of time, no GPU needed; implies --gpu. {CARDS}",
    )  # fmt: skip
    gpu.add_argument(
        "--cache", type=Path, metavar="DIR", help="where they go (default: OUT.tensorrt)"
    )
    words = p.add_argument_group("language model")
    words.add_argument(
        "--llm", metavar="SOURCE", help="also make a GGUF of this model, in OUT.describer"
    )
    words.add_argument("--quant", metavar="TYPE", help="quantisation of the GGUF, e.g. Q8_0")
    return p


def _weights_options(group: Any) -> None:
    group.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="weights file of this project (default: the shipped one, else random weights)",
    )  # fmt: skip
    group.add_argument(
        "--checkpoint", metavar="FILE|hf://owner/repo/file",
        help="OpenCLIP checkpoint of the towers, .pt or .safetensors",
    )  # fmt: skip
    group.add_argument(
        "--sha256", metavar="HEX", help="sha256 of the checkpoint, or its first 8 digits"
    )
    group.add_argument(
        "--unverified", action="store_true", help="accept a checkpoint nothing vouches for"
    )
    group.add_argument(
        "--parts", type=Path, metavar="FILE", help="the project's trained parts for that checkpoint"
    )


def source_key(options: Sequence[str]) -> str:
    """Hash of the code that builds and of the options: when it changes, everything is rebuilt."""
    digest = hashlib.sha256("\n".join(options).encode())
    here = Path(__file__).parent
    own = [p for p in here.rglob("*.py") if not p.name.startswith("gguf")]
    engines = [here.parent / "engines" / f"{name}.py" for name in DECIDES]
    for path in sorted([*own, *engines]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build_parts(draft: Draft, store: WeightStore, progress: Progress) -> None:
    """Every graph of the bundle in FP32."""
    config, out = draft.config, draft.out
    meta = metadata(config, draft.trained)

    def add(graph: Graph, name: str, **fields: str) -> None:
        path = out / name
        write_engine(graph.model(path.stem, meta), path)
        draft.engines.append(entry_of(graph, path, **fields))
        progress.step(name)

    for kind, make in compose.PARTS.items():
        add(make(Graph(store), config), f"{kind}.onnx", kind=kind)
    for mode in MODES:
        for kind, fuse in (("msspmm", compose.memory), ("detector", compose.detector)):
            add(fuse(Graph(store), config, mode), f"{kind}.{mode}.onnx", kind=kind, mode=mode)


def build_int8(
    draft: Draft, store: WeightStore, tiles: Sequence[NDArray[np.uint8]], progress: Progress
) -> None:
    """INT8 candidates of every detector; the gate decides whether they stay."""
    meta = metadata(draft.config, draft.trained)
    for scheme in SCHEMES:
        tower, spared = quantised_encoder(store, scheme, tiles, draft.config)
        draft.shared[scheme] = shared_weights(scheme)
        spare = f", the first {spared} linear layers in FP32" if spared else ""
        progress.step(f"{scheme} tower, {len(tiles)} calibration frames{spare}")
        for mode in MODES:
            graph = compose.detector(Graph(store), draft.config, mode, tower=tower)
            path = draft.out / f"detector.{mode}.{scheme}.onnx"
            write_engine(graph.model(path.stem, meta), path)
            fields = {"kind": "detector", "mode": mode, "precision": scheme}
            draft.engines.append(entry_of(graph, path, self_test_atol=0.05, **fields))
            progress.step(path.name)


def metadata(config: ModelConfig, trained: str) -> dict[str, str]:
    """ONNX metadata_props: what the weights are; the describer reads the last three."""
    prefix_trained = bool(config.extra.get("prefix_trained", False))
    return {
        "preset": config.name,
        "weights": trained,
        "trained": str(prefix_trained).lower(),
        "llm": str(config.extra.get("llm", "")),
        "known": str(config.extra.get("prefix_known", "")),
    }


def up_to_date(out: Path, key: str) -> bool:
    """True when the bundle there verifies and was built from the same inputs."""
    try:
        return load_bundle(out.resolve()).manifest.built.get("key") == key
    except EngineError:
        return False


def build(args: argparse.Namespace, progress: Progress) -> None:
    """The whole build; raises StationError in one sentence. OUT changes only at its end."""
    check_request(args)
    data = find_data(args.data)
    request = WeightsRequest(
        args.preset, args.weights, args.checkpoint, args.parts, args.sha256, args.unverified
    )
    with beside(args.out) as work:
        source, digest = prepare_weights(request, work)
        progress.step("weights")
        gpu = bool(args.gpu or args.target)
        key = source_key([args.preset, digest, data.identity, str(args.int8), str(gpu)])
        if not args.force and up_to_date(args.out, key):
            progress.say(f"{args.out} is up to date")
        else:
            progress.say(data.told)
            draft = build_bundle(args, work, data, (source, digest, key), progress)
            manifest = draft.manifest()
            install(work, args.out, manifest.files)
            size = sum((args.out / n).stat().st_size for n in manifest.files) / 2**20
            told = f"{len(draft.engines)} engines, {size:.1f} MiB. {draft.trained}"
            progress.say(f"{args.out}: {told}")
    extras(args, progress)


def build_bundle(
    args: argparse.Namespace,
    work: Path,
    data: GateData,
    facts: tuple[str, str, str],
    progress: Progress,
) -> Draft:
    """Engines, gate, reference answers and manifest over the weights that lie in `work`."""
    source, digest, key = facts
    model = load_weights(work / WEIGHTS)
    store = WeightStore(work / WEIGHTS)
    trained = store.metadata.get("trained", model.config.trained)
    draft = Draft(work, model.config, {"weights": source, "sha256": digest}, trained)
    sets = gate_sets(data)
    write_prompts(work)
    write_frames(work)
    build_parts(draft, store, progress)
    if args.int8:
        build_int8(draft, store, [t for s in sets for t in s.held_out], progress)
    if args.gpu or args.target:
        build_gpu(draft, store, metadata(draft.config, trained), progress)
    run_gate(draft, model, sets, progress)
    draft.gate["data"] = data.identity
    write_reference(draft)
    drop_twins(work)
    progress.step("reference answers")
    draft.built["key"] = key
    draft.write()
    load_bundle(work.resolve())
    return draft


def extras(args: argparse.Namespace, progress: Progress) -> None:
    """What lies beside the bundle: TensorRT cache, GGUF."""
    if args.target:
        store = WeightStore(args.out / WEIGHTS)
        config = ModelConfig.from_json(store.metadata["config"])
        cache = args.cache or args.out.with_name(args.out.name + ".tensorrt")
        passed = {e.precision for e in load_bundle(args.out.resolve()).engines("detector")}
        for half in [h for h in HALVES if h not in passed]:
            progress.say(f"{half}: no TensorRT engine, the gate refused the {half} detectors")
        for target in args.target:
            for half in [h for h in HALVES if h in passed]:
                build_ahead(store, config, cache, target, progress.say, half=half)
    if args.llm:
        from export.gguf import make_gguf

        target = args.out.with_name(args.out.name + ".describer")
        report = make_gguf(args.llm, target, args.quant)
        progress.say(f"{report.path}: sha256 {report.sha256}, hidden size {report.hidden}")


def _unforeseen(error: Exception, doing: str) -> str:
    """A sentence for what no check foresaw: what, after which step, where in the code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"the build failed after the step '{doing}': {type(error).__name__}: {first_line(error)} "
        f"({Path(frame.filename).name}, line {frame.lineno}); no half-built bundle was left; "
        "report this sentence with the command"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is the error's."""
    args = parser().parse_args(argv)
    args.out = args.out.absolute()  # "." has no name to put a folder beside
    steps = 24 + 14 * args.int8 + 12 * bool(args.gpu or args.target)
    progress = Progress(total=steps)
    try:
        build(args, progress)
    except StationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        told = "no half-built bundle was left; run the command again"
        print(f"interrupted after the step '{progress.latest}': {told}", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"error: {_unforeseen(error, progress.latest)}", file=sys.stderr)
        return EngineError.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
