import pytest

from tests.lsr import fits


@pytest.fixture(scope="module")
def remembered_fits():
    """For files that are about what becomes of factors, and not about the fit that they began with."""
    with fits.remembered():
        yield
