"""Tiny random models of the architectures that people fine-tune, and adapters, checkpoints and banks of them.

Nothing is downloaded. All weights are drawn, so that no zeros or ones of a fresh model hide a mistake.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lsr import AdapterBank

LABELS = 3
VOCABULARY = 320
LONGEST = 64  # tokens
SPECIAL = ["<|endoftext|>", "<pad>", "<unk>", "<|im_end|>", "<s>"]  # tokens 0 to 4
WIDE: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": LONGEST,
}
GROUPED = WIDE | {"num_key_value_heads": 1}  # queries share a key
PADDING = {"pad_token": "<pad>"}
TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


class Architecture(NamedTuple):
    """What the hub has of an architecture: its configuration, its tokenizer, and names of its modules."""

    sizes: dict[str, Any]
    tokens: dict[str, str]  # special tokens of the tokenizer; one without a pad_token cannot pad by itself
    targets: list[str]  # the layers that are usually adapted
    heads: list[str]  # modules of a classifier that are trained whole
    side: str = "right"  # on which its tokenizer pads
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    dtype: torch.dtype = torch.float32


ARCHITECTURES = {
    "bert": Architecture(WIDE | {"pad_token_id": 1}, PADDING, ["query", "value"], ["classifier"], side="left"),
    "roberta": Architecture(
        WIDE | {"pad_token_id": 1, "max_position_embeddings": LONGEST + 2},
        PADDING,
        ["query", "value"],
        ["classifier"],
        dtype=torch.bfloat16,
    ),
    "distilbert": Architecture(
        {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 40, "max_position_embeddings": LONGEST},
        PADDING,
        ["q_lin", "v_lin"],
        ["pre_classifier", "classifier"],
    ),
    "modernbert": Architecture(
        WIDE | {"pad_token_id": 1, "bos_token_id": 4, "eos_token_id": 3, "cls_token_id": 4, "sep_token_id": 3},
        PADDING,
        ["Wqkv"],
        ["head", "classifier"],
        inputs=("input_ids",),
        dtype=torch.bfloat16,
    ),
    "deberta-v2": Architecture(
        WIDE | {"pad_token_id": 1}, PADDING, ["query_proj", "value_proj"], ["pooler", "classifier"]
    ),
    "xlnet": Architecture(
        {"d_model": 24, "n_layer": 2, "n_head": 2, "d_inner": 40},
        PADDING | {"eos_token": "<|im_end|>"},
        ["layer_1"],
        ["sequence_summary", "logits_proj"],
    ),
    "t5": Architecture(  # an encoder and a decoder: the class of a text is read at its end token
        {"d_model": 24, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 2, "pad_token_id": 1, "eos_token_id": 3}
        | {"decoder_start_token_id": 1},
        PADDING | {"eos_token": "<|im_end|>"},
        ["q", "v"],
        ["classification_head"],
    ),
    "gpt2": Architecture(
        {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": LONGEST, "bos_token_id": 0, "eos_token_id": 0},
        {"eos_token": "<|endoftext|>"},
        ["c_attn"],
        ["score"],
        side="left",
    ),
    "llama": Architecture(
        GROUPED | {"eos_token_id": [0, 3]},
        {"eos_token": "<|im_end|>", "bos_token": "<s>"},
        ["q_proj", "v_proj"],
        ["score"],
        dtype=torch.bfloat16,
    ),
    "qwen2": Architecture(
        GROUPED | {"eos_token_id": 3},
        PADDING | {"eos_token": "<|im_end|>", "unk_token": "<unk>"},
        ["q_proj", "v_proj"],
        ["score"],
        side="left",
    ),
    "qwen3": Architecture(
        GROUPED | {"head_dim": 12, "eos_token_id": [3, 0]},
        {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        ["q_proj", "v_proj"],
        ["score"],
        side="left",
        dtype=torch.bfloat16,
    ),
    "gemma": Architecture(
        GROUPED | {"head_dim": 12, "pad_token_id": 0, "eos_token_id": 3},
        {"pad_token": "<unk>", "unk_token": "<unk>", "eos_token": "<|im_end|>"},
        ["q_proj", "v_proj"],
        ["score"],
    ),
}


def base_model(name: str, *, causal: bool = False, **changes: Any) -> Any:
    """Return a fresh copy of a model in evaluation mode, with a head for LABELS classes or of a language model.

    It is in float32, has no dropout, and always has the same weights; `changes` are those of its configuration.
    """
    return copy.deepcopy(_built(name, causal, json.dumps(changes)))


@cache
def _built(name: str, causal: bool, changes: str) -> nn.Module:
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    config = configuration(name, num_labels=LABELS, **json.loads(changes))
    if config.pad_token_id is None:
        config.pad_token_id = SPECIAL.index("<pad>")
    return draw(auto.from_config(config)).eval()


def configuration(name: str, **changes: Any) -> Any:
    """Return the configuration of an architecture without dropout."""
    config = AutoConfig.for_model(name, **ARCHITECTURES[name].sizes | {"vocab_size": VOCABULARY} | changes)
    for field, value in vars(config).items():
        if "drop" in field and isinstance(value, float) and field not in changes:
            setattr(config, field, 0.0)
    return config


def draw(model: Any, seed: int = 3) -> Any:
    """Draw every parameter of a model, matrices with large values: with small ones, all texts look alike."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.2 * noise if parameter.dim() > 1 else parameter.data + 0.05 * noise
    return model


