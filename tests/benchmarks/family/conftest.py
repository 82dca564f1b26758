from unittest import mock

import pytest

from benchmarks.family import experiment
from benchmarks.family.methods import METHODS
from tests.benchmarks.family import made_up


@pytest.fixture(autouse=True, scope="module")  # so that others see the real ones
def table():
    """Methods and rates of the tests' own."""
    with mock.patch.dict(METHODS, made_up.TABLE, clear=True), mock.patch.object(experiment, "GRID", made_up.GRID):
        yield
