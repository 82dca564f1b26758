"""A language model writes a text: the completion of a prompt, or the assistant's last answer in a conversation.

What it learns is the loss of completions and their end token alone. What it writes is compared with what was expected,
and with what the base model writes without the adapter.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.core.errors import nearest
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.labels import Conversation
from pipeline.tasks.cells import Cells, Record, folded, hash_of, is_missing, plain_text, text_columns, text_in
from pipeline.tasks.classes import class_of
from pipeline.tasks.facts import Facts
from pipeline.tasks.prompts import ROLES, SILENT, Message, Prompts
from pipeline.tasks.task import EXPECTED, Columns, Numbers, Outcome, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORD = re.compile(r"\w+")
PROMPT = "prompt"  # the column for that of a conversation
LOSS = "negative_loss"  # the score of a validation split, per token of completions


@dataclass(frozen=True)
class Written(Outcome):
    """What a model has written for the prompts of a split; `outputs` are (examples, 2): loss and tokens of each."""

    said: Sequence[str] = ()
    base_outputs: "Tensor | None" = None  # without the adapter, as is
    base_said: Sequence[str] = ()


class CompletionTask(Task):
    """A prompt and its completion, or a conversation whose end is one: then the prompt is all before it, as JSON."""

    kind = "completion"
    target = "object"
    names = ()
    hub_task: ClassVar[str] = "text-generation"
    peft_task: ClassVar[str] = "CAUSAL_LM"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    writes: ClassVar[bool] = True
    judged: ClassVar[tuple[str, ...]] = ("label",)
    baseline: ClassVar[str] = "without the adapter"

    def __init__(self, row: DatasetRow, facts: Facts) -> None:
        self.is_conversation = isinstance(row.label, Conversation)
        super().__init__(row.model_copy(update={"text": (PROMPT,)}) if self.is_conversation else row, facts)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.label.column,) if self.is_conversation else super().reads

    def prepared(self, cells: Cells) -> Cells:
        column = self.label.column
        if self.is_conversation:
            cells = dict(zip((PROMPT, column), _prompt_and_answer(cells[column]), strict=True))
        if is_missing(cells[column]):
            raise ValueError("the completion is empty")
        return cells

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        column = self.label.column
        is_class = not self.is_conversation and self.label.names and self.label.above is None
        return [(column, cells[column])] if is_class else []

    def label_of(self, cells: Cells) -> Any:
        value, names = cells[self.label.column], () if self.is_conversation else self.label.names
        if names:
            number = class_of(value, self.label)
            return None if number is None else names[number]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return text_in(plain_text(value) if is_number else value)

    def examples(self, rows: Sequence[Record], before: int) -> tuple[pd.DataFrame, Counter[str]]:
        found, left_out = super().examples(rows, before)
        hashes = np.array([hash_of(text) for text in found["label"]], np.uint64)
        return found.assign(**{EXPECTED: found["label"], "label": hashes}), left_out

    def alike(self, cells: Cells, made: Sequence[Mapping[str, str]]) -> str:
        """Leave out what a template adds: a text is in the split that it is in without one."""
        if self.row.mark:
            return super().alike(cells, made)
        return folded(cells[name] for name in text_columns(self.row))

    def tokenized(
        self, batches: Iterable[pa.Table], tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Iterator[tuple[pa.Table, Numbers]]:
        ints = pa.list_(pa.int32())
        kinds = {"input_ids": ints, "length": pa.int32(), "label": ints, PROMPT: pa.string(), EXPECTED: pa.string()}
        if self.is_conversation and not tokenizer.chat_template:
            raise ValueError("label.messages: the tokenizer has no chat template; choose a model for conversations")
        prompts = self.prompts(tokenizer)
        for batch in batches:
            rows, lengths = list[dict[str, Any]](), list[int]()
            for text, answer in zip(batch["text"].to_pylist(), batch[EXPECTED].to_pylist(), strict=True):
                turns = json.loads(text) if self.is_conversation else asked(text)
                example = prompts.example(turns, answer)
                if example.answer < max_length:  # of the prompt, one token stays
                    ids, labels = (part[-max_length:] for part in example)
                    rows.append({"input_ids": ids, "length": len(ids), "label": labels, PROMPT: text, EXPECTED: answer})
                    lengths.append(len(example.ids))
            yield pa.Table.from_pylist(rows, pa.schema(kinds)), np.array(lengths, int)

    def prompts(self, tokenizer: "PreTrainedTokenizerBase") -> Prompts:
        """Return how prompts become tokens."""
        return Prompts(tokenizer, self.row.template)

    @classmethod
    def misfit(cls, model: Any, labels: Sequence[str] | None) -> str:
        return "" if model.get_base_model().can_generate() else "kind: the model writes no text"

    def head(self) -> dict[str, Any]:
        return {}

    @classmethod
    def collator(cls, tokenizer: "PreTrainedTokenizerBase") -> Any:
        from transformers import DataCollatorForSeq2Seq

        padded = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=SILENT)

        def collate(features: Any) -> dict[str, "Tensor"]:
            if isinstance(features, Mapping):
                features = [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]
            return dict(padded([{key: one[key] for key in ("input_ids", "label")} for one in features]))

        return collate

    @classmethod
    def outputs(cls, model: "PreTrainedModel", batch: Mapping[str, "Tensor"]) -> "Tensor":  # (examples, 2)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return cls.measured(model(**inputs).logits, batch["labels"])

    @classmethod
    def measured(cls, logits: "Tensor", labels: "Tensor") -> "Tensor":  # (examples, 2)
        """Return the sum of the loss over the completion tokens of each example, in nats, and their number."""
        import torch

        sums = [
            torch.nn.functional.cross_entropy(one[:-1].float(), its[1:], ignore_index=SILENT, reduction="sum")
            for one, its in zip(logits, labels, strict=True)  # one by one: a second copy of all logits is large
        ]
        return torch.stack([torch.stack(sums), (labels[:, 1:] != SILENT).sum(dim=1).float()], dim=1)

    def predicted(self, outcome: Outcome) -> Numbers:
        """Return the row's first metric of each text, in [0, 1]."""
        return _each(self.row.metrics[0], cast("Written", outcome).said, outcome.labels)

    def known(self, labels: Numbers, groups: Numbers | None) -> Numbers:
        return np.ones(len(labels), int)

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        base = cast("Written", outcome).base_outputs
        assert base is not None
        return mean_loss(*outcome.outputs.numpy().T), mean_loss(*base.numpy().T)

    @property
    def selects(self) -> str:
        return "exact_match" if self.row.select else LOSS

    def scores(self, outcome: Outcome) -> dict[str, float]:
        loss = mean_loss(*outcome.outputs.double().numpy().T)
        if not isinstance(outcome, Written):
            return {LOSS: -loss}
        each = {name: _each(name, outcome.said, outcome.labels) for name in self.row.metrics}
        return {**{name: float(values.mean()) for name, values in each.items()}, "loss": loss}

    def metrics(self, outcome: Outcome, resamples: int) -> dict[str, float]:
        from pipeline.tasks import scores

        found, written = dict[str, float](), cast("Written", outcome)
        for name in self.row.metrics:
            each, base = (_each(name, said, outcome.labels) for said in (written.said, written.base_said))
            found |= {name: float(each.mean()), f"{name}_baseline": float(base.mean())}
            metric = "accuracy" if name == "exact_match" else name
            low, high = scores.interval(metric, each, np.ones(len(each)), resamples)
            found |= {f"{name}_low": low, f"{name}_high": high}
        sums, counts = outcome.outputs.double().numpy().T
        loss, baseline = self.losses(outcome)
        low, high = scores.bootstrap(lambda counts, sums: mean_loss(sums, counts), sums, counts, resamples)
        found |= {"loss": loss, "loss_low": low, "loss_high": high, "loss_baseline": baseline}
        return {"score": found[self.row.metrics[0]], **found, "examples": len(outcome.labels)}

    def table(self, outcome: Outcome) -> Columns:
        said = list(cast("Written", outcome).said)
        right = ["yes" if one else "no" for one in _each("exact_match", said, outcome.labels)]
        return {"said": said, "right": right, "actual_group": ["yes"] * len(right), "predicted_group": right}

    @classmethod
    def printed(cls, outputs: Any, labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        return {"answer": list(outputs)}  # texts

    def note(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        if tokenizer is None:
            return super().note(None)
        prompts = self.prompts(tokenizer)
        return super().note(tokenizer) | {"template": prompts.template, "ends": prompts.ends}

    def says(self) -> str:
        return "what the assistant says next" if self.is_conversation else "its completion"


def asked(prompt: str) -> list[Message]:
    """Return a prompt as what a user says."""
    return [{"role": "user", "content": prompt}]


def mean_loss(sums: Numbers, counts: Numbers) -> float:
    """Return the loss per token."""
    return float(sums.sum() / counts.sum())


def _each(metric: str, said: Sequence[str], expected: Sequence[str] | Numbers) -> Numbers:
    """Return a metric of each text: whether it is the expected one but for whitespace around it; or ROUGE-L.

    That is the F-measure of the longest common subsequence of words, without regard to case and signs: Lin, "ROUGE: a
    package for automatic evaluation of summaries", 2004.
    """
    pairs = list(zip(said, expected, strict=True))
    if metric == "exact_match":
        return np.array([one.strip() == other.strip() for one, other in pairs], float)
    from rapidfuzz.distance import Indel

    words = [[WORD.findall(text.casefold()) for text in pair] for pair in pairs]
    return np.array([Indel.normalized_similarity(*pair) if any(pair) else 0.0 for pair in words], float)


def _prompt_and_answer(value: Any) -> tuple[str, str]:
    # Of a conversation: all but its last message as JSON, and the content of that.
    messages = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    if len(messages) < 2 or not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in messages):
        raise ValueError("no conversation; needed: a list of at least two messages with role and content")
    for at, message in enumerate(messages, start=1):
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"message {at}: no role {role!r}{nearest(role, ROLES)}; {', '.join(ROLES)}")
        if is_missing(content) or not isinstance(content, str):
            raise ValueError(f"message {at}: content must be a text that is not empty, got {content!r}")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the conversation must end with the assistant, got {messages[-1]['role']}")
    kept = [{"role": one["role"], "content": one["content"]} for one in messages[:-1]]
    return json.dumps(kept, ensure_ascii=False), messages[-1]["content"]
