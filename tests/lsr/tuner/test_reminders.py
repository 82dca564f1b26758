"""What is warned of once: examples that never came, and a PEFT that is not tried."""

import warnings

import pytest
import torch
from peft import get_peft_model

import lsr
from lsr import LsrConfig
from lsr.supported import check_peft
from tests.capabilities.models import tiny

GRADIENT = {"rank_shape": (2,), "train": "core", "init_weights": "gradient", "target_modules": ["query", "value"]}
IDS = torch.arange(12).reshape(2, 6)


def said(action, about):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        action()
    return [str(one.message) for one in found if about in str(one.message)]


def made(**fields):
    return get_peft_model(tiny("bert"), LsrConfig(**{"seed": 0, **fields}))


class TestExamples:
    def test_training_without_them_is_warned_of_once(self):
        model = made(**GRADIENT).train()
        assert len(said(lambda: model(input_ids=IDS), "has been given none")) == 1
        assert said(lambda: model(input_ids=IDS), "has been given none") == []

    def test_an_adapter_that_has_started_says_nothing(self):
        model = made(**GRADIENT)
        batch = {"input_ids": IDS, "labels": torch.tensor([0, 1])}
        assert said(lambda: lsr.start_from_examples(model, [batch]), "given none") == []
        assert said(lambda: model.train()(input_ids=IDS), "given none") == []


class TestPeft:
    @pytest.mark.parametrize("version", ["0.20.0", "0.9"])
    def test_an_older_one_is_refused_in_one_line(self, version):
        with pytest.raises(ImportError) as caught:
            check_peft(version)
        assert str(caught.value) == (
            f"lsr needs peft>=0.21,<0.22, and {version} is installed; install it with: pip install 'peft>=0.21,<0.22'"
        )

    @pytest.mark.parametrize("version", ["0.22.0.dev0", "1.0"])
    def test_a_newer_one_is_warned_of(self, version):
        with pytest.warns(UserWarning, match=f"tested with peft>=0.21,<0.22, and {version} is installed"):
            check_peft(version)
