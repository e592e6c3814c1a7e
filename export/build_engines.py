"""Build a bundle: from weights to engines that prove themselves.

usage: python -m export.build_engines --preset nano --out DIR
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.bundle import BUNDLES, EngineEntry, load_bundle, sha256
from engines.errors import EngineError, StationError
from export import compose
from export.bundle_writer import (
    WEIGHTS,
    Draft,
    entry_of,
    write_engine,
    write_frames,
    write_prompts,
    write_reference,
)
from export.gate_frames import gate_sets
from export.gate_run import run_gate
from export.graph import Graph, WeightStore
from export.model.config import ModelConfig
from export.model.memory import MODES
from export.model.spgdd import SpgddGpt
from export.model.weights import load_weights, save_weights
from export.progress import Progress
from export.quantise import SCHEMES, quantised

MANUAL = """\
Builds a bundle: the folder a station runs from, made once per model.

What happens, in this order:
  1. weights    read, checked, rounded to FP16 and written once (weights.safetensors)
  2. engines    encoder, text, tddf, msspmm (3 modes), head, prefix, and the fused detector of each
                mode; graphs refer to the weights, they do not copy them
  3. gate       every detector against PyTorch on full-size frames: cosine per token, distances,
                map, score, AUC, verdicts, latency; what fails is not shipped and the reason kept
  4. reference  raw outputs on drawn frames for the boot self-test
  5. manifest   hashes and every measured figure; written last

Nothing is rebuilt that is up to date: same weights, same code, same options, same files.

examples:
  python -m export.build_engines --preset nano --out engines/bundles/nano
  python -m export.build_engines --preset nano --weights trained.safetensors --out DIR
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m export.build_engines",
        description=MANUAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--preset", choices=("nano", "paper"), default="nano", help="which model")
    p.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    p.add_argument(
        "--weights", type=Path,
        help="weights file of this project (default: the shipped one, else random weights)",
    )  # fmt: skip
    p.add_argument(
        "--data", type=Path,
        help="folder of sets with index.jsonl for the gate and INT8 (default: ../shared/data if "
        "it is there, else drawn parts)",
    )  # fmt: skip
    p.add_argument(
        "--int8", action=argparse.BooleanOptionalAction, default=True,
        help="also try INT8 twins of the detectors (the gate decides which ship)",
    )  # fmt: skip
    p.add_argument("--force", action="store_true", help="build even if everything is up to date")
    return p


def source_key(options: Sequence[str]) -> str:
    """Hash of the code that builds and of the options: when it changes, everything is rebuilt."""
    digest = hashlib.sha256("\n".join(options).encode())
    here = Path(__file__).parent
    for path in sorted([*here.rglob("*.py"), *(here.parent / "engines").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def shipped_weights(preset: str) -> Path | None:
    """Weights inside the shipped bundle of this preset."""
    path = BUNDLES / preset / WEIGHTS
    return path if path.is_file() else None


def prepare_weights(args: argparse.Namespace, progress: Progress) -> tuple[str, str]:
    """Put weights.safetensors into the bundle; (source sentence, sha256)."""
    target = args.out / WEIGHTS
    source = args.weights or shipped_weights(args.preset)
    args.out.mkdir(parents=True, exist_ok=True)
    if source is None:
        progress.say("no trained weights: random initialisation (nano: on the pretrained stem)")
        save_weights(SpgddGpt.create(args.preset), target)
        return "random initialisation, seed 42", sha256(target)
    if not source.is_file():
        raise EngineError(f"no weights file at {source}")
    if source.resolve() != target.resolve():
        with tempfile.NamedTemporaryFile(dir=args.out, delete=False) as part:
            partial = Path(part.name)
        shutil.copyfile(source, partial)
        partial.chmod(0o644)
        partial.replace(target)
    return source.name, sha256(target)


def build_parts(draft: Draft, store: WeightStore, progress: Progress) -> None:
    """Every graph of the bundle in FP32."""
    config, out = draft.config, draft.out
    meta = metadata(config)

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
    meta = metadata(draft.config)
    for mode in MODES:
        for scheme in SCHEMES:
            graph = compose.detector(Graph(store, inline=True), draft.config, mode)
            path = draft.out / f"detector.{mode}.{scheme}.onnx"
            write_engine(quantised(graph, store, scheme, tiles, draft.config, meta), path)
            fields = {"kind": "detector", "mode": mode, "precision": scheme}
            draft.engines.append(entry_of(graph, path, self_test_atol=0.05, **fields))
            progress.step(path.name)


def metadata(config: ModelConfig) -> dict[str, str]:
    """ONNX metadata_props: what the weights are; the describer reads `trained` and `llm`."""
    prefix_trained = bool(config.extra.get("prefix_trained", False))
    return {
        "preset": config.name,
        "weights": config.trained,
        "trained": str(prefix_trained).lower(),
        "llm": str(config.extra.get("llm", "")),
    }


def up_to_date(out: Path, key: str) -> bool:
    """True when the bundle there verifies and was built from the same inputs."""
    try:
        return load_bundle(out.resolve()).manifest.built.get("key") == key
    except EngineError:
        return False


def build(args: argparse.Namespace, progress: Progress) -> None:
    """The whole build; raises EngineError in one sentence."""
    data = args.data or Path("../shared/data")
    data = data if data.is_dir() else None
    source, digest = prepare_weights(args, progress)
    key = source_key([args.preset, digest, str(data is not None), str(args.int8)])
    if not args.force and up_to_date(args.out, key):
        progress.say(f"{args.out} is up to date")
        return
    progress.step("weights")
    model = load_weights(args.out / WEIGHTS)
    store = WeightStore(args.out / WEIGHTS)
    trained = store.metadata.get("trained", model.config.trained)
    draft = Draft(args.out, model.config, {"weights": source, "sha256": digest}, trained)
    write_prompts(args.out)
    write_frames(args.out)
    build_parts(draft, store, progress)
    sets = gate_sets(data)
    if args.int8:
        build_int8(draft, store, [t for s in sets for t in s.held_out], progress)
    run_gate(draft, model, sets, progress)
    progress.step("reference answers")
    write_reference(draft)
    draft.built["key"] = key
    draft.write()
    load_bundle(args.out.resolve())
    size = sum((args.out / n).stat().st_size for n in draft.manifest().files)
    progress.say(f"{args.out}: {len(draft.engines)} engines, {size / 2**20:.1f} MiB. {trained}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code is the error's."""
    args = parser().parse_args(argv)
    progress = Progress(total=28 if args.int8 else 16)
    try:
        build(args, progress)
    except StationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


__all__ = ["EngineEntry", "build", "main"]

if __name__ == "__main__":
    sys.exit(main())
