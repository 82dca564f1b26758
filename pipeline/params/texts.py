"""The schema of texts in a row of data: templates with columns in braces, and parts of columns to mark."""

import re
from typing import Self

from pydantic import Field, model_validator

from pipeline.params.sources import Row

FIELD = re.compile(r"\{([^{}]+)\}")  # of a template: a column in braces
CHOICE = "choice"  # the template field that stands for the current choice


def fields(entry: str) -> tuple[str, ...]:
    """Return the columns that an entry of `text` names: those in braces or, if there are none, the entry itself."""
    return tuple(FIELD.findall(entry)) or (entry,)


def is_template(entry: str) -> bool:
    """Return whether an entry of `text` is more than a column name."""
    return fields(entry) != (entry,)


class Mark(Row):
    """A part of a text to put between signs, such as the word of WiC and the two spans of WSC."""

    column: str = Field(description="of the text")
    sign: str = Field("*", min_length=1)
    start: str | None = Field(None, description="column of the part's first character, counted from 0")
    end: str | None = Field(None, description="column of the character after the part")
    word: str | None = Field(None, description="column of the part's first word, counted from 0")
    says: str | None = Field(None, description="column of the part's own text")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return tuple(name for name in (self.column, self.start, self.end, self.word, self.says) if name is not None)

    @model_validator(mode="after")
    def _is_by_characters_or_by_words(self) -> Self:
        given = [name for name in ("start", "end", "word", "says") if getattr(self, name) is not None]
        if given not in (["start", "end"], ["word", "says"]):
            raise ValueError(f"a mark needs start and end, or word and says, got {' and '.join(given) or 'neither'}")
        return self
