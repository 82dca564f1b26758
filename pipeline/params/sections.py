"""The sections of params.yaml that are no method's, and the bounds of values that sections share."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from pipeline.params.rows import compiles
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


def _none_alone(words: tuple[str, ...]) -> tuple[str, ...]:
    """Check that `none` has no trackers beside it.

    Raises:
        ValueError: if it has.
    """
    if "none" in words and len(words) > 1:
        raise ValueError("none stands alone")
    return words


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
    # It is left out of dumps: a card says, and a checkpoint is found by, what determines the result.
    report_to: Annotated[
        tuple[Literal["none", "tensorboard", "wandb", "mlflow", "dvclive"], ...],
        AfterValidator(all_different),
        AfterValidator(_none_alone),
    ] = Field(exclude=True, description="trackers, in transformers' words, that write into runs/; [none] is []")


class EvaluateParams(Section):
    """How the trained model is scored, and in which forms it is written for others."""

    batch_size: Batch
    resamples: StrictInt = Field(ge=100, le=100_000, description="bootstrap resamples")
    export: Annotated[tuple[Literal["lora", "merged"], ...], AfterValidator(all_different)] = Field(
        description="lora: a plain PEFT LoRA folder; merged: a plain transformers checkpoint"
    )
    submission: StrictBool = Field(description="whether the hidden split is predicted, for the benchmark's server")
