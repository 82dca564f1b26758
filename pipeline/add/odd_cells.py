"""Find cells that are not numbers in columns of numbers."""

import pandas as pd

from lsr_onnx.errors import shortened
from pipeline.tasks.cells import is_missing

MOST = 0.8  # share of numbers among the cells of a column that looks like numbers


def describe_odd_cell(column: pd.Series) -> str:
    """Describe the first cell that is not a number in a column that looks like numbers; empty for other columns."""
    cells = pd.Series(list(column), dtype=object)  # numbered from 0
    are_missing = cells.map(is_missing).astype(bool)
    held = cells[~are_missing]
    are_numbers = pd.to_numeric(held, errors="coerce").notna()
    odd = held[~are_numbers]
    if odd.empty or are_numbers.mean() < MOST:
        return ""
    row = odd.index[0] + 1
    value = shortened(odd.iloc[0])
    return f"looks like numbers, but row {row:,} has {value}"
