"""Set up padding: the tokenizer determines the padding token, and the model's configuration must have the same.

A decoder classifies a text at its last token that is not the padding token of the model's configuration. If batches
were padded with another token, shorter texts would be classified at a padding position. So call `prepare_batches` with
the tokenizer and the model before making batches.
"""

from typing import Any

from lsr.errors import InputError

MASK = "attention_mask"
# Architectures that classify a text at the last position, so that padding comes before the text.
PADDED_ON_THE_LEFT = frozenset({"xlnet"})
# Architectures whose layers mix neighboring positions without regard to the attention mask: their output for a text
# depends on how far it is padded.
AFFECTED_BY_PADDING = frozenset({"canine", "convbert", "fnet", "mobilebert", "nystromformer", "yoso"})
# Architectures that count positions from the left, or do not regard the mask: what they write after a prompt depends
# on the padding before it. The same tests compare every language model of transformers.
WRITING_BY_PADDING = frozenset(
    {
        "bart",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "marian",
        "mbart",
        "mvp",
        "pegasus",
        "plbart",
        "recurrent_gemma",
        "reformer",
        "rwkv",
        "trocr",
        "whisper",
        "xlm",
        "xlnet",
    }
)


def set_padding(tokenizer: Any, config: Any) -> None:
    """Set the padding of a tokenizer for classification, and the padding token of a model's configuration.

    The token is the tokenizer's own or, where it has none, as in GPT-2, its end token. A tokenizer with neither cannot
    pad, and nothing changes. Padding is on the right, whatever the tokenizer's files set, because many decoders count
    positions from the left; for XLNet it is on the left. Batches have an attention mask.
    """
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        return
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "left" if config.model_type in PADDED_ON_THE_LEFT else "right"
    if MASK not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, MASK]


def prepare_batches(tokenizer: Any, config: Any, where: object, *, writes: bool = False) -> None:
    """Set padding as `set_padding` does, and check that texts of different lengths can be batched.

    If the model `writes`, prompts of different lengths are padded before their first token.

    Raises:
        InputError: if the tokenizer has neither a padding nor an end token, the model has no embedding of the padding
            token, or its output for a text depends on the padding; the message begins with `where`.
    """
    kind = config.model_type
    if kind in AFFECTED_BY_PADDING:
        problem = f"the output of the architecture {kind} for a text depends on the padding after it"
        raise InputError(f"{where}: {problem}, so on the other texts of a batch; choose another model")
    if writes and kind in WRITING_BY_PADDING:
        problem = f"what the architecture {kind} writes depends on the padding before a prompt"
        raise InputError(f"{where}: {problem}, so on the other prompts of a batch; choose another model")
    set_padding(tokenizer, config)
    if tokenizer.pad_token_id is None:
        needed = "set one in tokenizer_config.json"
        raise InputError(f"{where}: the tokenizer lacks pad_token and eos_token; {needed}")
    tokens = getattr(config.get_text_config(), "vocab_size", None)
    if tokens is not None and tokenizer.pad_token_id >= tokens:
        problem = f"the tokenizer pads with token {tokenizer.pad_token_id}, {tokenizer.pad_token}"
        needed = f"one of the model's {tokens} tokens as pad_token in tokenizer_config.json"
        raise InputError(f"{where}: {problem}; needed: {needed}")
