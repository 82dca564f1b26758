"""The sections of params.yaml: one a stage, one a method."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from pipeline.params.rows import Word, compiles
from pipeline.params.sources import all_different

# Bounds are far above what anyone uses: they stand for "a typing error". What each must keep from happening, it says.
# Strict: true is no number, "3" is none, and 1 is no truth value, though Python takes each for the other.
Dropout = Annotated[StrictFloat, Field(ge=0, lt=1)]
Targets = (
    Annotated[StrictStr, Field(min_length=1, max_length=1000), AfterValidator(compiles)]
    | Annotated[tuple[StrictStr, ...], Field(min_length=1)]
)
# As wide as the widest layers there are: above, nothing is of low rank, and memory ends before a message could come.
Rank = Annotated[StrictInt, Field(ge=1, le=16_384)]
# The decomposition into more factors takes minutes, and 2**6 is more than any rank in use.
Shape = Annotated[tuple[Rank, ...], Field(min_length=1, max_length=6)]
Widths = Annotated[tuple[Annotated[StrictInt, Field(ge=1, le=1_000_000)], ...], Field(min_length=1, max_length=6)]
Layers = (
    Literal["all"]
    | Annotated[
        tuple[Annotated[StrictInt, Field(ge=0, le=10_000)], ...],
        Field(min_length=1, max_length=10_000),
        AfterValidator(all_different),
    ]
)  # indices of the base model's layers
# A step of AdamW moves each entry by about the rate; entries of weights are below 1.
Rate = Annotated[StrictFloat, Field(gt=0, le=1)]
# More examples at once than fit any memory; beyond 2**63 no library can count them.
Batch = Annotated[StrictInt, Field(ge=1, le=65_536)]
Count = Annotated[StrictInt, Field(ge=1, le=1_000_000_000)]  # 32 bits hold it
Alpha = Annotated[StrictFloat, Field(gt=0, le=1_000_000)]  # it multiplies products in float32, and fp16's end at 65,504
READ = ("gradient", "update")  # initializations of LSR that look at examples


class Section(BaseModel):
    """A part of params.yaml. It has no defaults: DVC neither shows nor locks what is not in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TokenizeParams(Section):
    """How text becomes tokens."""

    max_length: StrictInt = Field(ge=8, le=8192, description="tokens, special ones included")


class TrainParams(Section):
    """How any adapter is fitted."""

    epochs: StrictInt = Field(ge=1, le=100_000, description="each writes a checkpoint and a row of the curves")
    batch_size: Batch = Field(description="examples per optimizer step")
    head_learning_rate: Rate = Field(description="peak, after warm-up; per optimizer step")
    weight_decay: StrictFloat = Field(
        ge=0,
        le=1,
        description="decoupled, on matrices and factors but not on biases and norms: a step multiplies them by 1 - the "
        "rate times this, which must not be negative",
    )
    warmup_share: StrictFloat = Field(ge=0, le=1, description="share of all optimizer steps")
    precision: Literal["fp32", "bf16", "fp16"] = Field(description="of products; what trains stays in fp32")
    compile: StrictBool = Field(description="whether torch.compile makes the step faster, after a slow start")


class EvaluateParams(Section):
    """How the trained model is scored, and in which forms it is written for others."""

    batch_size: Batch
    resamples: StrictInt = Field(ge=100, le=100_000, description="bootstrap resamples")
    export: Annotated[tuple[Literal["lora", "merged"], ...], AfterValidator(all_different)] = Field(
        description="lora: a plain PEFT LoRA folder; merged: a plain transformers checkpoint"
    )
    submission: StrictBool = Field(description="whether the hidden split is predicted, for the benchmark's server")


class MethodParams(Section):
    """The section of a method. Its row in pipeline/methods/table.py says how what it describes trains."""

    word: ClassVar[str]  # the value of `adapter` that chooses it, and its key in params.yaml
    exports: ClassVar[tuple[str, ...]] = ("merged",)  # the forms of evaluate.export that it has


class LsrParams(MethodParams):
    """Fields of `lsr.LsrConfig`; `init` is its `init_weights`, `layers` its `layers_to_transform`, `auto` its None."""

    word = "lsr"
    exports = ("lora", "merged")

    rank_shape: Shape
    separation_rank: Count  # the layers' shapes say how many there can be
    share: Literal["none", "layers"] = Field(description="whether all layers of a kind have one A and B")
    train: Literal["factors", "first", "core", "all"] = Field(
        description="all factors; A1 and B1; a core between frozen frames; the core and the factors"
    )
    core: Literal["full", "diagonal"]
    init: Literal["random", "row_space", "principal", "minor", "cp", "gradient", "update"]
    frames: StrictStr = Field(
        min_length=1, description="own, or the folder or hub repository of an adapter with the frames"
    )
    frames_from: Annotated[tuple[Word, ...], AfterValidator(all_different)] = Field(
        description="data rows whose gradients or updates make the frames together; none: the chosen one's"
    )
    frames_dtype: Literal["float32", "bfloat16", "int8", "sign"] = Field(
        description="of frozen frames, before training"
    )
    alpha: Alpha
    examples: Count = Field(description="of the train split, that gradient and update look at")
    head_steps: StrictInt = Field(
        ge=0, le=1_000_000, description="that fit the head before gradient and update look at them"
    )
    budget: Literal["none"] | Count = Field(
        description="directions of diagonal cores over all target layers, where gradient or update have the largest"
    )
    dropout: Dropout
    in_shape: Literal["auto"] | Widths
    out_shape: Literal["auto"] | Widths
    target_modules: Targets
    layers: Layers
    learning_rate: Rate = Field(description="of factors and cores: peak, per optimizer step")

    @model_validator(mode="after")
    def _frames_are_pooled_from_gradients(self) -> Self:
        if self.frames_from and not self.reads_examples:
            raise ValueError(
                "frames_from: pools what examples say, so it needs init: gradient or update, and frames: own; got "
                f"init: {self.init} and frames: {self.frames}"
            )
        return self

    @model_validator(mode="after")
    def _a_budget_is_spent_by_what_examples_say(self) -> Self:
        needed = {
            "init": READ,
            "frames": ("own",),
            "share": ("none",),
            "train": ("core", "all"),
            "core": ("diagonal",),
        }
        wrong = [f"{name}: {getattr(self, name)}" for name, words in needed.items() if getattr(self, name) not in words]
        if self.budget != "none" and wrong:
            rules = ", ".join(f"{name}: {' or '.join(words)}" for name, words in needed.items())
            raise ValueError(f"budget: needs {rules}; got {', '.join(wrong)}")
        return self

    @property
    def reads_examples(self) -> bool:
        """Whether the initialization looks at tokens."""
        return self.init in READ and self.frames == "own"


class LoraParams(MethodParams):
    """Fields of `peft.LoraConfig`."""

    word = "lora"

    r: Rank
    lora_alpha: Annotated[StrictInt, Field(ge=1, le=1_000_000)]
    lora_dropout: Dropout
    target_modules: Targets
    layers: Layers
    learning_rate: Rate = Field(description="of lora_A and lora_B: peak, per optimizer step")


class FullParams(MethodParams):
    """Every weight of the base model trains."""

    word = "full"

    learning_rate: Rate = Field(description="of the base model: peak, per optimizer step")


class HeadParams(MethodParams):
    """The head alone trains, at train.head_learning_rate."""

    word = "head"


ADAPTERS: dict[str, type[MethodParams]] = {section.word: section for section in MethodParams.__subclasses__()}
