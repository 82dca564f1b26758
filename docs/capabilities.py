"""Write docs/reference/capabilities.md: which of PEFT's behaviors LSR and other methods have.

`make docs`, or `python docs/capabilities.py`, writes what `make bench-capabilities` found.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "reference" / "capabilities.md"
RESULTS = Path(__file__).parent.parent / "benchmarks/results/capabilities.json"
HAS = "yes"


def page(results: Mapping[str, Any]) -> str:
    """Return the Markdown page: a table, followed by the numbered reasons."""
    versions, columns = results["versions"], results["methods"]
    behaviors = list(next(iter(columns.values())))
    reasons = list(dict.fromkeys(text for name in behaviors for c in columns.values() if (text := c[name]) != HAS))
    lines = [
        "# What works in PEFT",
        "",
        "Each row is a probe that runs with every method (`make bench-capabilities`, with "
        f"peft {versions['peft']} and transformers {versions['transformers']}). `yes` means that it passes. The "
        "number after `no` refers to the reasons below: the error message or what the probe found. A test checks LSR's "
        "column.",
        "",
        f"| behavior | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name in behaviors:
        cells = [c[name] if c[name] == HAS else f"no [{reasons.index(c[name]) + 1}]" for c in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counts = [str(sum(text == HAS for text in c.values())) for c in columns.values()]
    lines += [f"| of {len(behaviors)} | {' | '.join(counts)} |", ""]
    lines += [f"{number}. {text}" for number, text in enumerate(reasons, start=1)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
