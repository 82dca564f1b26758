import pytest


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Processes for measurements set these for good."""
    for library in ("OMP", "MKL", "OPENBLAS"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")
