"""The sections of params.yaml: one a stage, one a method."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
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
    """Fields of `lsr.LsrConfig`; `init` is its `init_weights`, `auto` and `none` its None."""

    word = "lsr"
    exports = ("lora", "merged")

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
