"""The schema of params.yaml, and the part that each stage sees.

DVC learns only from dvc.yaml which keys a stage depends on; a test keeps the two in agreement.
"""

from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, SerializeAsAny, StrictInt, StrictStr, ValidationInfo, field_validator, model_validator

from pipeline.core.errors import nearest
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.sections import (
    EvaluateParams,
    FullParams,
    HeadParams,
    LsrParams,
    Method,
    MethodParams,
    RegressionParams,
    Section,
    TenantsParams,
    TokenizeParams,
    TrainParams,
)
from pipeline.params.sources import ModelRow, Named, TableRow, Word

PARAMS = Path("params.yaml")


class Table(NamedTuple):
    """The rows that a word of params.yaml can name: those that come with the pipeline, and its user's own."""

    built_in: Path
    own: Path  # the user's registry, on whose folder the stage tokenize depends; it need not exist
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
    tenants: TenantsParams
    lsr: LsrParams
    full: FullParams
    head: HeadParams
    regression: RegressionParams = RegressionParams()
    methods: dict[Word, Method]
    adapter: StrictStr  # the word of a section
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
        words = [
            "full",
            "head",
            "lsr",
            "regression",
            *(word for word in info.context or () if word not in cls.model_fields),
        ]
        if adapter not in words:
            known = f"sections: {', '.join(words)}; for another method of PEFT, set peft.type"
            raise ValueError(f"no such section{nearest(adapter, words)}; {known}")
        return adapter

    @property
    def sections(self) -> dict[str, MethodParams]:
        """The sections of all methods, by the word that selects them."""
        own: dict[str, MethodParams] = {
            "lsr": self.lsr,
            "full": self.full,
            "head": self.head,
            "regression": self.regression,
        }
        return own | self.methods

    @model_validator(mode="after")
    def _sections_know_their_words(self) -> Self:
        for word, section in self.sections.items():
            section._word = word
        return self


class View(Section):
    """The part that one stage sees: the same that dvc.yaml declares, and the rows. All stages need the rows."""

    data: Word
    model: Named
    dataset: DatasetRow
    base_model: ModelRow


class TokenizeView(View):
    """Of stages/tokenize.py."""

    tokenize: TokenizeParams


class FactorizeInitView(View):
    """Of stages/factorize_init.py. The data row says how many labels the head has, which belongs to the adapter."""

    adapter: str
    seed: int
    tokenize: TokenizeParams
    tenants: TenantsParams
    section: SerializeAsAny[MethodParams]  # serialized with all fields of the method's own section


class TrainView(FactorizeInitView):
    """Of stages/train.py, and all that a training and its adapter depend on. Its task.json records max_length."""

    train: TrainParams


class EvaluateView(View):
    """Of stages/evaluate.py. The adapter's folder has everything else about the adapter."""

    evaluate: EvaluateParams
