"""What a user reads of another library's error."""

import pytest

from pipeline.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one \n two"), "one"),
        (ValueError(), "ValueError"),
        (KeyError(), "KeyError"),
        (OSError(" \n "), "OSError"),
    ],
)
def test_the_first_line_of_an_error_is_its_kind_where_it_says_nothing(error, line):
    assert first_line(error).strip() == line
