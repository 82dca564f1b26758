"""The model card of an adapter: the README.md that the hub shows, with a snippet that runs as printed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

FILE = "README.md"
MARK = "<!-- Written by lsr when the adapter is saved; without this line it stays as you edit it. -->"
UNFILLED = "[More Information Needed]"  # of PEFT's template
CLASSES = {  # of transformers, by PEFT's task_type
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
ASK = {False: '"A text."', True: '{"text": "A text.", "text_pair": "Another one."}'}


@dataclass(frozen=True)
class Card:
    """The contents of a card. `labels` are the head's in order, none if it predicts a number; None: unknown."""

    method: str  # PEFT's name of the method; LSR is this package's
    base: str | None  # of the hub, or a path; None: a model without a name, of one's own class
    revision: str | None
    task_type: str | None
    labels: Sequence[str] | None = ()
    is_pair: bool = False
    summary: str = "It is a fine-tuned adapter."  # what it does, in a sentence or two
    sections: Mapping[str, str] = field(default_factory=dict)  # by heading
    header: Mapping[str, Any] = field(default_factory=dict)  # additional metadata fields for the hub
    called: str = ""  # what the adapter is, if not the method's name and the word adapter
    module: str = "peft"  # the module that registers the method, if it is neither PEFT's nor this package's

    def text(self) -> str:
        """Return the whole card, the same text every time."""
        tags = [*([f"base_model:adapter:{self.base}"] if self.base else []), self.method.lower(), "transformers"]
        known: dict[str, Any] = {"base_model": self.base, "library_name": "peft", "license": "other", "tags": tags}
        header = ModelCardData(**known | dict(self.header)).to_yaml()
        is_ours = self.method == "LSR"
        needs = ""
        if self._imported != "peft":
            where = "`pip install lsr-adapt`" if is_ours else "from the repository that trained it"
            needs = (
                f"PEFT loads this adapter only after `import {self._imported}` ({where}); without it, it says "
                f"`KeyError: '{self.method}'`.\n\n"
            )
        use = f"    pip install {'lsr-adapt' if is_ours else 'peft'}\n\n```python\n{self.snippet()}```"
        sections = {"Use": use, **self.sections}
        if is_ours:
            sections["Export"] = (
                "    lsr export . --to lora -o ../lora # plain PEFT, which needs no lsr\n"
                "    lsr export . --to merged -o ../merged # plain transformers"
            )
        body = "".join(f"\n## {heading}\n\n{content}\n" for heading, content in sections.items())
        title = f"{self.called or f'{self.method} adapter'} of {self.base or UNNAMED}"
        return f"---\n{header}\n---\n\n{MARK}\n\n{needs}# {title}\n\n{self.summary}\n{body}"

    @property
    def _imported(self) -> str:
        """The module to import so that PEFT knows the method."""
        return "lsr" if self.method == "LSR" else self.module

    def snippet(self) -> str:
        """Return Python code that loads the adapter from the working directory and, for a classifier, runs it."""
        kind = CLASSES.get(str(self.task_type), "AutoModel")
        asks = self.task_type == "SEQ_CLS"
        arguments = [json.dumps(self.base or UNNAMED)] + (
            [f"revision={json.dumps(self.revision)}"] if self.revision else []
        )
        named = ", ".join(arguments)
        if self.task_type in LABELLED and self.labels is not None:
            arguments.append(
                f"id2label={ {at: str(name) for at, name in enumerate(self.labels)}!r}"
                if self.labels
                else 'num_labels=1, problem_type="regression"'
            )
        names = [kind, "AutoTokenizer", "pipeline"] if asks else [kind]
        lines = [
            *([f"import {self._imported}  # before PEFT reads the adapter"] if self._imported != "peft" else []),
            "from peft import PeftModel",
            f"from transformers import {', '.join(names)}",
            "",
            f"base = {kind}.from_pretrained({', '.join(arguments)})",
        ]
        loaded = 'PeftModel.from_pretrained(base, ".")'
        if not asks:
            return "\n".join([*lines, f"model = {loaded}", ""])
        return "\n".join(
            [
                *lines,
                f"tokenizer = AutoTokenizer.from_pretrained({named})",
                "tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token",
                "base.config.pad_token_id = tokenizer.pad_token_id",
                f"model = {loaded}{'.merge_and_unload()' * (self.method in MERGED)}",
                'ask = pipeline("text-classification", model=model, tokenizer=tokenizer)',
                f"print(ask({ASK[self.is_pair]}))",
                "",
            ]
        )

    def write(self, folder: Path) -> None:
        """Write it into an adapter's folder."""
        (folder / FILE).write_text(self.text(), encoding="utf-8")


def text_in(folder: Path) -> str:
    """Return the card in a folder; empty if there is none."""
    path = folder / FILE
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def section(text: str, heading: str) -> str:
    """Return a section of a card by its heading; empty if there is none."""
    return text.partition(f"\n## {heading}\n\n")[2].partition("\n## ")[0].strip()


def replace_empty(card: Card, folder: Path) -> None:
    """Write a card into an adapter's folder, unless a user has written the one that is there."""
    text = text_in(folder)
    if MARK in text or UNFILLED in text:
        card.write(folder)
