"""What is warned of once: more parameters than LoRA, examples that never came, and a PEFT that is not tried."""

import copy
import warnings

import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

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


class TestSize:
    def test_more_parameters_than_lora_of_the_rank_are_warned_of_once(self):
        lines = said(lambda: made(rank_shape=(2, 2), separation_rank=4, target_modules=["query"]), "more parameters")
        # 24 = 6 x 4: 4 terms of 2 * (6 + 4) in A and in B, beside 4 * (24 + 24)
        assert lines == []
        lines = said(lambda: made(rank_shape=(2, 2), separation_rank=5, target_modules=["query"]), "more parameters")
        (line,) = lines
        assert "2 layers have more parameters than LoRA of their rank" in line
        assert "query the most: 200, and LoRA r = 4 has 192; choose a smaller separation_rank" in line

    @pytest.mark.parametrize("fields", [{"rank_shape": (4,)}, {"rank_shape": (4,), "train": "all"}])
    def test_as_many_factors_are_fine_and_a_core_is_no_factor(self, fields):
        assert said(lambda: made(**fields, target_modules=["query"]), "more parameters") == []


class TestExamples:
    def test_training_without_them_is_warned_of_once(self):
        model = made(**GRADIENT).train()
        assert len(said(lambda: model(input_ids=IDS), "has been given none")) == 1
        assert said(lambda: model(input_ids=IDS), "has been given none") == []

    def test_evaluation_is_no_training(self):
        model = made(**GRADIENT).eval()
        assert said(lambda: model(input_ids=IDS), "given none") == []
        assert len(said(lambda: model.train()(input_ids=IDS), "given none")) == 1

    def test_an_adapter_that_has_started_says_nothing(self):
        model = made(**GRADIENT)
        batch = {"input_ids": IDS, "labels": torch.tensor([0, 1])}
        assert said(lambda: lsr.start_from_examples(model, [batch]), "given none") == []
        assert said(lambda: model.train()(input_ids=IDS), "given none") == []

    def test_an_adapter_that_was_loaded_into_says_nothing(self, tmp_path):
        made(**GRADIENT).save_pretrained(tmp_path)
        model = made(**GRADIENT)
        set_peft_model_state_dict(model, load_file(tmp_path / "adapter_model.safetensors"))
        assert said(lambda: model.train()(input_ids=IDS), "given none") == []

    def test_a_copy_reminds_by_itself(self):
        model = copy.deepcopy(made(**GRADIENT)).train()
        assert len(said(lambda: model(input_ids=IDS), "given none")) == 1
        assert said(lambda: model(input_ids=IDS), "given none") == []


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

    @pytest.mark.parametrize("version", ["0.21.0", "0.21.2"])
    def test_one_between_says_nothing(self, version):
        assert said(lambda: check_peft(version), "peft") == []
