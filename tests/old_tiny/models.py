"""Tiny random transformers, built from configs: nothing is downloaded."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

LABELS = 3
VOCABULARY = 64
Fields = dict[str, Any]  # of a configuration

SIZES: Fields = {  # transformers translates the names for architectures that have others
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "num_labels": LABELS,
}
NO_DROPOUT: Fields = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT: Fields = SIZES | NO_DROPOUT
DECODER: Fields = SIZES | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2: Fields = DECODER | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**BERT),
    # 62 is split as 63 = 9 * 7, with padded factors.
    "bert-padded": BertConfig(**BERT | {"hidden_size": 62}),
    # On some CPUs, 4-bit layers of bitsandbytes need a width above 24.
    "bert-wide": BertConfig(**BERT | {"hidden_size": 64}),
    "roberta": RobertaConfig(**BERT | {"pad_token_id": 1}),
    "distilbert": DistilBertConfig(**SIZES, hidden_dim=40, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0),
    "gpt2": GPT2Config(**GPT2),
    "gpt2-causal": GPT2Config(**GPT2),
    "llama-causal": LlamaConfig(**DECODER, num_key_value_heads=1),
}


@cache
def _built(name: str) -> nn.Module:
    kind = AutoModelForCausalLM if name.endswith("-causal") else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = kind.from_config(CONFIGS[name]).eval()
        for parameter in model.parameters():  # zeros and ones, such as fresh biases, would hide mistakes
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def tiny(name: str) -> Any:
    """Return a fresh copy of a model of `CONFIGS`, in evaluation mode, without dropout, always the same weights."""
    return copy.deepcopy(_built(name))


def tokens(rows: int = 4, length: int = 9) -> dict[str, Tensor]:
    """Return token ids with a mask; the last rows end earlier."""
    ids = torch.arange(rows * length).reshape(rows, length) * 7 % (VOCABULARY - 5) + 5
    mask = torch.ones_like(ids)
    mask[rows // 2 :, length - 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: Any) -> Tensor:
    """Return the model's logits for `tokens()`."""
    with torch.no_grad():
        return model(**tokens()).logits
