"""Tiny random transformers, built from configs: nothing is downloaded."""

from benchmarks.capabilities.models import BERT_SIZES, CONFIGS, LABELS, VOCABULARY, logits, tiny, tokens

__all__ = ["BERT_SIZES", "CONFIGS", "LABELS", "VOCABULARY", "logits", "tiny", "tokens"]
