"""What a reader of the documentation relies on: names, docstrings, examples and the README all hold."""

import doctest
import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import refica

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# `python -m refica` would run on import; it holds nothing but the call of cli.main.
MODULES = ["refica"] + [
    info.name
    for info in pkgutil.walk_packages(refica.__path__, "refica.")
    if not info.name.endswith(".__main__")
]
# A str carries no docstring of its own.
UNDOCUMENTED = {"__version__"}


def has_docstring(name: str, value: object) -> bool:
    """Whether somebody wrote one: dataclass and NamedTuple make up a signature where nobody did."""
    own = value.__dict__.get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
    return bool(own and own.strip()) and not own.startswith(f"{name}(")


def fenced(language: str, text: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language in a Markdown text, each with the line on which its code starts."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)) + 1, block[1]) for block in pattern.finditer(text)]


def test_no_public_name_is_said_twice():
    assert len(set(refica.__all__)) == len(refica.__all__)


@pytest.mark.parametrize("name", refica.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    value = getattr(refica, name)
    assert name in UNDOCUMENTED or has_docstring(name, value)


def test_a_missing_docstring_is_noticed():
    from dataclasses import dataclass
    from typing import NamedTuple

    @dataclass
    class Bare:
        x: int

    class Plain(NamedTuple):
        x: int

    class Child(Exception):
        pass

    def function():
        pass

    for value in (Bare, Plain, Child, function):
        assert not has_docstring(value.__name__, value)
    assert has_docstring("has_docstring", has_docstring)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_and_says_what_it_is(module):
    assert inspect.getdoc(importlib.import_module(module))


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_offers_is_there(module):
    offered = importlib.import_module(module)
    for name in getattr(offered, "__all__", ()):
        assert hasattr(offered, name)


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example that writes a file writes it here
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0  # the report above says which


def test_there_are_doctests():
    finder = doctest.DocTestFinder()
    examples = [
        example
        for module in MODULES
        for test in finder.find(importlib.import_module(module))
        for example in test.examples
    ]
    assert examples


def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = fenced("python", README)
    assert blocks
    namespace: dict[str, object] = {"__name__": "readme"}
    for line, code in blocks:
        # Blank lines in front, so that a traceback points into README.md.
        exec(compile("\n" * (line - 1) + code, str(ROOT / "README.md"), "exec"), namespace)


def test_fenced_blocks_are_found():
    text = "a\n```python\nx = 1\n```\n```sh\nls\n```\n\n```python\ny = 2\n\nz = 3\n```\n"
    assert fenced("python", text) == [(3, "x = 1\n"), (10, "y = 2\n\nz = 3\n")]
    # No block is missed for being written in another way: indented, or with words after the language.
    assert README.count("```") == 2 * len(re.findall(r"^```[a-z]+$", README, re.MULTILINE))


def test_the_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert refica.__version__ == project["version"]


def test_the_run_time_needs_numpy_and_scipy_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]] == [
        "numpy",
        "scipy",
    ]


def test_importing_refica_imports_no_extra():
    """`plot` and `verify` are asked for by those who use them; a fresh interpreter shows what comes along."""
    import subprocess
    import sys

    code = "import sys, refica; print(*{'matplotlib', 'autograd', 'hypothesis', 'pytest'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


def test_data_and_types_ship_with_the_package():
    package = Path(refica.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "data" / "iris.csv").exists()
