"""The mutation run is itself tested: its mutants are what they say, and it tells a hole from a test."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the benchmarks are not installed

from benchmarks import _mutants  # noqa: E402  found only now

SOURCE = '''
"""A module - with 1 docstring."""
__all__ = ["f" + "g"]
HALF: int = 1 - 2
def f(x: list[1], y=-3):
    """x - y."""
    if x < y and not y:
        raise ValueError("1" + f"{x - 1}")
    total = x * y
    total += min(x, 7)
    return total, x
'''

TOY = """
LIMIT = 10
class Box:
    def area(self, a, b):
        return a * b
def tested(a):
    if a > LIMIT:
        return LIMIT
    return a + 1
def untested(a):
    return a - 5
def endless(a):
    while a < 4:
        a += 1
    return a
"""

TESTS = """
from refica.toy import LIMIT, Box, endless, tested, untested
def test_tested():
    assert [tested(a) for a in (0, 9, 10, 11, 20)] == [1, 10, 11, 10, 10]
def test_area():
    assert Box().area(2, 3) == 6
def test_untested():
    untested(1)
def test_endless():
    assert endless(1) == 4 and endless(7) == 7
"""


def changed(source=SOURCE):
    return [(m.kind, m.before, m.after) for m in _mutants.mutants_of(source)]


def test_every_kind_of_change_is_made_and_nothing_that_only_speaks_is_changed():
    found = changed()
    assert {kind for kind, _, _ in found} == set(_mutants.KINDS)
    assert ("operator", "x * y", "x / y") in found
    assert ("operator", "total += min(x, 7)", "total -= min(x, 7)") in found
    assert ("dropped term", "x * y", "x") in found
    assert ("comparison", "x < y", "x <= y") in found
    assert ("sign", "not y", "y") in found
    assert ("sign", "-3", "3") in found
    assert ("boolean", "x < y and (not y)", "x < y or not y") in found
    assert ("function", "min(x, 7)", "max(x, 7)") in found
    assert ("returned", "return (total, x)", "return (x, total)") in found
    assert [(b, a) for kind, b, a in found if kind == "constant" and b == "7"] == [
        ("7", a) for a in ("6", "8", "14")
    ]
    assert not any("f" in before and "g" in before for _, before, _ in found)  # __all__
    assert not any("x - 1" in before or "docstring" in before for _, before, _ in found)
    assert changed("x: list[1]\ndef f(a: 1 + 2) -> 3: pass") == []


def test_a_planted_mutant_is_the_source_with_that_change_and_no_other():
    lines = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in _mutants.mutants_of(SOURCE):
        tree = _mutants.planted(SOURCE, mutant)
        compile(tree, "mutant", "exec")
        other = ast.unparse(tree).splitlines()
        assert len(other) == len(lines)
        assert sum(a != b for a, b in zip(lines, other, strict=True)) == 1, mutant


def test_a_sample_is_spread_over_kinds_and_sites_and_made_again():
    found = [("file", mutant) for mutant in _mutants.mutants_of(SOURCE)]
    some = _mutants.sample(found, 8, seed=1)
    assert some == _mutants.sample(found, 8, seed=1)
    assert some != _mutants.sample(found, 8, seed=2)
    assert len({mutant.site for _, mutant in some}) == 8
    assert len({mutant.kind for _, mutant in some}) >= 4
    everything = _mutants.sample(found, 1000, seed=1)
    assert len(everything) == len({mutant.site for _, mutant in found})


def test_every_source_of_the_run_has_mutants_that_compile():
    for name in ("decoders", "rules", "likelihood", "exact", "vae/ledger", "reference/grid"):
        source = (ROOT / f"refica/{name}.py").read_text("utf-8")
        found = _mutants.mutants_of(source)
        assert len(found) > 50
        for mutant in found[::40]:
            compile(_mutants.planted(source, mutant), name, "exec")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the run forks")
def test_a_run_tells_what_is_tested_from_what_is_not(tmp_path):
    pytest.importorskip("coverage")
    root = tmp_path / "project"
    for path, text in {
        "refica/__init__.py": "",
        "refica/toy.py": TOY,
        "tests/test_toy.py": TESTS,
        "benchmarks/__init__.py": "",
        "pyproject.toml": "",
        "README.md": "",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    code = (
        "from pathlib import Path\nfrom benchmarks import mutation\n"
        f"mutation.ROOT = Path({str(root)!r})\nmutation.TESTS = {{'toy': ('toy',)}}\nmutation.START = 1.0\n"
        "mutation.main(['--module', 'toy', '--journal', 'notes.jsonl'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):  # the second time there is nothing left to do
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=300)
    entries = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    sites = {mutant.site for mutant in _mutants.mutants_of(TOY)}
    assert len(entries) == len(sites)
    survived = [(e["before"], e["after"]) for e in entries if e["killed_by"] is None]
    assert all(before in ("a - 5", "5", "return a - 5") for before, _ in survived), survived
    assert survived
    killers = {(e["before"], e["killed_by"]) for e in entries}
    assert ("a * b", "tests/test_toy.py::test_area") in killers
    assert ("10", "tests/test_toy.py::test_tested") in killers  # a constant, which is imported anew
    endless = {e["killed_by"] for e in entries if (e["before"], e["after"]) == ("a += 1", "a -= 1")}
    assert endless <= {"time or memory"}
