"""All of params.yaml, and what each stage sees of it.

DVC knows which keys a stage depends on from dvc.yaml alone; a test holds the two together.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.params.rows import DatasetRow, ModelRow, Row
from pipeline.params.sections import (
    AdapterParams,
    EvaluateParams,
    FullParams,
    HeadParams,
    LoraParams,
    LsrParams,
    Section,
    TokenizeParams,
    TrainParams,
)

PARAMS = Path("params.yaml")
TABLES: dict[str, tuple[Path, type[Row]]] = {
    "data": (Path("pipeline/datasets.yaml"), DatasetRow),
    "model": (Path("pipeline/models.yaml"), ModelRow),
}
ADAPTERS = ("lsr", "lora", "full", "head")

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", description="DVC splits keys on dots, so a word has none")]


class Params(Section):
    """All of params.yaml."""

    data: Word
    model: Word
    adapter: Literal["lsr", "lora", "full", "head"]
    seed: int = Field(ge=0, lt=2**32)
    tokenize: TokenizeParams
    train: TrainParams
    evaluate: EvaluateParams
    lsr: LsrParams
    lora: LoraParams
    full: FullParams
    head: HeadParams

    @field_validator("evaluate")
    @classmethod
    def _an_export_as_lora_needs_lsr(cls, evaluate: EvaluateParams, info: ValidationInfo) -> EvaluateParams:
        adapter = info.data.get("adapter", "lsr")  # what is no adapter at all is reported as such
        if "lora" in evaluate.export and adapter != "lsr":
            raise ValueError(
                f"export: lora is for adapter lsr, and the adapter is {adapter}; allowed here are [] and [merged]"
            )
        return evaluate


class View(Section):
    """What one stage sees. dvc.yaml declares the same: DECLARED says how a field that is no key is written there."""


class InputsView(View):
    """Of stages/inputs.py."""

    data: Word
    model: Word
    dataset: DatasetRow
    base_model: ModelRow


class TokenizeView(View):
    """Of stages/tokenize.py."""

    data: Word
    model: Word
    tokenize: TokenizeParams
    dataset: DatasetRow
    base_model: ModelRow


class FactorizeInitView(View):
    """Of stages/factorize_init.py. It needs the data row for the number of labels: the head belongs to the adapter."""

    data: Word
    model: Word
    adapter: str
    seed: int
    section: AdapterParams
    dataset: DatasetRow
    base_model: ModelRow


class TrainView(View):
    """Of stages/train.py. What it leaves says how long the texts were."""

    data: Word
    model: Word
    adapter: str
    seed: int
    tokenize: TokenizeParams
    train: TrainParams
    section: AdapterParams
    dataset: DatasetRow
    base_model: ModelRow


class EvaluateView(View):
    """Of stages/evaluate.py. The adapter folder says all that is needed of the adapter."""

    data: Word
    model: Word
    evaluate: EvaluateParams
    dataset: DatasetRow
    base_model: ModelRow


DECLARED = {
    "section": "${adapter}",
    "dataset": f"{TABLES['data'][0]}:${{data}}",
    "base_model": f"{TABLES['model'][0]}:${{model}}",
}
