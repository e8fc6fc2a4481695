"""Mutants put in place: into the code of a live function, or into a module as it is imported."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import sys
from pathlib import Path
from types import CodeType
from typing import Any

from benchmarks._mutants import Mutant, planted

__all__ = ["Planted", "function_at", "replace"]


def replace(file: str, mutant: Mutant) -> bool:
    """Put the change into the code of the live function that it is in; False if it is in none."""
    name = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    module = sys.modules[name]
    tree = planted(Path(file).read_text("utf-8"), mutant)
    at = function_at(ast.parse(Path(file).read_text("utf-8")), mutant)
    if at is None:
        return False
    code = _code_of(compile(tree, module.__file__ or file, "exec"), at)
    live: Any = module
    for part in at:
        live = vars(live)[part]
    live = getattr(live, "fget", None) or getattr(live, "__func__", None) or live
    while hasattr(live, "__wrapped__"):
        live = live.__wrapped__
    if live.__code__.co_freevars != code.co_freevars:
        return False
    live.__code__ = code
    return True


def function_at(tree: ast.Module, mutant: Mutant) -> list[str] | None:
    """The names of the classes and the function whose body holds a mutant, None if it is outside of any."""
    names: list[str] = []
    body: list[ast.stmt] = tree.body
    while True:
        inside = [
            node
            for node in body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef))
            and node.body[0].lineno <= mutant.line
            and mutant.end <= (node.end_lineno or 0)
        ]
        if not inside:
            return None
        names.append(inside[0].name)
        if isinstance(inside[0], ast.FunctionDef):
            return names
        body = inside[0].body


def _code_of(code: CodeType, names: list[str]) -> CodeType:
    """The code of a function by the names of classes and function that lead to it."""
    for name in names:
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
    return code


class Planted(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from changed code."""

    def __init__(self, name: str, path: str, code: Any) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        package = [str(Path(self.path).parent)] if self.path.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=package
        )

    def exec_module(self, module: Any) -> None:
        exec(self.code, module.__dict__)
