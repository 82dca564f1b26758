"""What answers the rows of a batch: the base class of a bank in torch and of graphs, with the checks of texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lsr_onnx.answers import Labels
from lsr_onnx.errors import HALVES, InputError, wrap_errors
from lsr_onnx.examples import Example
from lsr_onnx.rows import ReplacedError, Result, TokenizedText, Version, Wanted
from lsr_onnx.task import NO_TEMPLATE, ROLES
from lsr_onnx.truncation import Inputs

MAX_TEXTS = 64  # maximum number of texts of a request
# Characters per token. Before anything is tokenized, a text that must not be truncated is refused above so many, and a
# request above what all its texts could have if none were truncated.
CHARACTERS = 20
# Names of what a text of a request must be:
TEXT = "a text"
PAIR = "a list of two texts, each"
PROMPT = f"a text, or a list of messages with role and content, where role is {' or '.join(ROLES)},"


class Encoded(NamedTuple):
    """A tokenized text."""

    ids: Sequence[int]  # all of its tokens
    cut: Callable[[int], Inputs]  # returns its inputs, truncated to so many tokens


class PreparedFit(ABC):
    """A fit of a tenant's rows to labeled texts, in steps that a server makes where they keep nobody waiting."""

    batches: Sequence[Sequence[int]]  # numbers of the texts that are read together
    tokens: int  # number of tokens of all texts
    outputs: int  # labels

    @abstractmethod
    def read(self, batch: Sequence[int]) -> Any:
        """Return the features of these texts; the bank must not change meanwhile."""

    @abstractmethod
    def finish(self, parts: Sequence[Any], check_time: Callable[[], None]) -> dict[str, Any]:
        """Fit the rows to the features of all batches, and describe the fit; `check_time` may raise an error."""

    @abstractmethod
    def add(self) -> str:
        """Add or replace the tenant, when the fit is finished; return what answers: "fit", "group" or "before"."""


class Runner(ABC):
    """Turns texts into rows and answers them.

    `bank` has `names` and `versions`, the present version of each adapter. `tokens` limits a text or a prompt;
    `max_new_tokens` is 0 unless the base model generates text. If `is_strict`, longer texts are refused, otherwise
    truncated.
    """

    can_change = False  # whether adapters can be added to the bank and removed
    adapter_files: Sequence[str] = ()  # names of the files of an adapter that may be uploaded
    stop_token_ids: Sequence[int] = ()  # end a completion unless the adapter has others

    def __init__(
        self,
        bank: Any,
        tokenizer: Any,
        tokens: int,
        max_new_tokens: int,
        *,
        is_strict: bool = False,
    ) -> None:
        self.bank = bank
        self.is_strict = is_strict
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.max_new_tokens = max_new_tokens
        self.field = "prompts" if max_new_tokens else "texts"  # name of the request's field, for messages

    def rows(
        self,
        name: str,
        version: Version,
        texts: Sequence[Any],
        wanted: Wanted | None = None,
        *,
        template: str | None = None,
        names: Sequence[str] = (),
        is_strict: bool = False,
    ) -> list[TokenizedText]:
        """Tokenize texts, pairs of texts (if the adapter's task info has two columns) or prompts into rows.

        A prompt is a text or, if the task info has a template, a conversation: a list of messages. `template` overrides
        the task info's. `names` replace the names of the texts in errors. A text with more tokens than the adapter
        reads is truncated as in `pipeline.predict`, a prompt on the left, unless this or the runner `is_strict`.

        Raises:
            InputError: if a text is not valid; names the first one.
        """
        task_info = version.task_info
        most = self.limit(version)
        longest = most if is_strict or self.is_strict else None
        names = self.name_texts(len(texts), names)
        encoded = self.encode(version, texts, names, longest, template or task_info.get("template") or NO_TEMPLATE)
        read_each(names, [text.ids for text in encoded], partial(check_tokens, longest))
        inputs = read_each(names, encoded, lambda text: text.cut(most))
        if wanted is not None:
            wanted = wanted._replace(stop_token_ids=tuple(task_info.get("stop_token_ids") or self.stop_token_ids))
        rows = list[TokenizedText]()
        for text, own in zip(encoded, inputs, strict=True):
            rows.append(TokenizedText(name, version, own, wanted, is_truncated=len(text.ids) > most))
        return rows

    @abstractmethod
    def encode(
        self,
        version: Version,
        texts: Sequence[Any],
        names: Sequence[str],
        longest: int | None,
        template: str,
    ) -> list[Encoded]:
        """Check texts by `read_texts` and tokenize them; `template` is that of prompts.

        Raises:
            InputError: if a text is not valid; names the first one.
        """

    @abstractmethod
    def run(self, rows: Sequence[TokenizedText]) -> list[Result]:
        """Return the result of each row of a batch."""

    def read_adapter(self, folder: Path) -> Any:
        """Read the files of an untrusted adapter.

        Raises:
            InputError: if it does not fit.
        """
        raise NotImplementedError

    def find_version(self, name: str) -> Version | None:
        """Return the present version of an adapter, or of the entry of a group; None if there is neither."""
        return self.bank.versions.get(name)

    def name_entry(self, labels: Labels) -> str:
        """Return the name of the entry for tenants with these labels, in any order; None is for numbers."""
        raise NotImplementedError

    def add_tenant(self, name: str, labels: Labels) -> int:
        """Add or replace a tenant with the rows of its group, and return the number of other tenants in it.

        Raises:
            InputError: if no tenant has these labels, or the bank cannot add tenants.
        """
        raise NotImplementedError

    def prepare_fit(self, name: str, examples: Sequence[Example]) -> PreparedFit:
        """Check and tokenize labeled texts for a fit of a tenant's rows.

        Raises:
            InputError: if they do not fit the bank.
        """
        raise NotImplementedError

    def answers(self, rows: Sequence[TokenizedText]) -> list[Result | Exception]:
        """Return the result of each row: a ReplacedError if its version is not the present one any more.

        If a batch fails, for example by lack of memory, its halves run separately, so that only the row that causes the
        error gets it. Adapters must not change meanwhile.
        """
        current = [row for row in rows if self.find_version(row.adapter) is row.version]
        answers = iter(self._answers(current))
        results = list[Result | Exception]()
        for row in rows:
            is_current = self.find_version(row.adapter) is row.version
            results.append(next(answers) if is_current else ReplacedError())
        return results

    def _answers(self, rows: Sequence[TokenizedText]) -> list[Result | Exception]:
        if not rows:
            return []
        try:
            return [*self.run(rows)]
        except Exception as error:
            if len(rows) == 1:
                return [error]
        half = len(rows) // 2
        return self._answers(rows[:half]) + self._answers(rows[half:])

    def limit(self, version: Version) -> int:
        """Return how many tokens of a text an adapter reads."""
        return min(self.tokens, version.task_info.get("max_length") or self.tokens)

    def read_texts(
        self,
        form: str,
        texts: Sequence[Any],
        names: Sequence[str],
        longest: int | None,
    ) -> list[list[str]]:
        """Check texts before they are tokenized, and return the parts of each.

        `longest` is the number of tokens above which a text is refused; None if it is truncated.

        Raises:
            InputError: if a text is not valid, or all have more characters together than a request could have if none
                were truncated.
        """
        most = None if longest is None else CHARACTERS * longest
        parts = read_each(names, texts, partial(read_parts, form, most))
        characters = CHARACTERS * self.tokens * MAX_TEXTS
        if longest is None and sum(len(part) for own in parts for part in own) > characters:
            raise InputError(f"{self.field}: over {characters:,} characters together; at most that are read")
        return parts

    def name_texts(self, count: int, names: Sequence[str]) -> Sequence[str]:
        """Return the names of texts in errors."""
        return names or [f"{self.field}[{number}]" for number in range(count)]


