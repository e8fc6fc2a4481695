"""Mutants of a program: one small change each, in its syntax tree.

A mutant that no test notices is either the same program in another spelling or a hole in the tests.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["KINDS", "Mutant", "mutants_of", "planted", "sample"]

BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
"""Operators and what they become; a matrix product has no likely neighbour."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
"""A boundary moved, or the comparison turned round."""

NAMES = {
    "min": "max",
    "minimum": "maximum",
    "argmin": "argmax",
    "floor": "ceil",
    "sum": "mean",
    "all": "any",
    "sin": "cos",
    "sinh": "cosh",
    "log1p": "log",
    "expm1": "exp",
    "zeros": "ones",
    "zeros_like": "ones_like",
}
NAMES |= {new: old for old, new in NAMES.items() if new not in ("log", "exp", "mean")}
"""Functions and methods that are taken for one another."""

KINDS = (
    "operator",
    "dropped term",
    "comparison",
    "constant",
    "sign",
    "boolean",
    "function",
    "returned",
)
"""Kinds of change."""


class Mutant(NamedTuple):
    """A change: which node (in the order of the walk) and which of its ``variant`` s, its ``kind``, the first
    and last line of it, and the code ``before`` and ``after``."""

    site: int
    variant: int
    kind: str
    line: int
    end: int
    before: str
    after: str


def mutants_of(source: str) -> list[Mutant]:
    """Return every mutant of a module."""
    found = []
    for site, node in enumerate(_sites(ast.parse(source))):
        for variant, (kind, new) in enumerate(_variants(node)):
            lines = node.lineno, node.end_lineno or node.lineno
            found.append(Mutant(site, variant, kind, *lines, ast.unparse(node), ast.unparse(new)))
    return found


def planted(source: str, mutant: Mutant) -> ast.Module:
    """Return the syntax tree of a module with the change in it."""
    tree = ast.parse(source)
    node = list(_sites(tree))[mutant.site]
    _, new = _variants(node)[mutant.variant]
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, field, ast.copy_location(new, node))
            elif isinstance(value, list) and any(entry is node for entry in value):
                replaced = [ast.copy_location(new, node) if entry is node else entry for entry in value]
                setattr(parent, field, replaced)
    return ast.fix_missing_locations(tree)


def sample(found: list[tuple[str, Mutant]], count: int, seed: int) -> list[tuple[str, Mutant]]:
    """Return ``count`` of the mutants (file, mutant), at most one for a site.

    A kind is drawn, then one of it: drawn evenly nearly all would be changes of operators and constants.
    """
    rng = np.random.default_rng(seed)
    by_kind = {kind: [pair for pair in found if pair[1].kind == kind] for kind in KINDS}
    chosen: list[tuple[str, Mutant]] = []
    taken: set[tuple[str, int]] = set()
    while len(chosen) < count and any(by_kind.values()):
        kind = rng.choice([kind for kind, left in by_kind.items() if left])
        file, mutant = by_kind[kind].pop(int(rng.integers(len(by_kind[kind]))))
        if (file, mutant.site) not in taken:
            taken.add((file, mutant.site))
            chosen.append((file, mutant))
    return chosen


def _sites(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute something, depth first: no annotations, messages, docstrings or decorators."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "keywords") and not isinstance(
            node, ast.Call
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_text(child):
                if hasattr(child, "lineno"):
                    yield child
                yield from _sites(child)


def _is_text(node: ast.AST) -> bool:
    """Whether a node says something rather than computes it."""
    if isinstance(node, ast.FunctionDef):
        return node.name == "__repr__"
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom))


def _variants(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """The changes of one node, with their kinds."""
    if isinstance(node, ast.BinOp):
        return _of_operation(node)
    if isinstance(node, ast.AugAssign) and type(node.op) in BINARY:
        return [("operator", _with(node, op=BINARY[type(node.op)]()))]
    if isinstance(node, ast.Compare):
        first, rest = node.ops[0], node.ops[1:]
        return [("comparison", _with(node, ops=[new(), *rest])) for new in COMPARISONS.get(type(first), ())]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
        changed = {value + 1, value - 1, 2 * value} - {value}
        return [("constant", ast.Constant(new)) for new in sorted(changed)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        return [("sign", node.operand)]
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return [("boolean", _with(node, op=other)), ("boolean", node.values[0])]
    if isinstance(node, ast.Call):
        return _of_call(node)
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1:
        first, second, *others = node.value.elts
        return [("returned", ast.Return(ast.Tuple([second, first, *others], ast.Load())))]
    if isinstance(node, ast.Return) and isinstance(node.value, (ast.Compare, ast.BoolOp)):
        return [("returned", ast.Return(ast.UnaryOp(ast.Not(), node.value)))]
    if isinstance(node, ast.Return) and isinstance(node.value, (ast.BinOp, ast.Call)):
        doubled = ast.BinOp(ast.Constant(2), ast.Mult(), node.value)
        return [("returned", ast.Return(doubled))]
    return []


def _of_operation(node: ast.BinOp) -> list[tuple[str, ast.AST]]:
    """Another operator; one of the two sides alone."""
    found: list[tuple[str, ast.AST]] = []
    if type(node.op) in BINARY:
        found.append(("operator", _with(node, op=BINARY[type(node.op)]())))
    if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
        found.append(("dropped term", node.left))
    if isinstance(node.op, (ast.Add, ast.Mult)):
        found.append(("dropped term", node.right))
    return found


def _of_call(node: ast.Call) -> list[tuple[str, ast.AST]]:
    """A like function under another name."""
    called = node.func
    if isinstance(called, ast.Attribute) and called.attr in NAMES:
        return [("function", _with(node, func=_with(called, attr=NAMES[called.attr])))]
    if (
        isinstance(called, ast.Name)
        and called.id in NAMES
        and NAMES[called.id] in ("min", "max", "all", "any")
    ):
        return [("function", _with(node, func=_with(called, id=NAMES[called.id])))]
    return []


def _with(node: ast.AST, **changes: object) -> ast.AST:
    """A copy of a node, with other fields."""
    new = copy.copy(node)
    for field, value in changes.items():
        setattr(new, field, value)
    return new
