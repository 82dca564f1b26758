"""Tiny random models of the architectures that people fine-tune, saved as the hub has them: without a head."""

from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from tests import workspace

END = "<|endoftext|>"
VOCABULARY = 320
SIZES = workspace.read_yaml(Path(__file__).with_suffix(".yaml"))
DECODERS = SIZES["decoders"]
ENCODERS = SIZES["encoders"]
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
PADDED = SIZES["padded"]
SPECIAL = [END, "<pad>", "<unk>", "<|im_end|>", "<s>"]  # of the tokenizers of PADDED, whose numbers are these places
PADS = {"opt", *ENCODERS}  # whose tokenizer has a token for it; the others' have none, as those of the hub


def trained_bpe(special, *more):
    """Return a tokenizer trained on the sentences of the workspace and more texts; its first tokens are special."""
    bpe = ByteLevelBPETokenizer()
    texts = [text for *pair, _ in workspace.sentences(50) for text in pair]
    texts += more
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    return bpe._tokenizer


def save(folder, kind, dtype=torch.float32, **changes):
    """Save a model of an architecture with a tokenizer trained on the sentences of the workspace.

    `changes` are those of its configuration; `dtype` is that of the checkpoint.
    """
    special = {"eos_token": END, "bos_token": END} | ({"pad_token": "<pad>"} if kind in PADS else {})
    bpe = trained_bpe([END, "<pad>"])
    PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=30, **special).save_pretrained(folder)
    sizes = DECODERS[kind] | ENDS if kind in DECODERS else ENCODERS[kind]
    config = AutoConfig.for_model(kind, **sizes | changes, vocab_size=VOCABULARY)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModel.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def save_padded(folder, name, auto=AutoModel):
    """Save a model of PADDED with its tokenizer, without a head or as another class of transformers has it."""
    described = PADDED[name]
    inputs = described.get("inputs", ["input_ids", "attention_mask"])
    side = described.get("side", "right")
    options = described["tokens"] | {"padding_side": side, "model_input_names": inputs, "model_max_length": 30}
    PreTrainedTokenizerFast(tokenizer_object=trained_bpe(SPECIAL), **options).save_pretrained(folder)
    ends = {"eos_token_id": described["ends"]} if "ends" in described else {}
    config = AutoConfig.for_model(name, **described["sizes"] | ends, vocab_size=VOCABULARY)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = auto.from_config(config).float()
        for parameter in model.parameters():  # zeros and ones, such as fresh biases, would hide mistakes
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.to(getattr(torch, described.get("dtype", "float32"))).save_pretrained(folder)
    return folder
