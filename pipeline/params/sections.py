"""The sections of params.yaml: one a stage, one a method."""

from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from pipeline.params.rows import all_different

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


class MethodParams(Section):
    """The section of a method. Its row in pipeline/methods/table.py says how what it describes trains."""

    word: ClassVar[str]  # the value of `adapter` that chooses it, and its key in params.yaml
    exports: ClassVar[tuple[str, ...]] = ("merged",)  # the forms of evaluate.export that it has


class LsrParams(MethodParams):
    """Fields of `lsr.LsrConfig`; `init` is its `init_weights`, `auto` its None."""

    word = "lsr"
    exports = ("lora", "merged")

    rank_shape: Shape
    separation_rank: PositiveInt
    alpha: PositiveFloat
    init: Literal["random", "row_space", "principal", "minor", "cp", "gradient"]
    train: Literal["factors", "first"] = Field(description="all factors, or A1 and B1 alone")
    examples: PositiveInt = Field(description="of the train split, that gradient looks at")
    dropout: Dropout
    in_shape: Literal["auto"] | Shape
    out_shape: Literal["auto"] | Shape
    target_modules: Targets
    learning_rate: PositiveFloat = Field(description="of the factors: peak, per optimizer step")

    @property
    def reads_examples(self) -> bool:
        """Whether the initialization looks at tokens."""
        return self.init == "gradient"


class LoraParams(MethodParams):
    """Fields of `peft.LoraConfig`."""

    word = "lora"

    r: PositiveInt
    lora_alpha: PositiveInt
    lora_dropout: Dropout
    target_modules: Targets
    learning_rate: PositiveFloat = Field(description="of lora_A and lora_B: peak, per optimizer step")


class FullParams(MethodParams):
    """Every weight of the base model trains."""

    word = "full"

    learning_rate: PositiveFloat = Field(description="of the base model: peak, per optimizer step")


class HeadParams(MethodParams):
    """The head alone trains, at train.head_learning_rate."""

    word = "head"


ADAPTERS: dict[str, type[MethodParams]] = {section.word: section for section in MethodParams.__subclasses__()}
