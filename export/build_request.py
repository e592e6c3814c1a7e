"""What the command line asks of a build, checked before anything is read or written."""

import argparse
import re

from engines.errors import UsageError
from export.model.checkpoint import SHA256


def check_request(args: argparse.Namespace) -> None:
    """UsageError for options that contradict each other or make no sense alone.

    EngineError when a later step could not be done at all (its package is missing).
    """
    if args.weights and (args.checkpoint or args.parts):
        other = "--checkpoint" if args.checkpoint else "--parts"
        raise UsageError(
            f"--weights and {other} contradict each other: --weights is the whole model; give one"
        )
    for name, needs in (
        ("sha256", "checkpoint"), ("unverified", "checkpoint"), ("cache", "target"),
        ("quant", "llm"),
    ):  # fmt: skip
        if getattr(args, name) and not getattr(args, needs):
            raise UsageError(f"--{name} says nothing without --{needs}: add it or leave both out")
    if args.sha256 and args.unverified:
        raise UsageError("--sha256 and --unverified contradict each other: give one")
    if args.sha256 and not re.fullmatch(SHA256, args.sha256, re.IGNORECASE):
        raise UsageError(f"--sha256 {args.sha256}: give all 64 hex digits, or at least the first 8")
    if args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out {args.out} is a file: name the folder of the bundle")
    _check_extras(args)


def _check_extras(args: argparse.Namespace) -> None:
    """What is made beside the bundle, minutes later, must be possible now."""
    if args.target:
        from engines.tensorrt import check_target, tensorrt

        for target in args.target:
            check_target(target, tensorrt())
    if args.quant:
        from export.gguf_quantize import FILE_TYPES

        if args.quant not in FILE_TYPES:
            raise UsageError(f"--quant {args.quant} is not one of {', '.join(FILE_TYPES)}")
