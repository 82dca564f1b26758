"""Which of PEFT's features LSR and other methods support: every probe for every method, on tiny models.

Results are in benchmarks/results/capabilities.json; `make docs` writes docs/reference/capabilities.md from them.
"""

import json
from importlib.metadata import version

from benchmarks import figures
from benchmarks.capabilities import answers
from benchmarks.capabilities.subjects import METHODS
from pipeline.core import artifacts, console
from pipeline.core.errors import exit_on_error

RESULTS = figures.FOLDER / "capabilities.json"
PACKAGES = ("peft", "transformers")


def main() -> None:
    """Probe all methods and write their answers.

    Raises:
        SystemExit: with code 130 after Ctrl-C.
    """
    with exit_on_error("stopped; nothing is written"):
        methods = console.track(METHODS, "capabilities", len(METHODS), "methods")
        columns = {method: answers.column(method) for method in methods}
        found = {"versions": {package: version(package) for package in PACKAGES}, "methods": columns}
        with artifacts.replacing(RESULTS) as temporary:
            temporary.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        counts = [sum(text == answers.HAS for text in column.values()) for column in columns.values()]
        console.table("capabilities: probes that pass", list(METHODS), [counts])


if __name__ == "__main__":
    main()
