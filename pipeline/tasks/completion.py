"""Text generation: a language model completes a prompt, or continues a conversation as the assistant.

It is trained only on the loss of completions and their end token. The texts that it generates are compared with the
expected ones, and with those that the base model generates without the adapter.
"""

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from lsr_onnx.task import ROLES, Message
from pipeline.core import artifacts
from pipeline.core.errors import nearest
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.labels import Conversation
from pipeline.tasks.cells import (
    Cells,
    Names,
    Record,
    fold_texts,
    hash_of,
    is_missing,
    plain_text,
    text_columns,
    text_in,
)
from pipeline.tasks.classes import class_of
from pipeline.tasks.description import Description, Line, ReadTable
from pipeline.tasks.head import Head
from pipeline.tasks.preprocessing import Preprocessor
from pipeline.tasks.prompts import IGNORE_INDEX, Prompts
from pipeline.tasks.scoring import NEGATIVE, Answering, Answers_co, Scoring
from pipeline.tasks.task import EXPECTED, Columns, Groups, Kept, Numbers, Outcome, Scores, name_interval

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORD = re.compile(r"\w+")
PROMPT = "prompt"  # the column for the prompt of a conversation
LOSS = f"{NEGATIVE}loss"  # the score of a validation split, per token of completions
INTS = pa.list_(pa.int32())
TOKENS = pa.schema(
    {
        "input_ids": INTS,
        "length": pa.int32(),
        "label": INTS,
        PROMPT: pa.string(),
        EXPECTED: pa.string(),
    }
)
SHOWN = 3  # texts on the last screen
LONGEST_SHOWN = 80  # characters of these


def with_prompt(entry: DatasetEntry) -> DatasetEntry:
    """Return a data set entry whose text is the prompt of each row, also for conversations."""
    if isinstance(entry.label, Conversation):
        return entry.model_copy(update={"text": (PROMPT,)})
    return entry


@dataclass(frozen=True)
class Generated(Outcome):
    """The texts that a model has generated for a split; `outputs` (examples, 2) are the loss and number of tokens."""

    texts: Sequence[str] = ()
    base_outputs: "Tensor | None" = None  # outputs of the base model alone
    base_texts: Sequence[str] = ()  # texts of the base model alone


