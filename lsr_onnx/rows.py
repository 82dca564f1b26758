"""A row of a batch: a text of a request in tokens, what is wanted of it, and its result."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from lsr_onnx.answers import Answer
from lsr_onnx.truncation import Inputs


class Version(Protocol):
    """The metadata of an adapter; replacing the adapter makes a new version."""

    @property
    def task_info(self) -> dict[str, Any]:
        """The contents of its task.json."""

    @property
    def size(self) -> int:
        """An upper bound of its ranks and labels; the cost of its rows in a batch grows with it."""


class Sampling(NamedTuple):
    """Parameters of sampling: tokens are drawn from the softmax of the logits divided by the temperature."""

    temperature: float  # above 0
    seed: int  # seeds a generator of this row, so that other rows of a batch change nothing
    top_p: float = 1.0  # only the likeliest tokens are drawn, the fewest whose probabilities have at least this sum


class Wanted(NamedTuple):
    """Settings of a completion."""

    max_new_tokens: int
    stop_token_ids: tuple[int, ...] = ()  # each ends it
    stop_texts: Sequence[str] = ()  # likewise; they are not part of the completion
    sampling: Sampling | None = None  # None: the likeliest tokens
    # Called with all of the text that later tokens leave as it is; if a batch fails, again from the beginning.
    listen: Callable[[str], None] | None = None


class Completion(NamedTuple):
    """The text that a language model has generated for a prompt."""

    text: str
    tokens: int  # written, with the one that ended it
    has_stopped: bool  # whether it ended at a stop token or text rather than at the token limit


Result = Answer | Completion | None  # a prediction or a completion; None: not finite


class ReplacedError(Exception):
    """The adapter of a row was replaced or removed after the row was tokenized; it must be tokenized again."""


def _never() -> bool:
    return False


class TokenizedText(NamedTuple):
    """A tokenized text for one version of an adapter: by its columns, length, template and stop tokens."""

    adapter: str
    version: Version
    inputs: Inputs
    wanted: Wanted | None = None  # settings of a completion; None where an adapter predicts
    is_unwanted: Callable[[], bool] = _never  # whether nobody awaits the answer any more: then nothing more is written
    is_truncated: bool = False
