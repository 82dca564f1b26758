"""The model side of a task: head, batches, loss and outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.tasks.calibration import Classified
from pipeline.tasks.task import Numbers, Outcome, Part

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase


class Head(Part, ABC):
    """The head of a model, with its batches and its loss."""

    peft_task = "SEQ_CLS"  # PEFT's task_type
    auto_class = "AutoModelForSequenceClassification"  # class of transformers for a model with this head
    loss_columns: ClassVar[tuple[str, ...]] = ()  # columns of a batch that the loss reads, and the model does not
    output_columns: ClassVar[tuple[str, ...]] = ()  # columns that `outputs` reads, and the model does not
    can_balance = False  # there are classes that a loss can give equal weights
    has_probabilities = False  # whether it has probabilities, which temperatures calibrate
    generates = False  # whether the answer is a text that a language model generates

    @property
    def names(self) -> tuple[str, ...]:
        """The classes or labels in the order of the head's outputs; none if outputs have no names."""
        return ()

    @classmethod
    def width(cls, labels: Sequence[str] | None) -> int:
        """Return the number of outputs: one per label or, if outputs have no names, one."""
        return len(labels or ()) or 1

    @classmethod
    def find_misfit(cls, model: Any, labels: Sequence[str] | None) -> str:
        """Return why a model cannot answer with these labels of task.json; empty if it can."""
        outputs = model.config.num_labels
        if cls.width(labels) == outputs:
            return ""
        return f"labels: {outputs} names are needed, one per output of the head"

    @classmethod
    def misfit_of_bank(cls, folder: Path) -> str:
        """Return why a bank of such adapters cannot answer here; empty if it can."""
        return ""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """Return the fields of the model's configuration that determine its head; empty if it needs no new head."""

    @classmethod
    def collator(cls, tokenizer: "PreTrainedTokenizerBase") -> "DataCollatorWithPadding":
        """Return the collator that makes a batch of examples, padded to the longest one, with an attention mask."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def loss(self) -> "Callable[..., Tensor] | None":
        """Return the loss as a function of outputs, labels and `loss_columns` by name; None for the model's own."""
        return None

    def losses(self, logits: "Tensor", labels: "Tensor") -> "Tensor":  # (examples,)
        """Return the loss of each example, whose tenant has these logits."""
        raise NotImplementedError  # only tenants share rows of a head

    def build_balanced_loss(self, labels: Numbers) -> "Callable[..., Tensor]":
        """Return the loss weighted so that all classes of a split with these labels have equal total weight."""
        raise NotImplementedError  # see `can_balance`

    def select_logits(self, logits: "Tensor", **loss_columns: "Tensor") -> "Tensor":
        """Select the logits that apply to each example, given the batch's columns `loss_columns`."""
        return logits

    def collect_logits(self, outcome: Outcome) -> Sequence[Classified]:
        """Return the logits that temperatures calibrate: one part of all examples, or one per label or tenant."""
        raise NotImplementedError  # see `has_probabilities`

    @classmethod
    def outputs(cls, model: "PreTrainedModel", batch: Mapping[str, "Tensor"]) -> "Tensor":  # (examples, ...)
        """Return the outputs for a batch without labels; all batches have the same shape after the first axis."""
        return model(**batch).logits

    @classmethod
    def evaluate_batch(cls, logits: Any, labels: "Tensor") -> "Tensor":  # (examples, ...)
        """Return the outputs of a batch with labels from which scores are computed, like `outputs`.

        An encoder-decoder also returns the states of its encoder, which no score needs.
        """
        return logits[0] if isinstance(logits, tuple) else logits
