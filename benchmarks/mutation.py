"""Do the tests notice? Small changes are planted in the modules that compute, and their tests run.

``python -m benchmarks mutation`` plants 320 of them, 40 in each of eight modules or packages, drawn with a
seed, and writes ``results/mutation.json``: what was changed, and of each change that no test noticed why that
is so (`benchmarks._survivors`). With ``--journal FILE`` a run that was stopped goes on where it was;
``--again`` tries those that survived on ``tests/test_survivors_*.py`` alone.

The tests of a module are listed in `TESTS`. They first run as they are, for up to `BASELINE` seconds, and it
is noted how long each takes and which lines of the module it runs. Of a mutant's tests then run those that
run its line, the quickest first, up to `BUDGET` seconds of them in all. A mutant is killed by a test that
fails or by taking `PATIENCE` times as long. All this in a copy of the tree, with the mutant in memory only,
each in a process forked from one in which the module's tests are ready to run: the code of the function that
the change is in is replaced there. What is changed outside of any function (constants, classes) is imported
anew. Hypothesis draws the same examples each time and does not shrink.
"""

# This process must not import refica: its forks do, each with another change in it.

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._mutants import KINDS, Mutant, mutants_of, planted, sample
from benchmarks._planting import Planted, function_at, replace
from benchmarks._survivors import EQUIVALENT

ROOT = Path(__file__).parent.parent

COUNT = 40
"""Mutants in each module or package."""

SEED = 6

BASELINE = 30.0
"""Seconds of a module's tests that are used."""

BUDGET = 4.0
"""Seconds of tests for one mutant, by the time each took without it."""

PATIENCE = 4.0
"""A mutant whose tests take so many times as long (and `START` seconds more) is caught in a loop."""

START = 4.0

INTERNAL_ERROR = 3
"""Exit code of pytest."""

MEMORY = 6 * 2**30
"""Bytes that a mutant may ask for."""

TESTS = {
    "decoders": ("decoders", "likelihood"),
    "activations": ("activations", "decoders", "bounds"),
    "rules": ("rules", "sobol", "quadrature"),
    "likelihood": ("likelihood", "exact_linear", "posterior"),
    "exact": ("exact_linear",),
    "quadrature": ("quadrature",),
    "reference": ("reference",),
    "vae": ("vae", "vae_estimators", "gaps"),
}
"""Which files of ``tests/`` are a module's own; ``tests/test_survivors_MODULE.py`` too, if there is one."""

SAID = os.dup(1)
"""Standard output, as it was before any fork turned it off."""

SETTINGS = """
from hypothesis import HealthCheck, Phase, settings
settings.register_profile(
    "mutation", deadline=None, derandomize=True, database=None, print_blob=False,
    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
)
"""


def main(arguments: Sequence[str] = ()) -> None:
    """Run, and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks mutation", description="Plant small changes.")
    parser.add_argument("--journal", type=Path, help="file to note each mutant in, and to go on from")
    parser.add_argument("--count", type=int, default=COUNT, help=f"mutants of a module (default {COUNT})")
    parser.add_argument(
        "--module", choices=sorted(TESTS), action="append", help="only this one (repeat for more)"
    )
    parser.add_argument("--again", action="store_true", help="try survivors on test_survivors_*.py")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    options = parser.parse_args(list(arguments))
    known = _read(options.journal)
    if options.again:
        known = {key: entry for key, entry in known.items() if entry["killed_by"] is not None}
    end = time.monotonic() + 60.0 * options.minutes
    options.journal = options.journal and options.journal.resolve()
    _prepare()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for part in ("refica", "tests", "benchmarks", "pyproject.toml", "README.md"):
            copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copied(ROOT / part, tree / part)
        entries = _run(tree, options, known, end)
    if not options.module:
        from benchmarks._results import write_result  # it imports refica, which is done with forking now

        write_result("mutation", _result(entries, options.count))


def _run(
    tree: Path, options: argparse.Namespace, known: dict[str, dict[str, Any]], end: float
) -> list[dict[str, Any]]:
    """Every module's mutants in turn; a module whose mutants are all known needs no process."""
    entries = []
    for module in options.module or list(TESTS):
        plan = {_key(file, mutant): (file, mutant) for file, mutant in _plan(tree, module, options.count)}
        new = [
            pair for key, pair in plan.items() if key not in known or known[key]["before"] != pair[1].before
        ]
        if new and time.monotonic() < end:
            lines = _forked(lambda module=module, new=new: _served(tree, module, new, options, end), 1e6)
            if lines.startswith("failed"):
                raise RuntimeError(lines)
            known |= _parsed(lines)
        entries += [{"key": key, **known[key]} for key in plan if key in known]
    return entries


def _key(file: str, mutant: Mutant) -> str:
    return f"{mutant.site}:{mutant.variant}@{file}"


def _plan(tree: Path, module: str, count: int) -> list[tuple[str, Mutant]]:
    """The mutants of a module or package, as (file, mutant)."""
    path = tree / "refica" / module
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    found = [
        (str(file.relative_to(tree)), mutant)
        for file in files
        for mutant in mutants_of(file.read_text("utf-8"))
    ]
    return sample(found, count, SEED)


