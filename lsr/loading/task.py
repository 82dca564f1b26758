"""The schema of task.json, the note about an adapter's task: which fields it may have, and how much they may hold.

An adapter may come from anywhere, and every answer repeats the names of its labels. So each field has a limit, and all
readers and writers of the file check it here.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from lsr.tuner.files import TASK
from lsr.tuner.mistakes import HALVES, InputError, shortened

TENANTS = "tenants"  # by the name of each tenant the names of its labels, in place of `labels` of all
LONGEST_NAME = 200  # characters of a label, a tenant or a column
MOST_LABELS = 10_000  # labels per adapter
MOST_LABEL_BYTES = 64_000  # of the labels of an adapter together, in UTF-8
MOST_TENANTS = 100_000  # tenants per adapter
MOST_ENDS = 16  # tokens that end an answer
LARGEST = 2**31 - 1  # number of a token, or of tokens
LONGEST_TEMPLATE = 100_000  # characters of a chat template; those of published models have up to some 20,000
MOST_OTHER_BYTES = 4_000  # of all fields together that no reader knows, as JSON


def checked_note(note: Any, where: object) -> dict[str, Any]:
    """Return a note about an adapter's task.

    Raises:
        InputError: if it is not an object, or a field holds something else, or more, than it may; names the place, the
            field, and what is allowed.
    """
    if not isinstance(note, dict):
        raise InputError(f"{where}: {TASK}: must be an object, got {shortened(note)}")
    for field, problem_of in PROBLEMS.items():
        value = note.get(field)
        problem = None if value is None else problem_of(value)
        if problem is not None:
            raise InputError(f"{where}: {TASK}: {field} {problem}")
    if note.get("thresholds") and len(note["thresholds"]) != len(note.get("labels") or ()):
        needed = f"must be one for each label, got {shortened(note['thresholds'])}"
        raise InputError(f"{where}: {TASK}: thresholds {needed}")
    _check_others({field: value for field, value in note.items() if field not in PROBLEMS}, where)
    return note


def check_ends(note: Mapping[str, Any] | None, vocabulary: int | None) -> None:
    """Check that the tokens that end an answer are in the vocabulary of a base model; None: it has none.

    Raises:
        ValueError: names the first that is not.
    """
    for token in (note or {}).get("ends") or ():
        if vocabulary is not None and token >= vocabulary:
            raise ValueError(f"{TASK}: ends has token {token}; the base model has tokens from 0 to {vocabulary - 1}")


def _check_others(fields: Mapping[str, Any], where: object) -> None:
    # Fields of other programs are kept, but nothing here reads them, so they need little room.
    try:
        size = len(json.dumps(fields).encode())
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{where}: {TASK}: {shortened(list(fields))} hold something that is not JSON") from None
    if size > MOST_OTHER_BYTES:
        reason = f"{size:,} bytes in fields that nothing reads; at most {MOST_OTHER_BYTES:,} are allowed"
        raise InputError(f"{where}: {TASK}: {shortened(list(fields))}: {reason}")


def are_names(value: Any) -> bool:
    """Return whether a value is a list of names."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _problem_of_name(value: Any) -> str | None:
    return _problem_in([value]) if isinstance(value, str) else f"must be a name, got {shortened(value)}"


def _problem_in(names: Iterable[str]) -> str | None:
    for name in names:
        if len(name) > LONGEST_NAME:
            return f"has {shortened(name)} of {len(name):,} characters; at most {LONGEST_NAME} are allowed"
        if HALVES.search(name):
            return f"has {shortened(name)}, which holds half a character"
    return None


def _problem_of_many(names: Collection[str], most: int, what: str) -> str | None:
    if len(names) > most:
        return f"has {len(names):,} {what}; at most {most:,} are allowed"
    return _problem_in(names)


def _problem_of_names(value: Any) -> str | None:
    if not are_names(value):
        return f"must be a list of names, or null, got {shortened(value)}"
    problem = _problem_of_many(value, MOST_LABELS, "names")
    if problem is not None:
        return problem
    size = sum(len(name.encode()) for name in value)
    if size > MOST_LABEL_BYTES:
        return f"has names of {size:,} bytes together, in UTF-8; at most {MOST_LABEL_BYTES:,} are allowed"
    return None


def _problem_of_tenants(value: Any) -> str | None:
    if not isinstance(value, dict) or not all(labels is None or are_names(labels) for labels in value.values()):
        return f"must be an object with a list of names, or null, for each, got {shortened(value)}"
    problem = _problem_of_many(value, MOST_TENANTS, "tenants")
    if problem is not None:
        return problem
    for name, labels in value.items():
        problem = None if labels is None else _problem_of_names(labels)
        if problem is not None:
            return f"of {shortened(name)} {problem}"
    return None


def _problem_of_thresholds(value: Any) -> str | None:
    fits = isinstance(value, list) and all(type(share) in (int, float) and 0 <= share <= 1 for share in value)
    return None if fits else f"must be a list of probabilities, got {shortened(value)}"


def _problem_of_length(value: Any) -> str | None:
    fits = type(value) is int and 0 < value <= LARGEST
    return None if fits else f"must be a positive whole number of at most {LARGEST:,}, got {shortened(value)}"


def _problem_of_columns(value: Any) -> str | None:
    if not isinstance(value, list) or len(value) not in (1, 2):
        return f"must be a list of one, or of two for pairs, got {shortened(value)}"
    return _problem_of_names(value)


def _problem_of_template(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"must be a text in Jinja, or none, got {shortened(value)}"
    if len(value) > LONGEST_TEMPLATE:
        return f"has {len(value):,} characters; at most {LONGEST_TEMPLATE:,} are allowed"
    return None


def _problem_of_ends(value: Any) -> str | None:
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token <= LARGEST for token in value):
        return f"must be a list of tokens by number, got {shortened(value)}"
    if len(value) > MOST_ENDS:
        return f"has {len(value):,} tokens; at most {MOST_ENDS} are allowed"
    return None


# By field: a function that returns what is wrong with a value that is not null, or None if nothing is.
PROBLEMS: dict[str, Callable[[Any], str | None]] = {
    "kind": _problem_of_name,
    "labels": _problem_of_names,
    TENANTS: _problem_of_tenants,
    "tenant": _problem_of_name,
    "thresholds": _problem_of_thresholds,
    "max_length": _problem_of_length,
    "columns": _problem_of_columns,
    "template": _problem_of_template,
    "ends": _problem_of_ends,
}
