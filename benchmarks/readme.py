"""Put the tables that benchmarks wrote into README, below the lines ``<!-- results: NAME -->``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks._results import FOLDER
from refica.files import write_text_atomically

README = Path(__file__).parent.parent / "README.md"

PLACE = re.compile(r"<!-- results: ([\w-]+) -->\n+(?:```text\n.*?```\n)?", re.DOTALL)


def main() -> None:
    """Fill every place; a place without a result is an error."""
    write_text_atomically(README, PLACE.sub(_filled, README.read_text(encoding="utf-8")))


def _filled(place: re.Match[str]) -> str:
    measured = json.loads((FOLDER / f"{place[1]}.json").read_text(encoding="utf-8"))
    lines = "\n".join(measured.get("summary") or measured["table"])
    return f"<!-- results: {place[1]} -->\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    main()
