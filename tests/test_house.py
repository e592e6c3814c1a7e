"""The law of the house (docs/developer.md): who may import whom, and no torch on the run side."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("export", "engines", "calibration", "station")
# room -> what it may import of ours, as module prefixes.
MAY = {
    "engines": ("engines",),
    "export": ("export", "engines"),
    "calibration": ("calibration", "engines"),
    "station": ("station", "engines", "calibration.recipe", "calibration.enroll"),
}
# Only training knows the model; what follows it are the few modules that train or evaluate it.
HEAVY = ("torch", "onnx", "onnxscript", "transformers")


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _breaches(room: str) -> list[str]:
    found = []
    for file in sorted((ROOT / room).rglob("*.py")):
        for line, name in _imports(file):
            if name.split(".")[0] not in ROOMS:
                continue
            allowed = MAY[room]
            if room == "calibration" and _trains(file):
                allowed = (*allowed, "export")
            if not any(name == a or name.startswith(f"{a}.") for a in allowed):
                found.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    return found


def _trains(file: Path) -> bool:
    """It uses torch, or one of our modules that does."""
    names = [name for _, name in _imports(file)]
    ours = {ROOT / f"{'/'.join(name.split('.')[:2])}.py" for name in names}
    return _uses_torch(names) or any(
        _uses_torch(name for _, name in _imports(f)) for f in ours if f.is_file()
    )


def _uses_torch(names: Iterable[str]) -> bool:
    return any(name.split(".")[0] == "torch" for name in names)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_the_law_allows(room: str) -> None:
    assert _breaches(room) == []


@pytest.mark.parametrize("room", ["station", "engines"])
def test_run_side_names_no_build_side_package(room: str) -> None:
    named = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in sorted((ROOT / room).rglob("*.py"))
        for line, name in _imports(file)
        if name.split(".")[0] in HEAVY
    ]
    assert named == []


BLOCKED = """
import importlib, importlib.abc, pkgutil, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Block())
import engines, station, calibration.recipe, calibration.enroll
walk = pkgutil.walk_packages
names = [m.name for p in (engines, station) for m in walk(p.__path__, p.__name__ + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert "torch" not in sys.modules
print(len(names))
"""


def test_run_side_imports_where_torch_is_absent() -> None:
    code = BLOCKED.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20  # it walked the rooms, not an empty package


def test_no_module_outgrows_its_reader() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        if (lines := len(file.read_text().splitlines())) > 400
    }
    assert long == {}
