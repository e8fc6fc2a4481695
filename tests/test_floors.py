"""A module imports from lower floors, or from its own without a cycle; nothing points upward."""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

# `refica/__init__.py` has no number: it re-exports, and so stands above every room but the command line,
# which may import it as any user's program does.
FLOORS = {
    "validation": 0,
    "activations": 1,
    "rules": 1,
    "decoders": 2,
    "model": 3,
    "files": 4,
    "likelihood": 4,
    "ascent": 5,
    "bounds": 5,
    "certified": 5,
    "encoder": 5,
    "exact": 5,
    "grids": 5,
    "lattices": 5,
    "modes": 5,
    "neighbourhoods": 5,
    "piecewise": 5,
    "proposals": 5,
    "quantiles": 5,
    "quadrature": 5,
    "reference": 5,
    "spread": 5,
    "marginal": 6,
    "posterior": 6,
    "vae": 6,
    "centrality": 7,
    "datasets": 7,
    "examples": 7,
    "fit": 7,
    "model_files": 7,
    "recovery": 7,
    "uncertainty": 7,
    "compare": 8,
    "compare_report": 8,
    "exercises": 8,
    "plot": 8,
    "report": 8,
    "testing": 8,
    "verify": 8,
    "cli": 9,
    "__main__": 9,
}
TOP = max(FLOORS.values())

Sources = Mapping[str, str]  # dotted module name -> source text


def read_sources(package: Path) -> dict[str, str]:
    """The modules of a package by dotted name; a sub-package is named as its folder."""
    sources = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def imports_of(module: str, sources: Sources, packages: set[str]) -> set[str]:
    """The modules of the package that a module imports, wherever in it the import stands.

    An import inside a function, or only for the type checker, is an arrow like any other.
    """
    root = module.partition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = node.level - (module in packages)
                base = ".".join([*parts[: len(parts) - above], *([base] if base else [])])
            # `from refica import model` imports a module, `from refica import MLP` the package.
            found |= {
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in sources else base for alias in node.names
            }
    return {name for name in found if name.partition(".")[0] == root}


def room(module: str) -> str:
    """The part of a dotted name that has a floor: refica.testing.faults is in testing; refica in ''."""
    return module.partition(".")[2].partition(".")[0]


def a_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Some cycle of a graph, as a list whose last entry is its first; [] if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target, [*path, node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


def complaints(sources: Sources, packages: set[str], floors: Mapping[str, int] = FLOORS) -> list[str]:
    """What is wrong with the arrows between the modules of a package, one sentence each."""
    wrong = []
    arrows = {module: imports_of(module, sources, packages) - {module} for module in sources}
    rooms: dict[str, set[str]] = {}
    for module, targets in arrows.items():
        here = room(module)
        if here and here not in floors:
            wrong.append(f"{module} is on no floor: add {here!r} to FLOORS in tests/test_floors.py")
            continue
        for target in sorted(targets):
            there = room(target)
            if there and there not in floors:
                continue  # said once, above
            if not there and here and floors[here] < TOP:
                wrong.append(f"{module} imports the package itself: import the module that defines the name")
            if not here and there and floors[there] == TOP:
                wrong.append(f"{module} re-exports from {target}, which is above it")
            if here and there and floors[there] > floors[here]:
                wrong.append(
                    f"{module} (floor {floors[here]}) imports {target} (floor {floors[there]}): "
                    "move what it needs down, or the caller up"
                )
            if here != there:
                rooms.setdefault(here, set()).add(there)
    # Between rooms, and inside a sub-package between its modules: its __init__ only re-exports.
    inside = {m: {t for t in ts if room(t) == room(m)} for m, ts in arrows.items() if m not in packages}
    cycles = [cycle for graph in (rooms, inside) if (cycle := a_cycle(graph))]
    return wrong + ["a cycle: " + " -> ".join(name or "the package" for name in cycle) for cycle in cycles]


def plant(**modules: str) -> list[str]:
    """The complaints about a package with these modules; `a__b` stands for a.b, `a____init__` for a."""
    packages = {"refica"}
    sources = {"refica": ""}
    for name, source in modules.items():
        if name.endswith("____init__"):
            name = name.removesuffix("____init__")
            packages.add(f"refica.{name}")
        sources["refica" if name == "package" else "refica." + name.replace("__", ".")] = source
    return complaints(sources, packages)


def test_no_arrow_points_upward():
    import refica

    package = Path(refica.__path__[0])
    sources = read_sources(package)
    assert len(sources) > 5  # it looked in the right place
    packages = {name for name in sources if (package.parent / name.replace(".", "/")).is_dir()}
    assert complaints(sources, packages) == []


@pytest.mark.parametrize(
    "arrow",
    [
        "import refica.fit",
        "import numpy, refica.fit as f",
        "from refica.fit import fit_mle",
        "from refica import fit",
        "from . import fit",
        "from .fit import fit_mle",
        "def later():\n    from refica.fit import fit_mle",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from refica.fit import fit_mle",
        "try:\n    from refica.fit import fit_mle\nexcept ImportError:\n    pass",
    ],
)
def test_a_planted_upward_arrow_is_found(arrow):
    assert plant(fit="", model=arrow) == [
        "refica.model (floor 3) imports refica.fit (floor 7): move what it needs down, or the caller up"
    ]


def test_a_planted_upward_arrow_from_a_sub_package_is_found():
    planted = "from ..cli import main"
    assert len(plant(cli="", testing____init__="", testing__faults=planted)) == 1
    assert len(plant(cli="", testing____init__="from ..cli import main")) == 1


def test_a_planted_cycle_is_found():
    assert plant(
        exact="from refica.bounds import a",
        bounds="from refica import reference",
        reference="from .exact import b",
    ) == ["a cycle: bounds -> reference -> exact -> bounds"]
    assert plant(
        testing____init__="", testing__a="from refica.testing import b", testing__b="from .a import c"
    ) == ["a cycle: refica.testing.a -> refica.testing.b -> refica.testing.a"]
    # Two rooms, though no two modules import each other.
    assert plant(
        testing____init__="",
        testing__a="from refica.verify import c",
        testing__b="",
        verify="from refica.testing.b import d",
    ) == ["a cycle: testing -> verify -> testing"]


def test_a_module_without_a_floor_is_found():
    assert plant(novelty="from refica.model import NonlinearICA", model="") == [
        "refica.novelty is on no floor: add 'novelty' to FLOORS in tests/test_floors.py"
    ]
    assert len(plant(model="from refica.novelty import a", novelty="")) == 1


def test_the_package_itself_is_for_the_command_line_only():
    surface = "from refica.fit import fit_mle"
    assert plant(package=surface, fit="", cli="import refica as ri\nfrom refica import fit_mle") == []
    message = "refica.fit imports the package itself: import the module that defines the name"
    assert message in plant(package=surface, fit="import refica as ri")
    assert message in plant(package=surface, fit="from refica import fit_mle")
    assert plant(package="from refica.cli import main", cli="") == [
        "refica re-exports from refica.cli, which is above it"
    ]


def test_downward_and_level_arrows_are_allowed():
    assert (
        plant(
            validation="import numpy",
            model="from refica.validation import check_array\nimport refica.validation",
            exact="from refica.model import NonlinearICA\nfrom . import bounds",
            bounds="from .model import NonlinearICA",
            testing____init__="from refica.testing.faults import plant\nfrom .strategies import models",
            testing__faults="from ..model import NonlinearICA\nfrom .strategies import models",
            testing__strategies="from refica.exact import ExactLinear",
        )
        == []
    )
