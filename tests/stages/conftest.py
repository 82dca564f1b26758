import shutil

import pytest

from tests import workspace
from tests.stages.running import EPOCHS, FACTORIZE, TOKENIZE, TRAIN, run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A workspace in which a model that drops out has been trained for EPOCHS; nobody changes it."""
    folder = workspace.make(
        tmp_path_factory.mktemp("undisturbed"),
        train={"epochs": EPOCHS},
        lsr={"dropout": 0.1, "learning_rate": 0.05},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        run(TOKENIZE, FACTORIZE, TRAIN)
    return folder


@pytest.fixture(scope="module")
def copied(undisturbed, tmp_path_factory):
    """A copy of it for the tests of a file."""
    return shutil.copytree(undisturbed, tmp_path_factory.mktemp("copied"), dirs_exist_ok=True)
