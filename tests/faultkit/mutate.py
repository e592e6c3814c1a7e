"""Small wrong programs: each mutant of a module differs from it in one place (P11).

Comparisons are turned and shifted, `and`/`or`/`not` swapped, arithmetic turned, numbers moved by
one, booleans flipped, strings of enums left alone, returned values dropped, assertions of lists
emptied. Docstrings, annotations and log texts are no behaviour and stay.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

SWAPS: dict[type, list[type]] = {
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Add],
    ast.FloorDiv: [ast.Mult],
}


@dataclass(frozen=True)
class Mutant:
    """One wrong program and where it is wrong."""

    line: int
    what: str
    source: str


def mutants(source: str, functions: set[str] | None = None) -> Iterator[Mutant]:
    """All mutants of a module; with `functions`, only those inside functions of these names."""
    tree = ast.parse(source)
    for index, node in enumerate(ast.walk(tree)):
        if not _inside(tree, node, functions):
            continue
        for what, change in _changes(node):
            wrong = copy.deepcopy(tree)
            change(list(ast.walk(wrong))[index])
            yield Mutant(
                getattr(node, "lineno", 0), what, ast.unparse(ast.fix_missing_locations(wrong))
            )


def _inside(tree: ast.Module, node: ast.AST, functions: set[str] | None) -> bool:
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef) and (functions is None or outer.name in functions):
            body = [inner for statement in outer.body for inner in ast.walk(statement)]
            if any(inner is node for inner in body):
                return True
    return False


def _changes(node: ast.AST) -> Iterator:
    """(what, function that does it to the same node of a copy)."""
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            for other in SWAPS.get(type(operator), []):
                yield f"{type(operator).__name__}->{other.__name__}", _operator(number, other)
    elif isinstance(node, ast.BoolOp | ast.BinOp):
        for other in SWAPS.get(type(node.op), []):
            yield f"{type(node.op).__name__}->{other.__name__}", _set("op", other)
    elif isinstance(node, ast.If | ast.IfExp):
        yield "condition negated", _negate
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "bool flipped", lambda n: setattr(n, "value", not n.value)
        elif isinstance(node.value, int):
            yield "number + 1", lambda n: setattr(n, "value", n.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "returns None", lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, ast.Raise):
        yield "raise dropped", _forget_raise
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not dropped", _double_not


def _operator(number: int, other: type):
    return lambda node: node.ops.__setitem__(number, other())


def _set(name: str, other: type):
    return lambda node: setattr(node, name, other())


def _negate(node: ast.If | ast.IfExp) -> None:
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _forget_raise(node: ast.Raise) -> None:
    """`raise ValueError(...)` becomes `raise` of something no caller expects to survive: nothing
    can be raised by a Raise node, so its exception is one that `except ValueError` lets through."""
    node.exc = ast.Call(ast.Name("ZeroDivisionError", ast.Load()), [], [])
    node.cause = None


def _double_not(node: ast.UnaryOp) -> None:
    node.operand = ast.UnaryOp(ast.Not(), node.operand)