class CompletionPreprocessor(Preprocessor):
    """A prompt and its completion."""

    target = "object"

    def parse_cells(self, cells: Cells) -> Cells:
        if is_missing(cells[self.label.column]):
            raise ValueError("the completion is empty")
        return cells

    def names_in(self, cells: Cells) -> Names:
        column = self.label.column
        is_class = self.label.names and self.label.threshold is None
        return [(column, cells[column])] if is_class else []

    def label_of(self, cells: Cells) -> Any:
        value = cells[self.label.column]
        if self.label.names:
            number = class_of(value, self.label)
            return None if number is None else self.label.names[number]
        return _completion_in(value)

    def examples(self, rows: Sequence[Record], before: int) -> Kept:
        examples, left_out = super().examples(rows, before)
        expected = examples["label"]
        hashes = np.array([hash_of(text) for text in expected], np.uint64)
        return examples.assign(**{EXPECTED: expected, "label": hashes}), left_out

    def alike(self, cells: Cells, made: Sequence[Mapping[str, str]]) -> str:
        """Compare texts without the template, so that templates do not change splits."""
        if self.entry.span:
            return super().alike(cells, made)
        return fold_texts(cells[name] for name in text_columns(self.entry))

    def tokenize(
        self, batches: Iterable[pa.Table], tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Iterator[tuple[pa.Table, Numbers]]:
        return _tokenize(batches, Prompts(tokenizer, self.entry.template), to_user_message, max_length)


class ConversationPreprocessor(CompletionPreprocessor):
    """A conversation whose last message is the completion; the prompt is all messages before it, as JSON."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.label.column,)

    def parse_cells(self, cells: Cells) -> Cells:
        column = self.label.column
        prompt, answer = _prompt_and_answer(cells[column])
        return super().parse_cells({PROMPT: prompt, column: answer})

    def names_in(self, cells: Cells) -> Names:
        return ()

    def label_of(self, cells: Cells) -> Any:
        return _completion_in(cells[self.label.column])

    def tokenize(
        self, batches: Iterable[pa.Table], tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Iterator[tuple[pa.Table, Numbers]]:
        if not tokenizer.chat_template:
            raise ValueError("label.messages: the tokenizer has no chat template; choose a model for conversations")
        return _tokenize(batches, Prompts(tokenizer, self.entry.template), json.loads, max_length)


def _tokenize(
    batches: Iterable[pa.Table], prompts: Prompts, turns: Callable[[str], list[Message]], max_length: int
) -> Iterator[tuple[pa.Table, Numbers]]:
    """Yield the tokens of examples that fit into the length, and lengths; `turns` returns the messages of a prompt."""
    for batch in batches:
        rows = list[dict[str, Any]]()
        lengths = list[int]()
        for text, answer in zip(batch["text"].to_pylist(), batch[EXPECTED].to_pylist(), strict=True):
            example = prompts.example(turns(text), answer)
            if example.answer >= max_length:  # at least one token of the prompt must fit
                continue
            lengths.append(len(example.ids))
            row = {
                "input_ids": example.ids[-max_length:],
                "length": min(max_length, len(example.ids)),
                "label": example.labels[-max_length:],
                PROMPT: text,
                EXPECTED: answer,
            }
            rows.append(row)
        yield pa.Table.from_pylist(rows, TOKENS), np.array(lengths, int)


def _completion_in(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = plain_text(value)
    return text_in(value)


class CompletionHead(Head):
    """The unchanged head of a language model; outputs are the loss of each example's completion."""

    peft_task = "CAUSAL_LM"
    auto_class = "AutoModelForCausalLM"
    output_columns = ("label",)
    generates = True

    @classmethod
    def find_misfit(cls, model: Any, labels: Sequence[str] | None) -> str:
        if model.get_base_model().can_generate():
            return ""
        return "kind: the model writes no text"

    @classmethod
    def misfit_of_bank(cls, folder: Path) -> str:
        return f"a bank of adapters that write; it answers by: lsr serve {folder}"

    def fields(self) -> dict[str, Any]:
        return {}

    @classmethod
    def collator(cls, tokenizer: "PreTrainedTokenizerBase") -> Any:
        from transformers import DataCollatorForSeq2Seq

        padded = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORE_INDEX)

        def collate(features: Any) -> dict[str, "Tensor"]:
            if not isinstance(features, Mapping):
                features = {key: [example[key] for example in features] for key in ("input_ids", "label")}
            pairs = zip(features["input_ids"], features["label"], strict=True)
            return dict(padded([{"input_ids": ids, "label": labels} for ids, labels in pairs]))

        return collate

    @classmethod
    def outputs(cls, model: "PreTrainedModel", batch: Mapping[str, "Tensor"]) -> "Tensor":  # (examples, 2)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return cls.evaluate_batch(model(**inputs).logits, batch["labels"])

    @classmethod
    def evaluate_batch(cls, logits: "Tensor", labels: "Tensor") -> "Tensor":  # (examples, 2)
        """Return the summed loss over the completion tokens of each example, in nats, and their number."""
        import torch

        wanted = labels[:, 1:]
        sums: list[Tensor] = []
        for outputs, tokens in zip(logits, wanted, strict=True):  # one by one: a second copy of all logits is large
            loss = torch.nn.functional.cross_entropy(
                outputs[:-1].float(),
                tokens,
                ignore_index=IGNORE_INDEX,
                reduction="sum",
            )
            sums.append(loss)
        counts = (wanted != IGNORE_INDEX).sum(dim=1).float()
        return torch.stack([torch.stack(sums), counts], dim=1)


class CompletionScoring(Scoring):
    """Scores generated texts against expected ones or, without texts, by the loss."""

    @staticmethod
    def answers(model: Answering[Answers_co]) -> Answers_co:
        return model.by_texts()

    @property
    def decides(self) -> str:
        return LOSS

    def predict(self, outcome: Outcome) -> Numbers:
        """Return the entry's first metric for each text, in [0, 1]."""
        return compare(self.entry.metrics[0], cast("Generated", outcome).texts, outcome.labels)

    def extract_targets(self, labels: Numbers, groups: Groups) -> Numbers:
        return np.ones(len(labels), int)

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        base = cast("Generated", outcome).base_outputs
        assert base is not None
        loss = mean_loss(*outcome.outputs.numpy().T)
        return loss, mean_loss(*base.numpy().T)

    def scores(self, outcome: Outcome) -> Scores:
        loss = mean_loss(*outcome.outputs.double().numpy().T)
        if not isinstance(outcome, Generated):
            return {LOSS: -loss}
        scores = Scores()
        for name in self.entry.metrics:
            each = compare(name, outcome.texts, outcome.labels)
            scores[name] = float(each.mean())
        return scores | {"loss": loss}

    def metrics(self, outcome: Outcome, resamples: int) -> Scores:
        from pipeline.tasks import scores

        written = cast("Generated", outcome)
        metrics = Scores()
        for name in self.entry.metrics:
            each = compare(name, written.texts, outcome.labels)
            base = compare(name, written.base_texts, outcome.labels)
            metrics[name] = float(each.mean())
            metrics[f"{name}_baseline"] = float(base.mean())
            metric = "accuracy" if name == "exact_match" else name
            metrics |= name_interval(name, scores.interval(metric, each, np.ones(len(each)), resamples))
        sums, counts = outcome.outputs.double().numpy().T
        ends = scores.bootstrap(lambda counts, sums: mean_loss(sums, counts), sums, counts, resamples)
        loss, baseline = self.losses(outcome)
        return {
            "score": metrics[self.entry.metrics[0]],
            **metrics,
            "loss": loss,
            **name_interval("loss", ends),
            "loss_baseline": baseline,
            "examples": len(outcome.labels),
        }

    def table(self, outcome: Outcome) -> Columns:
        texts = list(cast("Generated", outcome).texts)
        is_right = compare("exact_match", texts, outcome.labels)
        right = ["yes" if is_equal else "no" for is_equal in is_right]
        return {
            "said": texts,
            "right": right,
            "actual_group": ["yes"] * len(right),
            "predicted_group": right,
        }


