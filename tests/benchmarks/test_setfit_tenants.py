"""SetFit reads the texts that the methods of the benchmark read."""

import importlib.util

import pytest

from benchmarks import setfit_tenants
from pipeline.arena import task_tokens
from pipeline.data import base_models
from tests import workspace
from tests.pipeline.arena import small


def test_texts_have_the_tokens_that_the_methods_read(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path))
    small.use()
    training = small.training("ratings: LoRA r=1")
    tokenizer = base_models.load_tokenizer(training.view.base_model)
    for split in task_tokens.splits(training).values():
        texts = setfit_tenants.texts_of(training, split)
        assert tokenizer(texts)["input_ids"] == [*split["input_ids"]]
        assert len(set(texts)) > 1


@pytest.mark.skipif(importlib.util.find_spec("setfit") is not None, reason="it is installed here")
def test_without_setfit_a_line_says_how_to_install_it(capsys):
    with pytest.raises(SystemExit) as end:
        setfit_tenants.main(["alike-20"])
    assert end.value.code
    assert capsys.readouterr().err.strip() == "setfit is needed: pip install setfit==1.2.0"
