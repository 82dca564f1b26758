"""Adapters of which graphs are exported, and what plain transformers says of texts with them."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lsr.tuner.files import PREFIX, WEIGHTS
from tests import architectures, workspace
from tests.kit import write

LENGTH = 24  # tokens
TARGETS = {  # of LoRA, where PEFT's table has none or others
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn"],
    "modernbert": ["Wqkv"],
    "xlnet": ["layer_1"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
}
HEADS = {
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"],
    "xlnet": ["sequence_summary", "logits_proj"],
    "bert": ["classifier"],
    "roberta": ["classifier"],
}
SHOPS = {"acme": ["no", "yes"], "bolt": ["x", "y", "z"], "cast": ["no", "yes"]}
LABELS = [f"{shop}-{label}" for shop, labels in SHOPS.items() for label in labels]
EXPORT = ("export", "lora", "--base", "base", "--to", "onnx", "-o", "graph")
UNTRACED = {"xlnet"}  # by torch.export
QUICK = {"bert"}  # the others take some three seconds each
ARCHITECTURES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly)
    for name in architectures.PADDED
    if name not in UNTRACED
]
PREDICT = """
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "datasets", "lsr"])
from pipeline.predict.__main__ import main
main()
"""


def texts():
    """Texts of very different lengths, some with special tokens in them or at their end, which a file may hold."""
    short = "the cat"
    long = "the owl number 7 sleeps in the barn and the fox rests in the garden at night"
    marks = [form.format(token) for token in architectures.SPECIAL for form in ("the cat {}", "a {} b")]
    pairs = [text for *pair, _ in workspace.sentences(12) for text in pair]
    return list(dict.fromkeys([short, long, "x", *marks, *(text[: 8 + 5 * at] for at, text in enumerate(pairs))]))


def float32_base():
    return AutoModelForSequenceClassification.from_pretrained("base", num_labels=len(LABELS), dtype=torch.float32)


def save_lora(kind):
    """Save a LoRA of random values, as it may come from anybody, at `lora`, with a note of its labels."""
    torch.manual_seed(0)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=2,
        lora_alpha=4,
        target_modules=TARGETS.get(kind, ["q_proj", "v_proj"]),
        modules_to_save=HEADS.get(kind, ["score"]),
        init_lora_weights=False,
    )
    model = get_peft_model(float32_base(), config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data = torch.randn_like(parameter)
    model.save_pretrained("lora")
    note = {"kind": "classes", "columns": ["text"], "labels": LABELS, "max_length": LENGTH}
    write("lora/task.json", note)


def plain(folder="base"):
    """Return a function: the logits that plain transformers gives each text alone, (texts, labels).

    Its tokenizer is that in a folder.
    """
    model = float32_base().eval()
    tensors = {name.removeprefix(PREFIX): value for name, value in load_file(f"lora/{WEIGHTS}").items()}
    weights = dict(model.named_parameters())
    for name, value in tensors.items():
        if name.endswith("lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            update = 2.0 * tensors[f"{layer}.lora_B.weight"] @ value  # alpha / r
            weight = weights[f"{layer}.weight"].data
            weight += update if weight.shape == update.shape else update.T
        elif "lora_B" not in name:
            weights[name].data.copy_(value)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @torch.no_grad()
    def logits(asked):
        cut = {"truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        encoded = [tokenizer(text, **cut)["input_ids"] for text in asked]
        return torch.cat([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in encoded])

    return logits


def save_bert(outputs, task_info):
    """Save a LoRA of BERT with a head of so many outputs, and its task info."""
    architectures.save_padded(Path("base"), "bert")
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=outputs, dtype=torch.float32)
    targets = ["query", "value"]
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    model.save_pretrained("lora")
    write("lora/task.json", {"max_length": 24} | task_info)
    return model
