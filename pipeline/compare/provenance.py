"""The origin of records: commits, versions, hardware and dates."""

from collections.abc import Iterable

from pipeline.arena.record import Record

ALIKE = ("commit", "torch", "transformers", "peft", "cpu")  # which should be the same in all records of a comparison


def provenance(records: Iterable[Record]) -> dict[str, list[str]]:
    """Return all values of each field of the records' `made`, by name; of dates only the first and the last."""
    found: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.made.items():
            found.setdefault(name, set()).add(value)
    listed = {name: sorted(values) for name, values in sorted(found.items())}
    if dates := listed.get("date"):
        listed["date"] = sorted({dates[0], dates[-1]})
    return listed


def mixed(made: dict[str, list[str]]) -> list[str]:
    """Return a note for each field that differs between the records of a comparison."""
    return [
        f"records are from {len(made[name])} {name}s: {', '.join(made[name])}"
        for name in ALIKE
        if len(made.get(name, ())) > 1
    ]
