"""P11 for the gateways: nearly every small change of the rule and the handshake fails a test."""

import ast
import copy
import os
import subprocess
import sys

import pytest

from tests.station.gatekit import ROOT

MODULES = ("acceptance", "handshake")
SWAPS = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitXor: ast.BitOr,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def mutants(tree):
    """(line, what, mutated tree) for each single change."""
    nodes = list(ast.walk(tree))
    types = {id(n) for node in nodes for kind in annotations(node) for n in ast.walk(kind)}
    for index, node in enumerate(nodes):
        if id(node) in types:
            continue
        for what, change in changes(node):
            changed = copy.deepcopy(tree)
            change(list(ast.walk(changed))[index])
            yield node.lineno if hasattr(node, "lineno") else 0, what, changed


def annotations(node):
    """The type annotations of a node: changing them changes nothing that runs."""
    found = (getattr(node, "annotation", None), getattr(node, "returns", None))
    return [kind for kind in found if kind is not None]


def changes(node):
    if isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            if type(op) in SWAPS:
                yield f"{type(op).__name__} swapped", swap_compare(at, SWAPS[type(op)])
    elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in SWAPS:
        yield f"{type(node.op).__name__} swapped", swap_op(SWAPS[type(node.op)])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not removed", swap_unary
    elif (
        isinstance(node, ast.Return)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, bool)
    ):
        yield "return flipped", flip


def swap_compare(at, kind):
    def change(node):
        node.ops[at] = kind()

    return change


def swap_op(kind):
    def change(node):
        node.op = kind()

    return change


def swap_unary(node):
    node.op = ast.Not()
    node.operand = ast.UnaryOp(ast.Not(), node.operand)
    ast.fix_missing_locations(node)


def flip(node):
    node.value = ast.Constant(not node.value.value)
    ast.fix_missing_locations(node)


def survives(name, tree, folder):
    path = folder / f"{name}.py"
    path.write_text(ast.unparse(tree))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "tests.station.mutant_plugin"),
            *("tests/station/test_gateways_rule.py", "tests/station/test_gateways_handshake.py"),
        ],
        cwd=ROOT,
        env=os.environ | {"MUTANT": f"station.gateways.{name}={path}"},
        capture_output=True,
        timeout=300,
    )
    return done.returncode == 0


@pytest.mark.nightly
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", MODULES)
def test_at_least_95_percent_of_the_mutants_fail_a_test(name, tmp_path, figure):
    source = (ROOT / "station" / "gateways" / f"{name}.py").read_text()
    lines, made, alive = source.splitlines(), 0, []
    assert survives(name, ast.parse(source), tmp_path), "the original fails its own tests"
    for line, what, tree in mutants(ast.parse(source)):
        made += 1
        if survives(name, tree, tmp_path):
            alive.append(f"{name}.py:{line} {what}: {lines[line - 1].strip()}")
    print(*alive, sep="\n")
    figure("P11", f"gateways/{name}.py: {made - len(alive)} of {made} wrong programs caught")
    assert made > 20 and len(alive) <= 0.05 * made
