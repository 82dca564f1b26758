"""The Trainer's look at the validation split: merged where that is exact, and nothing is left of it."""

import copy
from contextlib import nullcontext

import peft
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

import lsr
from lsr.tuner.linear import LsrLinear
from pipeline.training import rounded
from pipeline.training.trainer import MergingTrainer
from tests.capabilities.models import tiny

EXAMPLES = Dataset.from_list(
    [{"input_ids": [2, 5, 7, 3], "attention_mask": [1, 1, 1, 1], "labels": i % 3} for i in range(6)]
)


def model(method):
    configs = {
        "lsr": lsr.LsrConfig(init_weights=False, separation_rank=2, target_modules=["query"], task_type="SEQ_CLS"),
        "lora": peft.LoraConfig(init_lora_weights=False, target_modules=["query"], task_type="SEQ_CLS"),
    }
    torch.manual_seed(0)
    return peft.get_peft_model(tiny("bert"), configs[method])


def evaluated(kind, adapted, folder, **arguments):
    """The loss, and whether an adapted layer was merged when it was called."""
    seen = []
    layer = next(module for module in adapted.modules() if getattr(module, "merged", None) is not None)
    with_hook = layer.register_forward_pre_hook(lambda module, _: seen.append(module.merged))
    fixed = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **arguments)
    loss = kind(model=adapted, args=fixed, eval_dataset=EXAMPLES).evaluate()["eval_loss"]
    with_hook.remove()
    return loss, set(seen)


@pytest.mark.parametrize(
    ("method", "arguments", "is_merged"),
    [("lsr", {}, True), ("lsr", {"bf16": True}, False), ("lora", {}, False)],
)
def test_merges_for_evaluation_where_that_is_exact(tmp_path, method, arguments, is_merged):
    adapted = model(method)
    before = copy.deepcopy(adapted.state_dict())
    loss, merged = evaluated(MergingTrainer, adapted, tmp_path, **arguments)
    beside, _ = evaluated(Trainer, adapted, tmp_path, **arguments)
    assert merged == {is_merged}
    assert loss == pytest.approx(beside, rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def test_puts_the_weights_back_when_evaluation_fails(tmp_path):
    adapted = model("lsr")
    before = copy.deepcopy(adapted.state_dict())
    broken = EXAMPLES.map(lambda row: {"input_ids": [10**6] * 4})
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    with pytest.raises(IndexError):
        MergingTrainer(model=adapted, args=arguments, eval_dataset=broken).evaluate()
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def trained(folder, method, **arguments):
    """The Trainer after two epochs."""
    chosen = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=2,
        num_train_epochs=2,
        save_strategy="no",
        **arguments,
    )
    trainer = MergingTrainer(model=model(method), args=chosen, train_dataset=EXAMPLES, eval_dataset=EXAMPLES)
    trainer.train()
    return trainer


def test_rounds_frozen_weights_once_a_training_and_trains_the_same(tmp_path, monkeypatch):
    def values(folder):
        return trained(folder, "lsr", bf16=True, eval_strategy="epoch").model.state_dict()

    seen = []
    rounding = rounded._only_multiplied
    monkeypatch.setattr(rounded, "_only_multiplied", lambda model: seen.append(1) or rounding(model))
    once = values(tmp_path / "once")
    assert len(seen) == 1
    monkeypatch.setattr(rounded.RoundedWeights, "applied", lambda _: nullcontext())
    always = values(tmp_path / "always")
    assert all(torch.equal(value, always[name]) for name, value in once.items())
    assert any(not torch.equal(value, once[name]) for name, value in model("lsr").state_dict().items())


def test_rounds_again_what_holds_something_else_by_now():
    adapted = model("lsr")
    weight = next(module for module in adapted.modules() if isinstance(module, LsrLinear)).base_layer.weight
    weights = rounded.RoundedWeights(adapted, torch.bfloat16)
    with weights.applied():
        assert weight.dtype is torch.bfloat16
    weight.data = weight + 1  # as a start that is folded into the weight, after an evaluation
    with weights.applied():
        found = weight.detach().clone()
    assert torch.equal(found, weight.bfloat16())
