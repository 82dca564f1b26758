"""The schema of params.yaml, and the view of each stage.

DVC learns only from dvc.yaml which keys a stage depends on; a test keeps the two in agreement.
"""

from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, SerializeAsAny, StrictInt, StrictStr, ValidationInfo, field_validator, model_validator

from pipeline.core.errors import nearest
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.sections import (
    EvaluateParams,
    FullParams,
    HeadOnlyParams,
    LsrParams,
    Method,
    MethodParams,
    RegressionParams,
    Section,
    TenantsParams,
    TokenizeParams,
    TrainParams,
)
from pipeline.params.sources import ModelEntry, Named, RegistryEntry, Slug

PARAMS = Path("params.yaml")


class Table(NamedTuple):
    """A registry: the entries that come with the pipeline, and the user's own."""

    built_in: Path
    own: Path  # the user's registry, on whose folder the stage tokenize depends; it need not exist
    schema: type[RegistryEntry]


REGISTRIES = {
    "data": Table(Path("pipeline/datasets.yaml"), Path("data/datasets.yaml"), DatasetEntry),
    "model": Table(Path("pipeline/models.yaml"), Path("models/models.yaml"), ModelEntry),
}


class Params(Section):
    """All of params.yaml. Every key that is not a field of this class is a method's section, with its `type`."""

    data: Slug
    model: Named
    seed: StrictInt = Field(ge=0, lt=2**32)
    tokenize: TokenizeParams
    train: TrainParams
    tenants: TenantsParams
    lsr: LsrParams
    full: FullParams
    head_only: HeadOnlyParams
    regression: RegressionParams = RegressionParams()
    methods: dict[Slug, Method]
    adapter: StrictStr  # the key of a section
    evaluate: EvaluateParams

    @model_validator(mode="before")
    @classmethod
    def _methods_apart(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        own = content.keys() & cls.model_fields.keys() - {"methods"}
        methods = {key: section for key, section in content.items() if key not in own}
        return {**{name: content[name] for name in own}, "methods": methods}

    @field_validator("adapter")
    @classmethod
    def _is_a_section(cls, adapter: str, info: ValidationInfo) -> str:
        keys = [
            "full",
            "head_only",
            "lsr",
            "regression",
            *(key for key in info.context or () if key not in cls.model_fields),
        ]
        if adapter not in keys:
            known = f"sections: {', '.join(keys)}; for another method of PEFT, set peft.type"
            raise ValueError(f"no such section{nearest(adapter, keys)}; {known}")
        return adapter

    @property
    def sections(self) -> dict[str, MethodParams]:
        """The sections of all methods by their keys."""
        own: dict[str, MethodParams] = {
            "lsr": self.lsr,
            "full": self.full,
            "head_only": self.head_only,
            "regression": self.regression,
        }
        return own | self.methods

    @model_validator(mode="after")
    def _set_keys_of_sections(self) -> Self:
        for key, section in self.sections.items():
            section._key = key
        return self


class View(Section):
    """The view of a stage: the keys that dvc.yaml declares, and the chosen entries."""

    data: Slug
    model: Named
    dataset: DatasetEntry
    base_model: ModelEntry


class TokenizeView(View):
    """The view of stages/tokenize.py."""

    tokenize: TokenizeParams

    @property
    def standardizes_labels(self) -> bool:
        """Whether numbers are learned in standard deviations from their mean."""
        return self.dataset.predicts_number and self.tokenize.standardize_labels == "auto"


class FactorizeInitView(TokenizeView):
    """The view of stages/factorize_init.py. The data set entry determines the number of labels of the head."""

    adapter: str
    seed: int
    tenants: TenantsParams
    section: SerializeAsAny[MethodParams]  # serialized with all fields of the method's own section


class TrainView(FactorizeInitView):
    """The view of stages/train.py: all that a training run and its adapter depend on. task.json records max_length."""

    train: TrainParams


class EvaluateView(View):
    """The view of stages/evaluate.py. Everything else about the adapter is in its folder."""

    evaluate: EvaluateParams
    refit: bool  # `train.refit`: whether the regression baseline learns from validation, too
