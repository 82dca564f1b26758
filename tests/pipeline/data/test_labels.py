"""A label means the same whether the file has types, as JSON and Parquet, or texts alone, as CSV."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import labels
from pipeline.params.rows import Classes

NAMES = (("no", "yes"), ("0", "1"), ("1", "2"), ("0.0", "1.0"), ("-1", "1"), ("1", "01"), ("1", "1.0"))


def read(names, value):
    try:
        return labels.reader(Classes(column="label", names=names))(value)
    except ValueError as error:
        return str(error).partition(" ")[0]


@given(names=st.sampled_from(NAMES), number=st.integers(-3, 3) | st.sampled_from([0.5, -0.0, 1e16, 10**17]))
def test_a_number_is_read_as_its_text_is(names, number):
    assert read(names, float(number)) == read(names, str(float(number))) or names == ("1", "1.0")
    assert read(names, int(number)) == read(names, str(int(number)))


@pytest.mark.parametrize(
    ("names", "value", "number"),
    [
        (("no", "yes"), "1.0", 1),
        (("no", "yes"), 1.0, 1),
        (("no", "yes"), True, 1),
        (("1", "2"), "2.00", 1),
        (("1.0", "2.0"), "2", 1),
        (("1.0", "2.0"), 2, 1),
        (("1", "01"), "01", 1),
        (("1", "1.0"), "1.0", 1),
        (("1", "1.0"), "1", 0),
    ],
)
def test_what_a_label_means(names, value, number):
    assert read(names, value) == number


@pytest.mark.parametrize("value", ["-1", "-1.0", -1, -1.0])
def test_hidden_labels_are_told_in_each_format(value):
    with pytest.raises(ValueError, match="are hidden"):
        labels.reader(Classes(column="label", names=("no", "yes")))(value)


@pytest.mark.parametrize("value", ["01", "1.5", "1e0", " 1", "", "x", "1.0.0", "1" * 5000, float("nan"), float("inf")])
def test_what_is_no_class_is_refused(value):
    with pytest.raises(ValueError, match="is not a class"):
        labels.reader(Classes(column="label", names=("no", "yes")))(value)
