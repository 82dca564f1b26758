"""Predictions and labels, drawn or made."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

OF_TWO = ("accuracy", "f1", "macro_f1", "matthews_correlation")
OF_NUMBERS = ("pearson", "spearman")
ROWS = st.integers(1, 40)


@st.composite
def class_pairs(draw, most=5):
    """Predictions and labels of up to 40 examples."""
    highest, rows = draw(st.integers(2, most)) - 1, draw(ROWS)
    return tuple(draw(arrays.arrays(np.int64, rows, elements=st.integers(0, highest))) for _ in range(2))


def two_classes(rows, accuracy=0.8, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    return np.where(random.random(rows) < accuracy, labels, 1 - labels), labels


def noisy_numbers(rows, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 26, rows) / 5
    return labels + random.normal(size=rows), labels
