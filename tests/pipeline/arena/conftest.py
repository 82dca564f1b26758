import pytest

from tests import workspace
from tests.pipeline.arena import small


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The workspace of the other tests: a tiny RoBERTa and made-up sentences."""
    return workspace.make(tmp_path_factory.mktemp("arena") / "workspace")


@pytest.fixture
def arena(folder, monkeypatch):
    """The preset `small` in the workspace, which is the working directory."""
    monkeypatch.chdir(folder)
    small.use()
    return folder
