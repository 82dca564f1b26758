"""Counts the trials of each test of the corpus, for the table that tests/conftest.py prints."""

from collections import Counter

import pytest


@pytest.fixture(autouse=True)
def trials(request, record_property):
    """A counter, whose `trials` a test counts that makes more than one."""
    counted = Counter()
    yield counted
    record_property(
        "trials", (request.node.originalname.removeprefix("test_").replace("_", " "), counted["trials"] or 1)
    )
