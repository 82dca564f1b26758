"""A tiny language model with a chat template, made here, and files of prompts for it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests import architectures, kit, workspace

START = "<|start|>"
END = "<|end|>"
PAD = "<pad>"
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
ANIMALS = ("cat", "dog", "owl", "fox")
PLACES = ("garden", "barn", "river", "wood")
ROW = workspace.ROWS["writing"]


def tokenizer(template=TEMPLATE, **tokens):
    special = {"pad_token": PAD, "eos_token": END, "additional_special_tokens": [START]} | tokens
    bpe = architectures.trained_bpe([PAD, START, END], "system user assistant Where is ? in")
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=128, **special)
    made.chat_template = template
    return made


def save(folder, template=TEMPLATE):
    """Save a random Llama of two layers, whose output layer is its embeddings, with its tokenizer."""
    tokenizer(template).save_pretrained(folder)
    sizes = workspace.SIZES | {"num_key_value_heads": 1, "max_position_embeddings": 128}
    config = LlamaConfig(**sizes, vocab_size=320, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def rows(count=120):
    return [{"at": str(at), "animal": ANIMALS[at % 4], "place": f"in the {PLACES[at % 4]}"} for at in range(count)]


def make(folder, row=ROW, written=None, **changes):
    """A workspace with the model, a file, and a row of data for it."""
    usual = {"data": "writing", "model": "writer", "tokenize": {"max_length": 64}}
    folder = workspace.make(folder, {"writing": row}, **usual, **changes)
    save(folder / "writer")
    kit.write(folder / "writing.jsonl", written or rows())
    models = folder / "pipeline/models.yaml"
    kit.write(models, workspace.read_yaml(models) | {"writer": {"source": {"kind": "hub", "path": "writer"}}})
    return folder
