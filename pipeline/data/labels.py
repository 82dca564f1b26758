"""Convert the values of a label column to class indices or numbers."""

import math
import re
from collections.abc import Callable
from typing import Any

from pipeline.core.errors import nearest
from pipeline.params.rows import Classes, Number, Threshold

Reader = Callable[[object], float | None]
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?", re.ASCII)
HIDDEN = "-1"  # GLUE's placeholder in the label column of a test split


def reader(label: Classes | Threshold | Number) -> Reader:
    """Return a function that converts a value, never a missing one, to a class (int) or a number (float).

    The function returns None for a value within the margin of a threshold, and raises ValueError for a value that the
    label does not allow.
    """
    match label:
        case Classes():
            return _class_reader(label)
        case Threshold():
            return lambda value: _side(_number(value), label)
        case Number():
            return lambda value: _within(_number(value), label)


def _class_reader(label: Classes) -> Reader:
    classes: dict[object, int] = {name: number for number, name in enumerate(label.names)}
    # Names such as "1" ... "5" are values in the file, so then a position in the list is not accepted as well.
    if not any(name.lstrip("-").isdecimal() for name in map(_plain, label.names)):
        classes |= {str(number): number for number in range(len(label.names))}
    plain: dict[object, int] = {}
    for key, number in classes.items():
        plain.setdefault(_plain(key), number)

    def read(value: object) -> int:
        key = _plain(value)
        for known, name in ((classes, value), (plain, key)):  # 1 and 1.0 may both be names, and then they differ
            if isinstance(name, str) and name in known:
                return known[name]
        if key == HIDDEN:
            raise ValueError("the label is -1: the labels of this split are hidden; choose another split")
        allowed = ", ".join(str(key) for key in classes)
        raise ValueError(f"label {value!r} is not a class; allowed: {allowed}{nearest(value, label.names)}")

    return read


def _plain(value: object) -> str:
    """Normalize a value: True, 1.0 and the text 1.0 all mean class 1, whatever the file format. 01 remains a text."""
    if isinstance(value, int | float) and value == value // 1:
        return str(int(value))
    text = str(value)
    return str(int(text.partition(".")[0])) if WHOLE.fullmatch(text) else text


def _side(number: float, label: Threshold) -> int | None:
    return None if abs(number - label.above) < label.margin else int(number > label.above)


def _within(number: float, label: Number) -> float:
    if number == float(HIDDEN) < label.low:
        raise ValueError("the label is -1: the labels of this split are hidden; choose another split")
    if not label.low <= number <= label.high:
        raise ValueError(f"label {number:g} is not in the row's range, {label.low:g} to {label.high:g}")
    return number


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"label {value!r} is not a finite number")
    return number
