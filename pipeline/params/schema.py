"""The schema of params.yaml, and the part that each stage sees.

DVC learns only from dvc.yaml which keys a stage depends on; a test keeps the two in agreement.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, StrictInt, ValidationInfo, create_model, field_validator

from pipeline.params.methods import ADAPTERS, MethodParams
from pipeline.params.rows import DatasetRow, ModelRow, Named, Word
from pipeline.params.sections import EvaluateParams, Section, TokenizeParams, TrainParams
from pipeline.params.sources import Row

PARAMS = Path("params.yaml")
TABLES: dict[str, tuple[Path, type[Row]]] = {
    "data": (Path("pipeline/datasets.yaml"), DatasetRow),
    "model": (Path("pipeline/models.yaml"), ModelRow),
}


class Common(Section):
    """Everything in params.yaml except the sections of the methods."""

    data: Word
    model: Named
    adapter: str
    seed: StrictInt = Field(ge=0, lt=2**32)
    tokenize: TokenizeParams
    train: TrainParams
    evaluate: EvaluateParams

    @field_validator("evaluate")
    @classmethod
    def _the_method_has_the_forms_to_export(cls, evaluate: EvaluateParams, info: ValidationInfo) -> EvaluateParams:
        method = ADAPTERS.get(info.data.get("adapter", ""))  # an unknown adapter has its own error
        refused = [form for form in evaluate.export if method is not None and form not in method.exports]
        if method is not None and refused:
            able = " or ".join(word for word, section in ADAPTERS.items() if refused[0] in section.exports)
            raise ValueError(
                f"export: {refused[0]} is for adapter {able}, and the adapter is {method.word}; "
                f"allowed here are [] and [{', '.join(method.exports)}]"
            )
        return evaluate


def with_methods() -> type[Common]:
    """Return the model of the whole params.yaml: the common part and the section of each method in ADAPTERS."""
    fields: dict[str, Any] = {word: (section, ...) for word, section in ADAPTERS.items()}
    fields["adapter"] = (Literal.__getitem__(tuple(ADAPTERS)), ...)
    return create_model("Params", __base__=Common, **fields)


Params = with_methods()
Chosen = SerializeAsAny[MethodParams]  # with all fields of the method's own section


class View(Section):
    """The part that one stage sees. dvc.yaml declares the same; DECLARED maps fields that are not keys to it."""


class TokenizeView(View):
    """Of stages/tokenize.py. The frames of another adapter are files too, and pooled rows may name some."""

    data: Word
    model: Named
    tokenize: TokenizeParams
    dataset: DatasetRow
    base_model: ModelRow
    frames: str
    pooled: dict[str, DatasetRow]


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
    pooled: dict[str, DatasetRow]


class TrainView(View):
    """Of stages/train.py. Its task.json records max_length."""

    data: Word
    model: Named
    adapter: str
    seed: int
    tokenize: TokenizeParams
    train: TrainParams
    section: Chosen
    dataset: DatasetRow
    base_model: ModelRow


class EvaluateView(View):
    """Of stages/evaluate.py. The adapter's folder has everything else about the adapter."""

    data: Word
    model: Named
    evaluate: EvaluateParams
    dataset: DatasetRow
    base_model: ModelRow


DECLARED = {
    "section": "${adapter}",
    "dataset": f"{TABLES['data'][0]}:${{data}}",
    "frames": "lsr.frames",
    # A list cannot name keys, nor can a folder or repository without a row: they are locked by content, which the stage
    # `tokenize` records.
    "base_model": "model",
    "pooled": "lsr.frames_from",
}
