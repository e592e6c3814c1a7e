"""P11: the fail-safe code is tested: nearly every wrong program is caught by its own tests.

For each module, each mutant runs against the fast tests of that module in a copy of the tree.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faultkit.mutate import mutants

ROOT = Path(__file__).resolve().parents[2]
# module -> (tests that judge it, functions or None for all)
MODULES = {
    "station/verdict.py": (["test_verdict.py"], None),
    "station/ledger_state.py": (["test_ledger_state.py"], None),
    "station/schema.py": (["test_schema.py"], None),
    "station/schema_ctl.py": (["test_schema.py"], None),
    "station/security.py": (["test_keys.py", "test_security.py"], {"may", "zap_answer"}),
}
QUICK = {"test_keys.py": "table_of_roles", "test_security.py": "zap or audit_log_says"}


@pytest.fixture
def tree(tmp_path):
    """What the tests need, without the repository's own pytest configuration."""
    ignore = shutil.ignore_patterns("__pycache__", "bundles", "*.onnx")
    for name in ("station", "engines"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    (tmp_path / "tests").mkdir()
    for kit in ("buskit.py", "securitykit.py"):
        shutil.copy(ROOT / "tests" / kit, tmp_path / "tests")
    shutil.copytree(ROOT / "tests" / "station" / "golden", tmp_path / "tests" / "golden")
    for names, _ in MODULES.values():
        for name in names:
            shutil.copy(ROOT / "tests" / "station" / name, tmp_path / "tests")
    (tmp_path / "conftest.py").write_text(
        "import hypothesis\n"
        "hypothesis.settings.register_profile('quick', max_examples=25, deadline=None)\n"
        "hypothesis.settings.load_profile('quick')\n"
    )
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npythonpath = . tests\nmarkers =\n  slow: x\n  nightly: x\n"
    )
    return tmp_path


def passes(tree, tests):
    chosen = " or ".join(QUICK[t] for t in tests if t in QUICK)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not nightly", *(["-k", chosen] if chosen else [])]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in tests)],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=1800,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    return done.returncode == 0


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("module", MODULES)
def test_wrong_programs_are_caught(tree, module, figure):
    tests, functions = MODULES[module]
    source = (ROOT / module).read_text()
    assert passes(tree, tests), "the right program must pass in the copied tree"
    caught, survivors = 0, []
    for mutant in mutants(source, functions):
        (tree / module).write_text(mutant.source)
        if passes(tree, tests):
            survivors.append(f"{module}:{mutant.line} {mutant.what}")
        else:
            caught += 1
    total = caught + len(survivors)
    figure("P11", f"{module}: {caught} of {total} wrong programs caught; survivors: {survivors}")
    assert caught >= 0.95 * total, survivors
