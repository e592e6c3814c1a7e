"""Build side: the reference model in PyTorch and its conversion into artefacts."""

import importlib.util
import sys

NEEDED = ("torch", "onnx")


def lacking(modules: tuple[str, ...] = NEEDED) -> str | None:
    """One sentence when the build side's packages are not installed, else None."""
    gone = [name for name in modules if importlib.util.find_spec(name) is None]
    if not gone:
        return None
    return (
        f"this is the build side and needs {' and '.join(gone)}: make test installs it, "
        "or pip install -e '.[export]'"
    )


if _told := lacking():
    # Here, because every command of the build side comes by; the station never does.
    sys.stderr.write(f"error: {_told}\n")
    raise SystemExit(3)