class CompletionDescription(Description):
    """Describes generated and expected texts."""

    hub_task = "text-generation"
    baseline = "without the adapter"
    baseline_name = "the model without the adapter"
    baseline_word = "base"
    first_change = "model=smollm2"  # a model that generates, as others do
    scored_by = "what is written is scored by the stage evaluate"

    @classmethod
    def to_columns(cls, outputs: Any, labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        return {"answer": list(outputs)}  # texts

    def task_info(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        task_info = super().task_info(tokenizer)
        if tokenizer is not None:
            prompts = Prompts(tokenizer, self.entry.template)
            task_info["template"] = prompts.template
            task_info["stop_token_ids"] = prompts.stop_token_ids
        return task_info

    def predicts(self) -> str:
        return "its completion"

    def results(self, metrics: Mapping[str, float], table: ReadTable) -> Iterable[Line]:
        loss = f"{metrics['loss']:.4g} per token of a completion"
        yield "loss", f"{loss}; {metrics['loss_baseline']:.4g} {self.baseline}"
        for row in table(artifacts.EVALUATE_PREDICTIONS)[:SHOWN].itertuples():
            prompt = textwrap.shorten(self.show_prompt(row.prompt), LONGEST_SHOWN)
            shown = f"{prompt} -> {textwrap.shorten(row.said, LONGEST_SHOWN) or '(nothing)'}"
            if row.right == "no":
                shown += f" (expected: {textwrap.shorten(row.expected, LONGEST_SHOWN)})"
            yield "e.g.", shown

    @classmethod
    def show_prompt(cls, prompt: str) -> str:
        """Return what stands for a prompt on the screen."""
        return prompt


class ConversationDescription(CompletionDescription):
    """Describes generated answers of the assistant."""

    def predicts(self) -> str:
        return "what the assistant says next"

    @classmethod
    def show_prompt(cls, prompt: str) -> str:
        """Return the last message, which the assistant answers; a prompt is all messages as JSON."""
        messages: list[Message] = json.loads(prompt)
        return messages[-1]["content"]


def to_user_message(prompt: str) -> list[Message]:
    """Wrap a prompt as a message of the user."""
    return [{"role": "user", "content": prompt}]


def mean_loss(sums: Numbers, counts: Numbers) -> float:
    """Return the loss per token."""
    return float(sums.sum() / counts.sum())


def compare(metric: str, texts: Sequence[str], expected: Sequence[str] | Numbers) -> Numbers:
    """Score each text: exact match up to surrounding whitespace, or ROUGE-L.

    ROUGE-L is the F-measure of the longest common subsequence of words, ignoring case and punctuation: Lin, "ROUGE: a
    package for automatic evaluation of summaries", 2004.
    """
    score = is_equal if metric == "exact_match" else _rouge_l
    pairs = zip(texts, expected, strict=True)
    return np.array([score(text, right) for text, right in pairs], float)


def is_equal(text: str, expected: str) -> bool:
    """Return whether a text equals the expected one up to surrounding whitespace."""
    return text.strip() == expected.strip()


def _rouge_l(text: str, expected: str) -> float:
    from rapidfuzz.distance import Indel

    words = _words(text)
    expected_words = _words(expected)
    if not words and not expected_words:
        return 0.0
    return Indel.normalized_similarity(words, expected_words)


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _prompt_and_answer(value: Any) -> tuple[str, str]:
    # A conversation is split into all but its last message, as JSON, and the content of that message.
    messages = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    if len(messages) < 2 or not all(map(_is_message, messages)):
        raise ValueError("no conversation; needed: a list of at least two messages with role and content")
    turns = list[Message]()
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        content = message["content"]
        if role not in ROLES:
            raise ValueError(f"message {number}: no role {role!r}{nearest(role, ROLES)}; {', '.join(ROLES)}")
        if is_missing(content) or not isinstance(content, str):
            raise ValueError(f"message {number}: content must be a text that is not empty, got {content!r}")
        turns.append({"role": role, "content": content})
    *before, last = turns
    if last["role"] != "assistant":
        raise ValueError(f"the conversation must end with the assistant, got {last['role']}")
    return json.dumps(before, ensure_ascii=False), last["content"]


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()