def form_of(version: Version) -> str:
    """Return what a text to classify must be."""
    return PAIR if len(version.task_info.get("columns") or ()) == 2 else TEXT


def read_each(
    names: Sequence[str],
    values: Sequence[Any],
    read: Callable[[Any], Any],
) -> list[Any]:
    """Apply `read` to each text; its errors name the text.

    Raises:
        InputError: in place of a ValueError.
    """
    results = []
    for name, value in zip(names, values, strict=True):
        with wrap_errors(name, ValueError):
            results.append(read(value))
    return results


def read_parts(form: str, characters: int | None, text: Any) -> list[str]:
    """Return the texts of a request; for a conversation all roles and contents, since templates may repeat both.

    Raises:
        ValueError: if it has another form, a text is blank, or the texts have more than `characters`.
    """
    parts = [text]
    if form == PAIR:
        is_pair = isinstance(text, list) and len(text) == 2
        parts = text if is_pair else []
    elif form == PROMPT and isinstance(text, list):
        parts = [part for message in text for part in _parts_of_message(message)]
    if not parts or not all(map(_is_text, parts)):
        raise ValueError(f"needed: {form} of whole Unicode characters, not blank")
    if characters is not None and sum(map(len, parts)) > characters:
        raise ValueError(f"over {characters:,} characters; at most that are read")
    return parts


def _parts_of_message(message: Any) -> list[Any]:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        return [None]
    role = message["role"]
    return [role, message["content"]] if role in ROLES else [None]


def _is_text(part: Any) -> bool:
    if not isinstance(part, str) or HALVES.search(part):
        return False
    return bool(part.strip())


def check_tokens(most: int | None, ids: Sequence[int]) -> None:
    """Check the number of tokens of a text.

    Raises:
        ValueError: if there are none, or over `most`; None allows any number.
    """
    count = len(ids)
    if count == 0:  # a row of padding alone
        raise ValueError("has no token; needed: a text of which the tokenizer makes some")
    if most is not None and count > most:
        raise ValueError(f"{count} tokens; this adapter reads at most {most}")
