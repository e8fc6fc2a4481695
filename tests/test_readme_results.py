"""README quotes measurements: each table must be, line by line, in the result that a benchmark wrote."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"<!-- results: ([\w-]+) -->\n+```text\n(.*?)```", README, re.DOTALL)


def test_results_are_quoted():
    assert {name for name, _ in QUOTED} == {
        "compare-tanh",
        "compare-iris",
        "accuracy",
        "coverage",
        "certified",
        "executors",
        "peers",
        "fits",
    }


@pytest.mark.parametrize(("name", "block"), QUOTED)
def test_a_table_in_readme_is_what_was_measured(name, block):
    measured = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert block.splitlines() == (measured.get("summary") or measured["table"])
    assert measured["made_by"]["command"] == f"python -m benchmarks {name.partition('-')[0]}"


def test_figures_in_readme_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", README):
        assert (ROOT / path).read_bytes().startswith(b"\x89PNG")
