"""The sections of params.yaml: general ones, and one per method (LSR, PEFT's methods, full fine-tuning, head)."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    field_validator,
    model_validator,
)

from lsr_onnx.errors import first_line
from pipeline.params.sources import StrictModel, all_different


def _compiles(expression: str) -> str:
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a valid regular expression: {first_line(error)}") from None
    return expression


# Strict: true and "3" are not numbers, and 1 is not a Boolean, although Python would convert them.
Dropout = Annotated[StrictFloat, Field(ge=0, lt=1)]
Targets = (
    Annotated[StrictStr, Field(min_length=1, max_length=1000), AfterValidator(_compiles)]
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

LsrInit = (
    Literal["random", "principal", "gradient", "lora_update", "warm_start"] | Annotated[StrictStr, Field(pattern="/")]
)
SHORT_RUNS = ("lora_update", "warm_start")  # initializations of LSR that begin with a short LoRA run
READ = ("gradient", *SHORT_RUNS)  # those that read examples
# Numbers to which train.epochs: auto is resolved. The steps are those with which LoRA learned the question of 8
# tenants with 20 or 60 texts each.
USUAL_EPOCHS = 2
TENANT_EPOCHS = 4
TENANT_STEPS = 96
# Examples per step of a short LoRA run, and the number of steps to which lsr.init_epochs: auto extends it.
SHORT_BATCH = 8
SHORT_STEPS = 96
# The number of steps to which train.extend_epochs: auto extends.
MIN_STEPS = 300
MAX_EPOCHS = 30
RATE = "learning_rate"
NUMBERS = re.compile("r|n|(.*_)?(alpha|dropout)")  # keys of methods of PEFT, which need not be loaded to know this
DROPOUTS = re.compile("(.*_)?dropout")
LARGEST = 2**32  # limit to numbers for PEFT: that of seeds, and far above any width or scale
# Methods of PEFT that depend on their own training loop: here they would be different methods of the same name.
OWN_LOOP = {
    "ADALORA": "calls that move ranks between layers",
    "POLY": "the number of a task with each example",
    "XLORA": "previously trained adapters",
}
# Keys of PEFT's configurations that a section cannot set, and what to do instead.
FIXED = {
    "peft_type": "name the method by type",
    "task_type": "the label of the data decides it",
    "modules_to_save": "the head is trained in full by itself; name further modules under head in the model's entry",
    "base_model_name_or_path": "choose the base model by model",
    "revision": "pin the base model in its entry, or by model: OWNER/NAME@REVISION",
    "inference_mode": "an adapter is trainable in train and frozen afterwards; leave it out",
    "auto_mapping": "it is for models without a task, and the data have one; leave it out",
    "peft_version": "it is that of the installed PEFT; leave it out",
    "runtime_config": "it is not kept with a trained adapter; leave it out",
    "megatron_config": "PEFT would import any module that it names; leave it out",
    "megatron_core": "PEFT would import any module that it names; leave it out",
    "eva_config": "EVA needs examples, which this pipeline does not pass to it",
    "corda_config": "CorDA needs examples, which this pipeline does not pass to it",
    "lora_ga_config": "LoRA-GA needs examples, which this pipeline does not pass to it; LSR has init: gradient",
    "arrow_config": "Arrow needs previously trained adapters, which this pipeline does not pass to it",
    "kasa_config": "KaSA needs a loss of its own, which this training does not have",
    "monteclora_config": "MonteCLoRA needs a loss of its own, which this training does not have",
    "use_qalora": "layers of GPTQ alone have it, which this training does not load",
    "qalora_group_size": "layers of GPTQ alone have it, which this training does not load",
    "use_asa": "it needs a call after each step, which this training does not have",
}


def enough_epochs(steps: int, steps_an_epoch: int) -> int:
    """Return the smallest number of epochs with at least so many optimizer steps, or MAX_EPOCHS if that is less."""
    return min(MAX_EPOCHS, math.ceil(steps / steps_an_epoch))


class Section(StrictModel):
    """A part of params.yaml. Only methods have defaults: DVC can only show and lock values that are in the file."""


class TokenizeParams(Section):
    """How texts are tokenized."""

    max_length: StrictInt = Field(ge=8, le=8192, description="tokens, special ones included")
    standardize_labels: Literal["auto", "none"] = Field(
        "auto",
        description="auto: numbers are learned in standard deviations from their mean in train, so that the learning "
        "rates fit any unit, and the loss is in units of their variance; none: in their own units",
    )


class TrainParams(Section):
    """How any adapter is trained."""

    epochs: Literal["auto"] | Count = Field(
        description=f"each adds a checkpoint and a point to the curves; auto: {USUAL_EPOCHS}, or with tenants at least "
        f"{TENANT_EPOCHS}, and more until they have {TENANT_STEPS} optimizer steps, but at most {MAX_EPOCHS}"
    )
    extend_epochs: Literal["none", "auto"] = Field(
        "none",
        exclude_if=lambda chosen: chosen == "none",
        description=f"auto: more epochs, until they have {MIN_STEPS} optimizer steps, but at most {MAX_EPOCHS}",
    )
    patience: Literal["none"] | Count = Field(
        "none",
        exclude_if=lambda chosen: chosen == "none",
        description="epochs without a better validation score before training stops; the rates' schedule is unchanged",
    )
    refit: StrictBool = Field(
        False,
        exclude_if=lambda chosen: not chosen,
        description="whether to train a second time, on train and validation together, for the number of epochs, and "
        "with the thresholds and temperatures, that validation chose: for few texts",
    )
    batch_size: Count = Field(description="examples per optimizer step, over all processes")
    processes: Count = Field(1, description="training processes on this machine, or with torchrun on all machines")
    head_learning_rate: Rate = Field(description="peak learning rate of the head, after warm-up")
    weight_decay: StrictFloat = Field(
        ge=0,
        le=1,
        description="decoupled, for matrices and factors but not biases and norms: a step multiplies them by 1 - the "
        "learning rate times this, which must not be negative",
    )
    warmup_ratio: StrictFloat = Field(ge=0, le=1, description="fraction of the optimizer steps")
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        exclude_if=lambda chosen: chosen == "none",
        description="balanced: examples are weighted inversely to the frequency of their class, so each class has an "
        "equal share of the gradient; validation scores choose the checkpoint",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        description="of matrix products; trainable parameters stay in fp32"
    )
    compile: StrictBool = Field(description="whether to use torch.compile: faster steps after a slow compilation")
    # It is left out of dumps: a card says, and a checkpoint is found by, what determines the result.
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "dvclive"], ...], AfterValidator(all_different)
    ] = Field(exclude=True, description="trackers, by their names in transformers; they write into runs/")

    @property
    def epoch_count(self) -> int:
        """The number of epochs, after `with_epochs` where they are `auto`."""
        assert self.epochs != "auto"
        return self.epochs

    def with_epochs(self, epochs: int) -> Self:
        """Return a copy that trains for this number of epochs."""
        return self.model_copy(update={"epochs": epochs})


class TenantsParams(Section):
    """The adapter that all tenants share, and their bank, if the data set has a column of tenants."""

    shared_adapter: StrictStr = Field(
        pattern="^trained$|/",
        description="trained: one adapter for all; or the folder of an adapter of tenants, which stays as it is and "
        "gets heads for those of the data set",
    )
    head: Literal["auto", "own", "shared"] = Field(
        "auto",
        description="auto: tenants with the same set of labels, or with a number each, share the rows of their heads, "
        "from which each deviates as far as validation supports it; own: nothing is shared; shared: no deviation",
    )
    precision: Literal["float32", "bfloat16", "8bit", "4bit", "3bit", "2bit"] = Field(
        description="of heads in the bank"
    )

    @property
    def folder(self) -> str | None:
        """The folder of the existing shared adapter, if there is one."""
        return None if self.shared_adapter == "trained" else self.shared_adapter


class EvaluateParams(Section):
    """How the trained model is scored."""

    batch_size: Count
    resamples: StrictInt = Field(ge=100, le=100_000, description="bootstrap resamples")
    max_new_tokens: Count = Field(description="maximum generated tokens per prompt, if the label is a completion")
    regression_baseline: Literal["none", "all"] | Count = Field(
        2048,
        description="training examples per tenant for a baseline, a regression on the frozen base model's states",
    )


class MethodParams(Section):
    """The section of a method: `adapter` selects it by its key in params.yaml."""

    _key: str = PrivateAttr("adapter")

    @property
    def key(self) -> str:
        """The section's key in params.yaml, for messages."""
        return self._key

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates by key, the main one first; empty if only the head is trained."""
        return {name: value for name, value in self.model_dump().items() if name.endswith(RATE)}


class LsrParams(MethodParams):
    """Fields of `lsr.LsrConfig`; `init` is its `init_weights`, `layers` its `layers_to_transform`, `auto` its None.

    A key that is left out has the default of LsrConfig, which also checks combinations.
    """

    type: Literal["LSR"]
    rank_shape: tuple[StrictInt, ...] = (2, 2)
    separation_rank: Literal["auto"] | Count = "auto"
    share: Literal["none", "layers"] = Field("none", description="whether all layers of a group share A and B")
    train: Literal["factors", "core", "all"] = Field(
        "factors", description="trainable: all factors; a core between frozen bases; the core and the bases"
    )
    core: Literal["full", "diagonal"] = "full"
    init: LsrInit = Field(
        "random",
        description="or the folder or hub repository of an adapter of LSR or LoRA, which training goes on from; "
        "its head must be for the same labels, in any order",
    )
    alpha: Alpha = 16.0
    init_examples: Count = Field(
        1024, description="number of training examples for gradient, lora_update and warm_start"
    )
    init_head_steps: Annotated[StrictInt, Field(ge=0)] = Field(
        60, description="steps to fit the head before gradient, lora_update and warm_start"
    )
    init_epochs: Literal["auto"] | Count = Field(
        "auto",
        description=f"of the short LoRA run over these examples, with batches of {SHORT_BATCH}; auto: 1, or if these "
        f"are the whole train split, more until they have {SHORT_STEPS} optimizer steps, but at most {MAX_EPOCHS}",
    )
    total_directions: Literal["none"] | Count = Field(
        "none", description="directions of diagonal cores, distributed over the target layers by gradient or update"
    )
    dropout: Dropout = 0.0
    target_modules: Targets = "default"
    layers: Layers = "all"
    learning_rate: Rate = Field(description="peak learning rate of factors and cores")

    @property
    def source(self) -> str | None:
        """The folder or hub repository of the adapter from which training continues."""
        return self.init if "/" in self.init else None

    @property
    def scheme(self) -> str:
        """The name of the initialization: with another adapter, its update replaces that of a short LoRA run."""
        return "warm_start" if self.source else self.init

    @property
    def reads_examples(self) -> bool:
        """Whether the initialization reads examples."""
        return self.init in READ

    @model_validator(mode="after")
    def _check_total_directions(self) -> Self:
        is_read = self.reads_examples or self.source
        if self.total_directions != "none" and (not is_read or (self.share, self.core) != ("none", "diagonal")):
            got = f"init: {self.init}, share: {self.share} and core: {self.core}"
            needed = f"init: {', '.join(READ)}, share: none and core: diagonal"
            raise ValueError(f"total_directions: needs {needed}; got {got}")
        return self


class PeftParams(MethodParams):
    """Any other method of PEFT. All other keys are fields of its configuration, with PEFT's names and defaults.

    They are checked where PEFT is loaded. A key such as `logits_learning_rate` is the rate of the parameters that have
    `logits` in their name.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    type: StrictStr = Field(min_length=1, description="PEFT's name of the method, such as LORA or VERA")
    target_modules: Targets = Field("default", description="or none, where biases alone are trained")
    layers: Layers = "all"
    learning_rate: Rate = Field(description="peak learning rate")

    @property
    def options(self) -> dict[str, Any]:
        """The fields of PEFT's configuration that the section sets."""
        return {name: value for name, value in self.__pydantic_extra__.items() if not name.endswith(f"_{RATE}")}

    @field_validator("type")
    @classmethod
    def _needs_no_loop_of_its_own(cls, method: str) -> str:
        if method in OWN_LOOP:
            raise ValueError(f"{method} needs {OWN_LOOP[method]}, which this training does not have")
        return method

    @model_validator(mode="after")
    def _every_key_has_an_effect_and_a_value_in_its_range(self) -> Self:
        for name, value in self.options.items():
            if name in FIXED and value not in (None, False):  # None and False set nothing
                raise ValueError(f"{name}: cannot be set here: {FIXED[name]}")
            if name == "layers_to_transform" and self.layers != "all":
                raise ValueError(f"{name}: cannot be combined with layers: {list(self.layers)}; leave out one of them")
            if name != "bias" and self.target_modules == "none":
                raise ValueError(f"{name}: has no effect with target_modules: none, where biases alone are trained")
            is_number = type(value) in (int, float)
            if NUMBERS.fullmatch(name) and value is not None and not is_number:
                raise ValueError(f"{name}: must be a number, got {value!r}")
            if DROPOUTS.fullmatch(name) and value is not None and not 0 <= value < 1:
                raise ValueError(f"{name}: must be at least 0 and below 1, got {value!r}")
            if is_number and abs(value) > LARGEST:
                raise ValueError(f"{name}: must be from -{LARGEST:,} to {LARGEST:,}, got {value!r}")
        for name, rate in self.rates.items():
            if not isinstance(rate, int | float) or not 0 < rate <= 1:
                raise ValueError(f"{name}: must be above 0 and at most 1, got {rate!r}")
        targets = self.target_modules
        if self.layers != "all" and isinstance(targets, str) and targets != "default":
            # PEFT refuses an expression, and would adapt every layer with all-linear.
            raise ValueError(f"layers: needs target_modules to be default or a list; got target_modules: {targets}")
        return self


class FullParams(MethodParams):
    """Full fine-tuning: every weight of the base model is trainable."""

    learning_rate: Rate = Field(description="peak learning rate of the base model")


class HeadOnlyParams(MethodParams):
    """Linear probing: only the head is trained, with train.head_learning_rate."""


class RegressionParams(HeadOnlyParams):
    """A logistic or ridge regression on what the head's last layer reads: that layer alone, without a training loop."""


def _origin(section: Any) -> str | None:
    """Return whether a section is LSR's or PEFT's; None if it is not a method's section."""
    method = section.get("type") if isinstance(section, dict) else getattr(section, "type", None)
    return method and ("ours" if method == "LSR" else "peft")


Method = Annotated[
    Annotated[LsrParams, Tag("ours")] | Annotated[PeftParams, Tag("peft")],
    Discriminator(
        _origin, custom_error_type="no_type", custom_error_message="no such key; the section of a method has a type"
    ),
]
