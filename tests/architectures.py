"""Tiny random models of the architectures that people fine-tune, saved as the hub has them: without a head."""

import copy

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModel,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from tests import workspace

END = "<|endoftext|>"
VOCABULARY = 320
WIDE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
HEADS = {"num_key_value_heads": 1, "max_position_embeddings": 64}
LAST = {  # decoders: the class of a text is read at its last token
    "gpt2": GPT2Config(n_embd=24, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(**WIDE, **HEADS, bos_token_id=0, eos_token_id=0),
    "opt": OPTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=40,
        word_embed_proj_dim=24,
        max_position_embeddings=64,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=0,
    ),
}
OTHERS = {
    "deberta-v2": DebertaV2Config(**WIDE, max_position_embeddings=64, pad_token_id=1),
    "mpnet": MPNetConfig(**WIDE, max_position_embeddings=66, pad_token_id=1),  # it counts from 2, as RoBERTa
    "distilbert": DistilBertConfig(dim=24, n_layers=2, n_heads=2, hidden_dim=40, max_position_embeddings=64),
}
PADS = {"opt", *OTHERS}  # whose tokenizer has a token for it; the others' have none, as those of the hub


def save(folder, kind):
    """Save a model of an architecture with a tokenizer trained on the sentences of the workspace."""
    bpe = ByteLevelBPETokenizer()
    texts = [text for *pair, _ in workspace.sentences(50) for text in pair]
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END, "<pad>"], show_progress=False)
    pad = {"pad_token": "<pad>"} if kind in PADS else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END, bos_token=END, model_max_length=30, **pad
    )
    tokenizer.save_pretrained(folder)
    config = copy.deepcopy((LAST | OTHERS)[kind])
    config.vocab_size = VOCABULARY
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder
