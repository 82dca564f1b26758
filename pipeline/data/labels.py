"""Convert the values of a label column to class indices or numbers."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.errors import nearest
from pipeline.data.texts import refuse
from pipeline.params.dataset_row import Classes, Number, Threshold

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?", re.ASCII)
HIDDEN = -1  # GLUE's placeholder in the label column of a test split
IS_HIDDEN = "the label is -1: the labels of this split are hidden; choose another split"


def read(values: pd.Series, label: Classes | Threshold | Number) -> pd.Series:
    """Return the class indices or numbers of values, none of them missing; NaN within the margin of a threshold.

    Raises:
        ValueError: for a value that the label does not allow; names its line or row.
    """
    if isinstance(label, Classes):
        return _classes(values, label)
    numbers = values.map(_number).astype(float)
    refuse(values, ~np.isfinite(numbers), lambda value: f"label {value!r} is not a finite number")
    if isinstance(label, Threshold):
        return (numbers > label.above).astype(float).mask((numbers - label.above).abs() < label.margin)
    if label.low > HIDDEN:
        refuse(values, numbers == HIDDEN, IS_HIDDEN)
    scale = f"the row's range, {label.low:g} to {label.high:g}"
    refuse(numbers, (numbers < label.low) | (numbers > label.high), lambda value: f"label {value:g} is not in {scale}")
    return numbers


def _classes(values: pd.Series, label: Classes) -> pd.Series:
    known: dict[str, int] = {}
    for number, name in enumerate(label.names):
        known.setdefault(plain_text(name), number)
    allowed = list(label.names)
    # Names such as "1" ... "5" are values in the file, so then a position in the list is not accepted as well.
    if not any(name.lstrip("-").isdecimal() for name in known):
        known |= {str(number): number for number in range(len(label.names))}
        allowed += map(str, range(len(label.names)))
    plain = values.map(plain_text)
    numbers = plain.map(known)
    if str(HIDDEN) not in known:
        refuse(values, plain == str(HIDDEN), IS_HIDDEN)

    def not_a_class(value: object) -> str:
        return f"label {value!r} is not a class; allowed: {', '.join(allowed)}{nearest(value, label.names)}"

    refuse(values, numbers.isna(), not_a_class)
    return numbers


def plain_text(value: object) -> str:
    """Return the same text for True, 1, 1.0 and the text 1.0, which depend on the file format. 01 remains as it is."""
    if isinstance(value, int | float) and value == value // 1:
        return str(int(value))
    text = str(value)
    return str(int(text.partition(".")[0])) if WHOLE.fullmatch(text) else text


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