def _served(
    tree: Path, module: str, new: list[tuple[str, Mutant]], options: argparse.Namespace, end: float
) -> str:
    """Judge the mutants of a module: their lines for the journal."""
    _in(tree)
    names = [f"survivors_{module}", *(() if options.again else TESTS[module])]
    files = [f"tests/test_{name}.py" for name in names if Path(f"tests/test_{name}.py").exists()]
    path = tree / "refica" / module
    server = _Server(f"{path}/*" if path.is_dir() else f"{path}.py", module, new, options.journal, end)
    if _pytest(files, server) == INTERNAL_ERROR or server.wrong:
        raise RuntimeError(f"the tests of {module} do not run: {server.wrong or 'an error of pytest'}")
    return "\n".join(server.lines)


def _prepare() -> None:
    """Import what every fork needs, once; no plugin of Hypothesis may import refica."""
    os.environ |= {"HYPOTHESIS_NO_PLUGINS": "1", "HYPOTHESIS_PROFILE": "mutation", "MPLBACKEND": "Agg"}
    sys.dont_write_bytecode = True
    exec(SETTINGS)  # Hypothesis is imported only now, after the environment is set
    for name in (
        "pytest",
        "numpy",
        "scipy.stats",
        "scipy.optimize",
        "scipy.special",
        "hypothesis.strategies",
    ):
        importlib.import_module(name)
    for name in ("autograd", "autograd.scipy.special", "mpmath", "flint", "matplotlib.pyplot", "coverage"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert "refica" not in sys.modules


def _forked(work: Callable[[], str], seconds: float) -> str:
    """What ``work`` returns, in a process of its own with so much time on the processor; or how it ended."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answer = "failed"
        try:
            os.close(read)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            whole = int(seconds) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
            answer = work()
        except BaseException:
            answer = f"failed\n{traceback.format_exc()}"
        finally:
            with os.fdopen(write, "w", encoding="utf-8") as pipe:
                pipe.write(answer)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer or "time or memory"


def _in(tree: Path) -> None:
    """Make this process one that uses the copy."""
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]


def _pytest(tests: list[str], plugin: object) -> int:
    import pytest

    # Plain asserts: nothing is printed, and rewriting them takes longer than to run them.
    return int(pytest.main(["-q", "--assert=plain", "-p", "no:cacheprovider", *tests], [plugin]))


class _Watcher:
    """A plugin of pytest that remembers the last failure, of a test or of collecting them."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = "an error on import"


class _Server(_Watcher):
    """A plugin of pytest that, once tests are collected, runs them to learn what they cover, then judges."""

    def __init__(
        self, covered: str, module: str, mutants: list[tuple[str, Mutant]], journal: Path | None, end: float
    ) -> None:
        super().__init__()
        self.covered, self.module, self.mutants, self.journal, self.end = (
            covered,
            module,
            mutants,
            journal,
            end,
        )
        self.lines: list[str] = []
        self.wrong = ""

    def pytest_runtestloop(self, session: Any) -> bool:
        if self.failed:
            self.wrong = "they cannot be collected"
            return True
        cover = _cover(self, session.items, self.covered)
        _say(f"{self.module}: {len(cover)} of {len(session.items)} tests")
        for file, mutant in self.mutants:
            if time.monotonic() > self.end:
                break
            entry = {"key": _key(file, mutant), "module": self.module, **self._judged(file, mutant, cover)}
            self.lines.append(json.dumps(entry))
            if self.journal is not None:
                with self.journal.open("a", encoding="utf-8") as notes:
                    notes.write(self.lines[-1] + "\n")
            _say(f"{entry['key']}: {entry['killed_by'] or 'SURVIVED'}")
        killers = {json.loads(line)["killed_by"] for line in self.lines}
        again = [item for _, item, _ in cover if item.nodeid in killers]
        innocent = _forked(lambda: self._failing(again), 10.0 * BASELINE)
        if innocent != "passed":
            self.wrong = f"without any change {innocent} fails too, the second time that it runs"
        return True

    def _failing(self, items: list[Any]) -> str:
        """The first of the tests that fails, or "passed"."""
        self.failed = ""
        for item in items:
            _run_test(item)
            if self.failed:
                return self.failed
        return "passed"

    def _judged(self, file: str, mutant: Mutant, cover: list[tuple[float, Any, set[str]]]) -> dict[str, Any]:
        """Run a mutant's tests and say which of them noticed, None if none did."""
        lines = {f"{file}:{line}" for line in range(mutant.line, mutant.end + 1)}
        # What is outside of any function was run on import: any test may depend on it.
        outside = function_at(ast.parse(Path(file).read_text("utf-8")), mutant) is None
        chosen, left = [], BUDGET
        for seconds, item, run in cover:
            if (outside or lines & run) and seconds <= left:
                chosen.append(item)
                left -= seconds

        def work() -> str:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            if replace(file, mutant):
                return self._failing(chosen)
            return _anew(file, mutant, [item.nodeid for item in chosen])

        found = _forked(work, START + PATIENCE * (BUDGET - left)) if chosen else "passed"
        killed = None if found == "passed" else "an error" if found.startswith("failed") else found
        entry = {"file": file, "line": mutant.line, "kind": mutant.kind}
        return entry | {
            "before": mutant.before,
            "after": mutant.after,
            "tests": len(chosen),
            "killed_by": killed,
        }


def _run_test(item: Any) -> None:
    from _pytest.runner import runtestprotocol

    runtestprotocol(item, nextitem=None)


def _cover(watcher: _Watcher, items: list[Any], covered: str) -> list[tuple[float, Any, set[str]]]:
    """Of each test that passes, the quickest first: its time, itself, the lines that it runs."""
    import coverage

    traced = coverage.Coverage(data_file=None, config_file=False, include=[covered])
    traced.start()
    seconds: dict[str, float] = {}
    left = BASELINE
    for item in _in_turn(items):
        if left < 0.0:
            break
        watcher.failed = ""
        start = time.process_time()
        traced.switch_context(item.nodeid)
        _run_test(item)
        took = time.process_time() - start
        left -= took
        if not watcher.failed:
            seconds[item.nodeid] = took
    traced.stop()
    lines: dict[str, set[str]] = {test: set() for test in seconds}
    data = traced.get_data()
    for file in data.measured_files():
        for line, tests in data.contexts_by_lineno(file).items():
            for test in lines.keys() & set(tests):
                lines[test].add(f"{os.path.relpath(file)}:{line}")
    found = [(seconds[item.nodeid], item, lines[item.nodeid]) for item in items if item.nodeid in seconds]
    return sorted(found, key=lambda entry: entry[0])


def _in_turn(items: list[Any]) -> list[Any]:
    """Tests of every file and function in turn, so that a part of them is a fair part."""
    seen: dict[Any, int] = {}
    rank = []
    for item in items:
        function = (item.path, getattr(item, "originalname", item.name))
        seen[function] = seen.get(function, -1) + 1
        rank.append(seen[function])
    return [items[i] for i in sorted(range(len(items)), key=lambda i: (rank[i], i))]


def _anew(file: str, mutant: Mutant, tests: list[str]) -> str:
    """Import refica with the change, collect and run the tests from scratch; what failed, or "passed"."""
    code = compile(planted(Path(file).read_text("utf-8"), mutant), str(Path(file).resolve()), "exec")
    name = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    own = {path.stem for path in Path("tests").glob("*.py")}
    for loaded in list(sys.modules):
        if loaded.partition(".")[0] == "refica" or loaded in own:
            del sys.modules[loaded]
    sys.meta_path.insert(0, Planted(name, str(Path(file).resolve()), code))
    watcher = _Watcher()
    _pytest(["-x", *tests], watcher)
    return watcher.failed or "passed"


def _read(journal: Path | None) -> dict[str, dict[str, Any]]:
    return _parsed(journal.read_text("utf-8")) if journal is not None and journal.exists() else {}


def _parsed(lines: str) -> dict[str, dict[str, Any]]:
    """Entries by key; of a line that was cut short nothing."""
    entries = [json.loads(line) for line in lines.splitlines() if line.endswith("}")]
    return {entry.pop("key"): entry for entry in entries}


def _say(words: str) -> None:
    """Tell of progress, past pytest, which has standard output to itself."""
    os.write(SAID, f"{words}\n".encode())


def _explained(entry: dict[str, Any]) -> str | None:
    """Why a mutant is none, by the line of code on which it begins."""
    line = (ROOT / entry["file"]).read_text("utf-8").splitlines()[entry["line"] - 1].strip()
    return EQUIVALENT.get((entry["file"], line, entry["before"], entry["after"]))


def _result(entries: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """The result as it is written: counts, then each mutant, those that survived first."""

    def counted(field: str, names: Sequence[str]) -> dict[str, Any]:
        chosen = {name: [e for e in entries if e[field] == name] for name in names}
        return {
            name: {"mutants": len(some), "killed": sum(e["killed_by"] is not None for e in some)}
            for name, some in chosen.items()
        }

    survivors = [{**e, "explanation": _explained(e)} for e in entries if e["killed_by"] is None]
    killed = len(entries) - len(survivors)
    return {
        "summary": {
            "mutants": len(entries),
            "killed": killed,
            "killed_share": killed / len(entries),
            "survivors_explained": sum(s["explanation"] is not None for s in survivors),
            "survivors": len(survivors),
            "by_module": counted("module", list(TESTS)),
            "by_kind": counted("kind", KINDS),
        },
        "settings": {"seed": SEED, "per_module": count, "budget_seconds": BUDGET, "tests": TESTS},
        "survivors": survivors,
        "killed": [
            re.sub(r"\s+", " ", f"{e['key']} line {e['line']}: {e['before']} -> {e['after']}")
            for e in entries
            if e["killed_by"] is not None
        ],
    }
