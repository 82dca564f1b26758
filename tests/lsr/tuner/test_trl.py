"""TRL's SFTTrainer fits an LSR adapter, where TRL is installed."""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lsr.tuner.linear import adapted_layers
from tests.capabilities.checks import is_factor
from tests.capabilities.models import VOCABULARY, logits, tiny
from tests.capabilities.subjects import Subject

trl = pytest.importorskip("trl", reason="trl is not installed")


def tokenizer():
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def test_it_trains_saves_and_loads(tmp_path):
    subject = Subject("llama-causal")
    arguments = trl.SFTConfig(
        str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=0.02,
        max_length=16,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
    )
    texts = Dataset.from_dict({"text": [f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(3, 19)]})
    trainer = trl.SFTTrainer(
        tiny(subject.model), arguments, train_dataset=texts, processing_class=tokenizer(), peft_config=subject.config()
    )
    trainer.train()
    model = trainer.model.eval()
    assert len(adapted_layers(model)) == 4
    assert all(parameter.any() for name, parameter in model.named_parameters() if is_factor(name))
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if not is_factor(name))
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(model))
