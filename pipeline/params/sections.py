"""The sections of params.yaml that belong to no method, and the bounds that sections share."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from pipeline.core.errors import first_line
from pipeline.params.sources import Row, all_different


def compiles(expression: str) -> str:
    """Check a regular expression for pydantic; a plain word counts as one.

    Raises:
        ValueError: if it does not compile.
    """
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a valid regular expression: {first_line(error)}") from None
    return expression


NAME = r"^[A-Za-z0-9_-]+$"
Word = Annotated[str, Field(pattern=NAME, description="DVC splits keys on dots, so a word has none")]
Named = Annotated[
    str, Field(pattern=r"^[^\x00-\x1f]+$", description="a row's word; or a folder or hub repository itself")
]
# Strict: true and "3" are not numbers, and 1 is not a Boolean, although Python would convert them.
Dropout = Annotated[StrictFloat, Field(ge=0, lt=1)]
Targets = (
    Annotated[StrictStr, Field(min_length=1, max_length=1000), AfterValidator(compiles)]
    | Annotated[tuple[StrictStr, ...], Field(min_length=1)]
)
Count = Annotated[StrictInt, Field(ge=1)]
Layers = (  # indices of the base model's layers
    Literal["all"]
    | Annotated[tuple[Annotated[StrictInt, Field(ge=0)], ...], Field(min_length=1), AfterValidator(all_different)]
)
# A step of AdamW moves each entry by about the learning rate; entries of weights are below 1.
Rate = Annotated[StrictFloat, Field(gt=0, le=1)]
Alpha = Annotated[StrictFloat, Field(gt=0, le=1_000_000)]  # it multiplies products in float32, and fp16's end at 65,504


class Section(Row):
    """A part of params.yaml. Defaults are for methods alone: DVC can only show and lock values that are in the file."""


class TokenizeParams(Section):
    """How text becomes tokens."""

    max_length: StrictInt = Field(ge=8, le=8192, description="tokens, special ones included")


class TrainParams(Section):
    """How any adapter is trained."""

    epochs: Count = Field(description="each adds a checkpoint and a point to the curves")
    batch_size: Count = Field(description="examples per optimizer step, of all processes together")
    processes: Count = Field(1, description="processes of this machine that train together; or of all, by torchrun")
    head_learning_rate: Rate = Field(description="peak, after warm-up; per optimizer step")
    weight_decay: StrictFloat = Field(
        ge=0,
        le=1,
        description="decoupled, for matrices and factors but not biases and norms: a step multiplies them by 1 - the "
        "learning rate times this, which must not be negative",
    )
    warmup_share: StrictFloat = Field(ge=0, le=1, description="share of all optimizer steps")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        description="of matrix products; trainable parameters stay in fp32"
    )
    compile: StrictBool = Field(description="whether to use torch.compile: faster steps after a slow start")
    # It is left out of dumps: a card says, and a checkpoint is found by, what determines the result.
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "dvclive"], ...], AfterValidator(all_different)
    ] = Field(exclude=True, description="trackers, in transformers' words, that write into runs/")


class EvaluateParams(Section):
    """How the trained model is scored."""

    batch_size: Count
    resamples: StrictInt = Field(ge=100, le=100_000, description="bootstrap resamples")
