"""The model card of an adapter: the README.md that the hub shows, with a snippet that runs as printed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

FILE = "README.md"
MARK = "<!-- Written by lsr when the adapter is saved; without this line it stays as you edit it. -->"
UNFILLED = "[More Information Needed]"  # placeholder in PEFT's template
CLASSES = {  # classes of transformers by PEFT's task_type
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
MERGED = ("LSR", "LORA")  # PEFT's other methods do not come off a model whose head has several layers
LABELLED = ("SEQ_CLS", "TOKEN_CLS")
UNNAMED = "a base model"
REGRESSION = 'num_labels=1, problem_type="regression"'
EXPORT = """\
    lsr export . --to lora -o ../lora # plain PEFT, which needs no lsr
    lsr export . --to merged -o ../merged # plain transformers"""
PLAIN = """\
from peft import PeftModel
from transformers import {model_class}

base = {model_class}.from_pretrained({base})
model = PeftModel.from_pretrained(base, ".")
"""
CLASSIFIER = """\
from peft import PeftModel
from transformers import {model_class}, AutoTokenizer, pipeline

base = {model_class}.from_pretrained({base})
tokenizer = AutoTokenizer.from_pretrained({name})
# In batches, the model reads a shorter text up to its padding: it must know the token that pads, and on which side.
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
tokenizer.padding_side = "left" if base.config.model_type == "xlnet" else "right"
base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
model = PeftModel.from_pretrained(base, "."){merged}
ask = pipeline("text-classification", model=model, tokenizer=tokenizer)
print(ask({ask}))
"""
OF_TENANTS = """\
from lsr import AdapterBank
from transformers import AutoTokenizer

bank, whose = AdapterBank.of_tenants("."), [{tenant}]  # of each text
tokenizer = AutoTokenizer.from_pretrained({name})
# In batches, the model reads a shorter text up to its padding: it must know the token that pads, and on which side.
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
tokenizer.padding_side = "left" if bank.model.config.model_type == "xlnet" else "right"
bank.model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
batch = tokenizer({ask}, padding=True, return_tensors="pt")
print(bank.answers(bank(**batch, adapter_names=whose).logits, whose))
"""
ASK = {False: '"A text."', True: '{"text": "A text.", "text_pair": "Another one."}'}


@dataclass(frozen=True)
class Card:
    """The contents of a card, with defaults for an adapter of this package."""

    base: str | None  # repository or path of the base model; None: a model without a name
    revision: str | None
    task_type: str | None
    labels: Sequence[str] | None  # labels in the order of the head's outputs, empty for regression; None: unknown
    is_pair: bool = False
    is_multi_label: bool = False  # whether any number of the labels may apply
    dtype: str | None = None  # dtype of the base model in training, if it is not its checkpoint's
    has_tokenizer: bool = False  # whether the folder has a tokenizer, which then replaces the base model's
    tenant: str | None = None  # one of those whose labels the head has, if it is of tenants
    method: str = "LSR"  # PEFT's name
    module: str = "lsr"  # the one that registers the method with PEFT, or "peft" itself
    called: str = "LSR adapter"
    summary: str = "It is a fine-tuned adapter."  # a summary in one or two sentences
    sections: Mapping[str, str] = field(default_factory=dict)  # sections of the card by heading
    header: Mapping[str, Any] = field(default_factory=dict)  # additional metadata fields for the hub

    def text(self) -> str:
        """Return the whole card, the same text every time."""
        tags = [*([f"base_model:adapter:{self.base}"] if self.base else []), self.method.lower(), "transformers"]
        known: dict[str, Any] = {"base_model": self.base, "library_name": "peft", "license": "other", "tags": tags}
        header = ModelCardData(**known | dict(self.header)).to_yaml()
        package = "lsr-adapt" if self.module == "lsr" or self.tenant else "peft"
        use = f"    pip install {package}\n\n```python\n{self.snippet()}```"
        sections = {"Use": use, **self.sections, **({"Export": EXPORT} if self.module == "lsr" else {})}
        body = "".join(f"\n## {heading}\n\n{content}\n" for heading, content in sections.items())
        title = f"{self.called} of {self.base or UNNAMED}"
        return f"---\n{header}\n---\n\n{MARK}\n\n# {title}\n\n{self.summary}\n{body}"

    def snippet(self) -> str:
        """Return Python code that loads the adapter from the working directory and, for a classifier, runs it."""
        model_class = CLASSES.get(str(self.task_type), "AutoModel")
        name = json.dumps(self.base or UNNAMED) + (f", revision={json.dumps(self.revision)}" if self.revision else "")
        tokenizer = '"."' if self.has_tokenizer else name
        if self.tenant is not None:
            texts = '["A text."], ["Another one."]' if self.is_pair else '["A text."]'
            return OF_TENANTS.format(tenant=json.dumps(self.tenant), name=tokenizer, ask=texts)
        base = name
        if self.task_type in LABELLED and self.labels is not None:
            labels = f"id2label={dict(enumerate(map(str, self.labels)))!r}"
            base += f", {labels if self.labels else REGRESSION}"
            if self.is_multi_label:
                base += ', problem_type="multi_label_classification"'
        if self.dtype:
            base += f', dtype="{self.dtype}"'
        snippet = ""
        if self.module != "peft":
            origin = "" if self.module == "lsr" else "from the repository that trained it, "
            snippet = f"import {self.module}  # {origin}before PEFT reads the adapter, or it knows no {self.method}\n"
        if self.task_type != "SEQ_CLS":
            return snippet + PLAIN.format(model_class=model_class, base=base)
        ask = f"{ASK[self.is_pair]}, top_k=None" if self.is_multi_label else ASK[self.is_pair]
        merged = ".merge_and_unload()" if self.method in MERGED else ""
        return snippet + CLASSIFIER.format(model_class=model_class, base=base, name=tokenizer, merged=merged, ask=ask)

    def write(self, folder: Path) -> None:
        """Write the card into an adapter's folder, unless a user has written or edited the existing one."""
        path = folder / FILE
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else MARK
        if MARK in text or UNFILLED in text:
            path.write_text(self.text(), encoding="utf-8")
