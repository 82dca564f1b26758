import shutil

import pytest

from tests.kit import edit
from tests.lsr.saved import FORMS, save, save_with_base


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """An adapter of BERT's with its base, which nobody changes."""
    folder = tmp_path_factory.mktemp("originals")
    save_with_base(folder)
    return folder


@pytest.fixture
def beside(originals, tmp_path, monkeypatch):
    """A working directory with adapter/ and base/."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "adapter/adapter_config.json", base_model_name_or_path="./base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A function that returns a folder of three adapters of a form, which nobody changes."""
    done = {}

    def of(form):
        if form not in done:
            model, fields = FORMS[form]
            done[form] = tmp_path_factory.mktemp("adapters")
            for seed, name in enumerate("abc"):
                save(done[form] / name, model, seed, **fields)
        return done[form]

    return of
