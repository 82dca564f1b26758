"""The Trainer's look at the validation split: merged where that is exact, and nothing is left of it."""

import copy

import peft
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

import lsr
from pipeline.training.run import MergingTrainer
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
