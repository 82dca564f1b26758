"""The schema of task.json, the task info, with limits on its fields.

An adapter may be untrusted, and every answer repeats the names of its labels. So each field has a limit, which all
readers and writers of the file check here.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lsr_onnx.errors import HALVES, InputError, shortened
from lsr_onnx.folder import TASK, read_json

Fields = Mapping[str, Any]
Message = Mapping[str, str]  # role and content

NO_TEMPLATE = "none"  # value of `template` that stands for no chat template: a prompt is its text
ROLES = ("system", "user", "assistant")  # roles of messages
TENANTS = "tenants"  # key that replaces `labels`: names of labels by tenant
# Problem types of transformers.
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
LONGEST_NAME = 200  # characters of a label, a tenant or the column of tenants
MAX_LABELS = 10_000  # labels per adapter
MAX_LABEL_BYTES = 64_000  # limit to all labels of an adapter together, in UTF-8
MAX_TENANTS = 100_000  # tenants per adapter
# A temperature that a head was divided by: beyond these, probabilities are all alike, or all 0 and 1.
MIN_TEMPERATURE = 0.1
MAX_TEMPERATURE = 10.0
MAX_STOP_TOKENS = 16  # tokens that end an answer
LARGEST = 2**31 - 1  # number of a token, or of tokens
# Characters of a chat template, or of a template of texts; chat templates of published models have up to some 20,000.
LONGEST_TEMPLATE = 100_000
FORMER_NAMES = {"ends": "stop_token_ids"}  # names that fields have in files of earlier versions
MAX_BYTES = 2**20  # limit to the file next to graphs
MAX_OTHER_BYTES = 4_000  # limit to all unknown fields together, as JSON


def validate_task_info(task_info: Any, where: object) -> dict[str, Any]:
    """Validate task info, and return it with present names of fields.

    Raises:
        InputError: if it is not an object, or a field has a wrong type or exceeds its limit; names the place, the
            field, and what is allowed.
    """
    if not isinstance(task_info, dict):
        raise InputError(f"{where}: {TASK}: must be an object, got {shortened(task_info)}")
    for former, present in FORMER_NAMES.items():
        if former in task_info:
            raise InputError(f"{where}: {TASK}: {former} is now called {present}; rename it in the file")
    for field, check in CHECKS.items():
        value = task_info.get(field)
        if value is None:
            continue
        try:
            check(value)
        except ValueError as error:
            raise InputError(f"{where}: {TASK}: {field} {error}") from None
    thresholds = task_info.get("thresholds") or []
    if thresholds and len(thresholds) != len(task_info.get("labels") or ()):
        raise InputError(f"{where}: {TASK}: thresholds must be one for each label, got {shortened(thresholds)}")
    if task_info.get("threshold") is not None and (len(task_info.get("labels") or ()) != 2 or thresholds):
        raise InputError(f"{where}: {TASK}: threshold needs two labels, one of which is the answer")
    _check_temperatures_count(task_info, where)
    _check_others({field: value for field, value in task_info.items() if field not in CHECKS}, where)
    return task_info


def read_task_of_graphs(folder: Path) -> dict[str, Any]:
    """Read the task info of the graphs of a single adapter.

    Raises:
        InputError: as `validate_task_info`; if the file is too large or is not JSON.
    """
    return validate_task_info(read_json(folder / TASK, MAX_BYTES), folder)


def check_stop_tokens(task_info: Fields | None, vocabulary: int | None) -> None:
    """Check that the stop tokens are in a base model's vocabulary (its size; None: not a language model).

    Raises:
        ValueError: if one is not; names the first.
    """
    for token in (task_info or {}).get("stop_token_ids") or ():
        if vocabulary is not None and token >= vocabulary:
            raise ValueError(
                f"{TASK}: stop_token_ids has token {token}; the base model has tokens from 0 to {vocabulary - 1}"
            )


def _check_temperatures_count(task_info: Fields, where: object) -> None:
    temperatures = task_info.get("temperatures") or []
    owners = task_info.get(TENANTS) or task_info.get("labels") or []
    if len(temperatures) not in (0, 1, len(owners)):
        needed = "one for all, or one for each label or tenant"
        raise InputError(f"{where}: {TASK}: temperatures must be {needed}, got {shortened(temperatures)}")


def _check_others(fields: Fields, where: object) -> None:
    # Fields of other programs are kept, but nothing here reads them, so they need little room.
    place = f"{where}: {TASK}: {shortened(list(fields))}"
    try:
        size = len(json.dumps(fields))
    except (TypeError, ValueError, RecursionError):
        raise InputError(f"{place} hold something that is not JSON") from None
    if size > MAX_OTHER_BYTES:
        reason = f"{size:,} bytes in fields that nothing reads; at most {MAX_OTHER_BYTES:,} are allowed"
        raise InputError(f"{place}: {reason}")


def are_names(value: Any) -> bool:
    """Return whether a value is a list of names."""
    return _is_list(value, lambda name: isinstance(name, str))


def _is_list(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


def _is_probability(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _check_name(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"must be a name, got {shortened(value)}")
    _check_each([value])


def _check_each(names: Iterable[str], longest: int = LONGEST_NAME) -> None:
    for name in names:
        if len(name) > longest:
            most = f"at most {longest:,} are allowed"
            raise ValueError(f"has {shortened(name)} of {len(name):,} characters; {most}")
        if HALVES.search(name):
            raise ValueError(f"has {shortened(name)}, which contains a lone surrogate (invalid Unicode)")


def _check_count(values: Collection[Any], most: int, what: str) -> None:
    if len(values) > most:
        raise ValueError(f"has {len(values):,} {what}; at most {most:,} are allowed")


def _check_names(value: Any) -> None:
    if not are_names(value):
        raise ValueError(f"must be a list of names, or null, got {shortened(value)}")
    check_label_names(value)


def check_label_names(names: Collection[str]) -> Collection[str]:
    """Check that the names of labels are within the limits of an adapter, and return them.

    Raises:
        ValueError: if there are too many, or they are too long or contain lone surrogates.
    """
    _check_count(names, MAX_LABELS, "names")
    _check_each(names)
    size = sum(len(name.encode()) for name in names)
    if size > MAX_LABEL_BYTES:
        most = f"at most {MAX_LABEL_BYTES:,} are allowed"
        raise ValueError(f"has names of {size:,} bytes together, in UTF-8; {most}")
    return names


def _check_tenants(value: Any) -> None:
    if not isinstance(value, dict) or not all(labels is None or are_names(labels) for labels in value.values()):
        needed = "an object with a list of names, or null, for each"
        raise ValueError(f"must be {needed}, got {shortened(value)}")
    _check_count(value, MAX_TENANTS, "tenants")
    _check_each(value)
    for name, labels in value.items():
        try:
            _check_names(labels or [])
        except ValueError as error:
            raise ValueError(f"of {shortened(name)} {error}") from None


def _check_threshold(value: Any) -> None:
    if not _is_probability(value):
        raise ValueError(f"must be a probability, got {shortened(value)}")


def _check_thresholds(value: Any) -> None:
    if not _is_list(value, _is_probability):
        raise ValueError(f"must be a list of probabilities, got {shortened(value)}")


def _is_temperature(value: Any) -> bool:
    return type(value) in (int, float) and MIN_TEMPERATURE <= value <= MAX_TEMPERATURE


def _check_temperatures(value: Any) -> None:
    if not _is_list(value, _is_temperature):
        allowed = f"numbers from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        raise ValueError(f"must be a list of {allowed}, got {shortened(value)}")
    _check_count(value, MAX_TENANTS, "numbers")


def _check_length(value: Any) -> None:
    if not _is_token(value) or value == 0:
        raise ValueError(f"must be a positive whole number of at most {LARGEST:,}, got {shortened(value)}")


def _check_columns(value: Any) -> None:
    if not isinstance(value, list) or len(value) not in (1, 2):
        raise ValueError(f"must be a list of one, or of two for pairs, got {shortened(value)}")
    if not are_names(value):
        raise ValueError(f"must be a list of names, or null, got {shortened(value)}")
    _check_each(value, LONGEST_TEMPLATE)


def _check_template(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"must be a text in Jinja, or none, got {shortened(value)}")
    _check_count(value, LONGEST_TEMPLATE, "characters")


def _check_tokens(value: Any) -> None:
    if not _is_list(value, _is_token):
        raise ValueError(f"must be a list of tokens by number, got {shortened(value)}")
    _check_count(value, MAX_STOP_TOKENS, "tokens")


# Functions by field, each of which raises a ValueError with what is wrong with a value that is not null.
CHECKS: dict[str, Callable[[Any], None]] = {
    "kind": _check_name,
    "labels": _check_names,
    TENANTS: _check_tenants,
    "tenant": _check_name,
    "thresholds": _check_thresholds,
    "threshold": _check_threshold,
    "temperatures": _check_temperatures,
    "max_length": _check_length,
    "columns": _check_columns,
    "template": _check_template,
    "stop_token_ids": _check_tokens,
}
