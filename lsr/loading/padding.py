"""Padding: the tokenizer that makes batches decides which token pads, and the model's configuration is told.

A decoder classifies a text at its last token that is not the padding token of the model's configuration. In batches
that are padded with another token, shorter texts would be classified at a padding position. So whoever makes batches
for a model passes the tokenizer and the model's configuration through `prepare_batches` first.
"""

from typing import Any

from lsr.tuner.mistakes import InputError

MASK = "attention_mask"
# Architectures that classify a text at the last position, so that padding comes before the text.
PADDED_ON_THE_LEFT = frozenset({"xlnet"})
# Architectures whose layers mix neighboring positions without regard to the attention mask: their output for a text
# depends on how far it is padded. tests/lsr/loading/test_padding.py compares every classifier of transformers.
AFFECTED_BY_PADDING = frozenset({"canine", "convbert", "fnet", "mobilebert", "nystromformer", "yoso"})


def set_padding(tokenizer: Any, config: Any) -> None:
    """Have a tokenizer pad batches for classification, and a model's configuration hold the padding token.

    The token is the tokenizer's own or, where it has none, as in GPT-2, its end token. A tokenizer that has neither
    cannot pad, and nothing changes. Padding comes after the text, whatever the tokenizer's own files say, because many
    decoders count positions from the left; for XLNet it comes before the text. Batches have an attention mask.
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        return
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "left" if config.model_type in PADDED_ON_THE_LEFT else "right"
    if MASK not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, MASK]


def prepare_batches(tokenizer: Any, config: Any, where: object) -> None:
    """Set padding as `set_padding` does, and check that batches of texts of different lengths can be made.

    Raises:
        InputError: begins with `where`; if the tokenizer has neither a padding nor an end token, the model has no
            embedding of the padding token, or what the model computes for a text depends on the padding after it.
    """
    if config.model_type in AFFECTED_BY_PADDING:
        problem = f"the output of the architecture {config.model_type} for a text depends on the padding after it"
        raise InputError(f"{where}: {problem}, so on the other texts of a batch; choose another model")
    set_padding(tokenizer, config)
    if tokenizer.pad_token_id is None:
        needed = "set one in tokenizer_config.json"
        raise InputError(f"{where}: the tokenizer lacks pad_token and eos_token; {needed}")
    tokens = getattr(config.get_text_config(), "vocab_size", None)
    if tokens is not None and tokenizer.pad_token_id >= tokens:
        problem = f"the tokenizer pads with token {tokenizer.pad_token_id}, {tokenizer.pad_token}"
        needed = f"one of the model's {tokens} tokens as pad_token in tokenizer_config.json"
        raise InputError(f"{where}: {problem}; needed: {needed}")
