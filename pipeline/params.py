"""The schema of params.yaml and what each stage sees of it.

This is the only module that opens params.yaml. `load(View)` checks the whole file, then hands a stage the fields of its
view and no others. DVC knows which keys a stage depends on from dvc.yaml alone; a test holds the two together.

`python -m pipeline.params` checks the file and prints what would run.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline import mistakes
from pipeline.errors import UserError, nearest
from pipeline.rows import DatasetRow, ModelRow, Row, all_different

PARAMS = Path("params.yaml")
TABLES: dict[str, tuple[Path, type[Row]]] = {
    "data": (Path("pipeline/datasets.yaml"), DatasetRow),
    "model": (Path("pipeline/models.yaml"), ModelRow),
}
ADAPTERS = ("lsr", "lora", "full", "head")

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", description="DVC splits keys on dots, so a word has none")]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Targets = str | Annotated[tuple[str, ...], Field(min_length=1)]
Shape = Annotated[tuple[PositiveInt, ...], Field(min_length=2)]


class Section(BaseModel):
    """A part of params.yaml. It has no defaults: DVC neither shows nor locks what is not in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TokenizeParams(Section):
    """How text becomes tokens."""

    max_length: int = Field(ge=8, le=8192, description="tokens, special ones included")


class TrainParams(Section):
    """How any adapter is fitted."""

    epochs: PositiveInt
    batch_size: PositiveInt = Field(description="examples per optimizer step")
    head_learning_rate: PositiveFloat = Field(description="peak, after warm-up; per optimizer step")
    weight_decay: NonNegativeFloat = Field(description="decoupled, on matrices and factors but not on biases and norms")
    warmup_share: float = Field(ge=0, le=1, description="share of all optimizer steps")
    precision: Literal["fp32", "bf16", "fp16"] = Field(description="of products; what trains stays in fp32")
    compile: bool = Field(description="whether torch.compile makes the step faster, after a slow start")


class EvaluateParams(Section):
    """How the trained model is scored, and in which forms it is written for others."""

    batch_size: PositiveInt
    resamples: int = Field(ge=100, le=100_000, description="bootstrap resamples")
    export: Annotated[tuple[Literal["lora", "merged"], ...], AfterValidator(all_different)] = Field(
        description="lora: a plain PEFT LoRA folder; merged: a plain transformers checkpoint"
    )


class LsrParams(Section):
    """Fields of `lsr.LsrConfig`; `init` is its `init_weights`, `auto` and `none` its None."""

    rank_shape: Shape
    separation_rank: PositiveInt | Literal["auto"]
    budget: PositiveInt | Literal["none"] = Field(description="trained numbers in all layers, for separation_rank auto")
    alpha: PositiveFloat
    rank_stabilized: bool
    init: Literal["random", "row_space", "principal", "minor", "cp", "gradient", "activation"]
    residual: Literal["zero", "fold", "frozen"]
    frames: Literal["trained", "frozen"]
    align: bool
    examples: PositiveInt = Field(description="of the train split, that gradient and activation look at")
    dropout: Dropout
    in_shape: Literal["auto"] | Shape
    out_shape: Literal["auto"] | Shape
    aspect: PositiveFloat
    target_modules: Targets
    learning_rate: PositiveFloat = Field(description="of A1: peak, per optimizer step")
    b_rate: PositiveFloat = Field(description="learning rate of B's factors, as a multiple")
    frame_rate: PositiveFloat = Field(description="learning rate of A2, B2, ..., as a multiple, on top of b_rate")

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if (self.separation_rank == "auto") == (self.budget == "none"):
            raise ValueError(
                f"separation_rank auto and a budget need each other, got {self.separation_rank} and {self.budget}"
            )
        if self.residual != "zero" and self.init not in ("principal", "minor", "cp"):
            raise ValueError(f"residual {self.residual} needs init principal, minor or cp, got {self.init}")
        if self.align and self.init in ("random", "cp"):
            raise ValueError(f"align needs init row_space, principal, minor, gradient or activation, got {self.init}")
        return self

    @property
    def reads_examples(self) -> bool:
        """Whether the start looks at tokens."""
        return self.init in ("gradient", "activation")


class LoraParams(Section):
    """Fields of `peft.LoraConfig`."""

    r: PositiveInt
    lora_alpha: PositiveInt
    lora_dropout: Dropout
    target_modules: Targets
    learning_rate: PositiveFloat = Field(description="of lora_A and lora_B: peak, per optimizer step")


class FullParams(Section):
    """Every weight of the base model trains."""

    learning_rate: PositiveFloat = Field(description="of the base model: peak, per optimizer step")


class HeadParams(Section):
    """The head alone trains, at train.head_learning_rate."""


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


AdapterParams = LsrParams | LoraParams | FullParams | HeadParams


class View(Section):
    """What one stage sees. dvc.yaml declares the same: DECLARED says how a field that is no key is written there."""


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
AnyView = TypeVar("AnyView", bound=View)


def load(view: type[AnyView]) -> AnyView:
    """Check all of params.yaml and the chosen rows, then return what `view` sees of them.

    Raises:
        UserError: with one line for each mistake, all at once.
    """
    params = _validate(Params, _read(PARAMS), PARAMS, ())
    everything = {
        **{name: getattr(params, name) for name in Params.model_fields},
        "section": getattr(params, params.adapter),
        "dataset": load_row("data", params.data),
        "base_model": load_row("model", params.model),
    }
    # Already validated: `model_construct` keeps the frozen sections as they are.
    return view.model_construct(**{name: everything[name] for name in view.model_fields})


def load_row(word: str, name: str) -> Any:
    """Return the row `name` of the table that `word` ("data" or "model") chooses from.

    Raises:
        UserError: if there is no such row (the message lists those there are), or if it does not fit the schema.
    """
    path, schema = TABLES[word]
    rows = _read(path)
    if name not in rows:
        raise UserError(f"{PARAMS}: {word}: no row {name!r} in {path}{nearest(name, rows)}; rows: {', '.join(rows)}")
    return _validate(schema, rows[name], path, (name,))


def load_rows(word: str) -> dict[str, Any]:
    """Return all rows of the table that `word` ("data" or "model") chooses from, by name.

    Raises:
        UserError: if the table or a row is broken.
    """
    path, schema = TABLES[word]
    return {name: _validate(schema, row, path, (name,)) for name, row in _read(path).items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the root of the repository") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise UserError(f"{path}: not valid YAML: line {line}: {' '.join(str(error.problem).split())}") from None
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, got {content!r}")
    return content


AnyModel = TypeVar("AnyModel", bound=BaseModel)


def _validate(schema: type[AnyModel], content: Any, path: Path, prefix: tuple[str, ...]) -> AnyModel:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(mistakes.lines(error, schema, content, path, prefix))) from None


def main() -> None:
    """Check params.yaml and say in one line what would run.

    Raises:
        SystemExit: with exit code 2, if there is a mistake.
    """
    try:
        view = load(TrainView)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{PARAMS}: fine: {view.adapter} on {view.model}, {view.data}, seed {view.seed}")


if __name__ == "__main__":
    main()
