"""The schema of params.yaml, and the part that each stage sees.

DVC learns only from dvc.yaml which keys a stage depends on; a test keeps the two in agreement.
"""

from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, SerializeAsAny, StrictInt, StrictStr, ValidationInfo, field_validator, model_validator

from pipeline.core.errors import nearest
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.methods import FullParams, HeadParams, LsrParams, Method, MethodParams, own_loop, peft_type
from pipeline.params.model_row import ModelRow
from pipeline.params.sections import EvaluateParams, Named, Section, TokenizeParams, TrainParams, Word
from pipeline.params.sources import TableRow

PARAMS = Path("params.yaml")


class Table(NamedTuple):
    """The rows that a word of params.yaml can name: those that come with the pipeline, and its user's own."""

    built_in: Path
    own: Path  # in a folder on which the stage tokenize depends; it need not be there
    schema: type[TableRow]


TABLES = {
    "data": Table(Path("pipeline/datasets.yaml"), Path("data/datasets.yaml"), DatasetRow),
    "model": Table(Path("pipeline/models.yaml"), Path("models/models.yaml"), ModelRow),
}


class Params(Section):
    """All of params.yaml. Every key that is no field of this class is the section of a method, named by its `type`."""

    data: Word
    model: Named
    seed: StrictInt = Field(ge=0, lt=2**32)
    tokenize: TokenizeParams
    train: TrainParams
    lsr: LsrParams
    full: FullParams
    head: HeadParams
    methods: dict[Word, Method]
    adapter: StrictStr  # it selects one of the sections above, so it is validated after them
    evaluate: EvaluateParams

    @model_validator(mode="before")
    @classmethod
    def _methods_apart(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        own = content.keys() & cls.model_fields.keys() - {"methods"}
        methods = {word: section for word, section in content.items() if word not in own}
        return {**{name: content[name] for name in own}, "methods": methods}

    @field_validator("adapter")
    @classmethod
    def _is_a_section(cls, adapter: str, info: ValidationInfo) -> str:
        if "methods" in info.data:
            words = ["full", "head", "lsr", *info.data["methods"]]
            if adapter not in words and (kind := peft_type(adapter)):
                raise ValueError(
                    f"no such section; a method of PEFT goes by adapter: peft and peft.type: {own_loop(kind)}"
                )
            if adapter not in words:
                raise ValueError(f"no such section{nearest(adapter, words)}; sections: {', '.join(words)}")
        return adapter

    @property
    def sections(self) -> dict[str, MethodParams]:
        """The sections of all methods, by the word that selects them."""
        return {"lsr": self.lsr, "full": self.full, "head": self.head, **self.methods}

    @model_validator(mode="after")
    def _sections_know_their_words(self) -> Self:
        for word, section in self.sections.items():
            section._word = word
        return self


Chosen = SerializeAsAny[MethodParams]  # with all fields of the method's own section


class View(Section):
    """The part that one stage sees. dvc.yaml declares the same; DECLARED maps fields that are not keys to it."""


class TokenizeView(View):
    """Of stages/tokenize.py."""

    data: Word
    model: Named
    tokenize: TokenizeParams
    dataset: DatasetRow
    base_model: ModelRow


class FactorizeInitView(View):
    """Of stages/factorize_init.py. It needs the data row for the number of labels: the head belongs to the adapter."""

    data: Word
    model: Named
    adapter: str
    seed: int
    tokenize: TokenizeParams
    section: Chosen
    dataset: DatasetRow
    base_model: ModelRow


class TrainView(FactorizeInitView):
    """Of stages/train.py, and all that a training and its adapter depend on. Its task.json records max_length."""

    train: TrainParams


class EvaluateView(View):
    """Of stages/evaluate.py. The adapter's folder has everything else about the adapter."""

    data: Word
    model: Named
    evaluate: EvaluateParams
    dataset: DatasetRow
    base_model: ModelRow


DECLARED = {
    "section": "${adapter}",
    # The stage `tokenize` depends on the tables as files and records the chosen rows, on which all other stages depend.
    # As params, each of their keys would be a column of `dvc exp show`.
    "dataset": "data",
    "base_model": "model",
}