def batch(rows: int = 4, length: int = 9) -> dict[str, Tensor]:
    """Return token ids (rows, length) with their mask; the last rows are shorter, and each has one end token."""
    ids = torch.arange(rows * length).reshape(rows, length) * 7 % (VOCABULARY - 5) + 5
    mask = torch.ones_like(ids)
    mask[rows // 2 :, length - 2 :] = 0
    ids[torch.arange(rows), mask.sum(dim=1) - 1] = SPECIAL.index("<|im_end|>")  # where T5 reads the class
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: Any, **options: Any) -> Tensor:
    """Return a model's logits for `batch()`."""
    return model.eval()(**batch(), **options).logits


def stir(model: Any, seed: int = 0, size: float = 0.1) -> Any:
    """Perturb every trainable parameter; return the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def adapted(name: str, config: PeftConfig, *, causal: bool = False, seed: int | None = 0) -> Any:
    """Return a model with an adapter in which every trainable parameter is perturbed, or a fresh one without a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)  # not every method has a seed of its own
        model = get_peft_model(base_model(name, causal=causal), config).eval()
    return model if seed is None else stir(model, seed)


@cache
def _trained_tokenizer() -> str:
    bpe = ByteLevelBPETokenizer()
    places = ("garden at night", "river and nobody saw it", "barn while the fox rests", "wood?")
    texts = [
        f"the {animal} number {at} sleeps in the {places[at % 4]}" for at in range(50) for animal in ("cat", "owl")
    ]
    texts += ["system user assistant Where is ? in"]
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    return bpe._tokenizer.to_str()


def tokenizer(name: str, **changes: Any) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an architecture; `changes` are those of its options, such as padding_side."""
    architecture = ARCHITECTURES[name]
    options = {"padding_side": architecture.side, "model_input_names": list(architecture.inputs)}
    options |= {"model_max_length": 30, **architecture.tokens, **changes}
    made = Tokenizer.from_str(_trained_tokenizer())
    if name == "t5":
        end = "<|im_end|>"
        places = [(end, SPECIAL.index(end))]
        made.post_processor = TemplateProcessing(single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=places)
    return PreTrainedTokenizerFast(tokenizer_object=made, **options)


def save_base(
    folder: Path, name: str, *, dtype: torch.dtype | None = None, causal: bool = False, **changes: Any
) -> Path:
    """Save a checkpoint as the hub has it, without a classifier's head, and its tokenizer; return the folder.

    `dtype` is by default the usual one of the architecture. A language model's tokenizer has a chat template.
    `changes` are those of the configuration.
    """
    auto = AutoModelForCausalLM if causal else AutoModel
    model = draw(auto.from_config(configuration(name, **changes)))
    model.to(dtype or ARCHITECTURES[name].dtype).save_pretrained(folder)
    made = tokenizer(name, model_max_length=LONGEST) if causal else tokenizer(name)
    if causal:
        made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path, base: Path, config: PeftConfig, *, seed: int = 0, labels: Sequence[str] = ("no", "yes"), **task: Any
) -> Path:
    """Save an adapter with random values on a saved base model, with its task.json; return the folder.

    `task` are more fields of task.json. A configuration with the task type CAUSAL_LM has no labels.
    """
    is_causal = config.task_type == "CAUSAL_LM"
    auto = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
    options = {} if is_causal else {"num_labels": len(labels), "ignore_mismatched_sizes": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(auto.from_pretrained(base, dtype=torch.float32, **options), config)
    stir(model, seed, size=0.5).save_pretrained(str(folder), save_embedding_layers=False)
    if not is_causal:
        content = {"columns": ["text"], "labels": list(labels), "max_length": 28} | task
        (folder / "task.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def save_tenants(
    folder: Path, base: Path, config: PeftConfig, tenants: Mapping[str, Sequence[str] | None], **options: Any
) -> Path:
    """Save an adapter that tenants share, with the labels of each, or None for a number; return the folder.

    `options` are those of `save_adapter`. The tenants have the outputs of the head one after the other.
    """
    outputs = sum(len(labels or "1") for labels in tenants.values())
    labels = [str(output) for output in range(outputs)]
    save_adapter(folder, base, config, labels=labels, tenants=dict(tenants), **options)
    path = folder / "task.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"labels": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def save_bank(folder: Path, base: Path, adapters: Mapping[str, Path]) -> Path:
    """Save a bank of adapters of a saved base model; return its folder."""
    bank = AdapterBank(AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32))
    for name, adapter in adapters.items():
        bank.add(name, adapter)
    bank.save(folder)
    return folder


def merged(folder: Path, base: Path, labels: int) -> PreTrainedModel:
    """Return a saved base model with the adapter of a folder, by PEFT, in float32."""
    options = {"num_labels": labels, "ignore_mismatched_sizes": True}  # a head of other labels is drawn anew
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, **options)
    return PeftModel.from_pretrained(model, str(folder)).eval()
