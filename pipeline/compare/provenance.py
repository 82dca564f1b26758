"""Where records come from: commits, versions, hardware and dates."""

from collections.abc import Iterable

from pipeline.arena.record import Record

ALIKE = ("commit", "torch", "transformers", "peft", "cpu")  # of which one comparison should have one each


def provenance(records: Iterable[Record]) -> dict[str, list[str]]:
    """Return all values of what the records say of their making, by its name; of dates the first and the last."""
    found: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.made.items():
            found.setdefault(name, set()).add(value)
    listed = {name: sorted(values) for name, values in sorted(found.items())}
    if dates := listed.get("date"):
        listed["date"] = sorted({dates[0], dates[-1]})
    return listed


def mixed(made: dict[str, list[str]]) -> list[str]:
    """Return a line for each thing of which records of one comparison have several."""
    return [
        f"records are of {len(made[name])} {name}s: {', '.join(made[name])}"
        for name in ALIKE
        if len(made.get(name, ())) > 1
    ]
