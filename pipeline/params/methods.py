"""The sections of params.yaml for the methods: LSR, any other method of PEFT, full fine-tuning, and the head alone."""

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PrivateAttr,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)

from pipeline.params.sections import Alpha, Count, Dropout, Layers, Rate, Section, Targets

READ = ("gradient", "update", "warm")  # initializations of LSR that read examples
RATE = "learning_rate"
# Methods of PEFT that depend on their own training loop: here they would be different methods of the same name.
OWN_LOOP = {
    "ADALORA": "calls that move ranks between layers",
    "POLY": "the number of a task with each example",
    "XLORA": "previously trained adapters",
}


def own_loop(kind: str) -> str:
    """Check PEFT's name of a method for pydantic.

    Raises:
        ValueError: if the method depends on its own training loop.
    """
    if kind in OWN_LOOP:
        raise ValueError(f"{kind} needs {OWN_LOOP[kind]}, which this training does not have")
    return kind


def peft_type(word: str) -> str | None:
    """Return PEFT's name of a method that a word may mean, without importing PEFT, which takes seconds."""
    peft = importlib.util.find_spec("peft")
    folders = [Path(place, "tuners", word.lower()) for place in (peft and peft.submodule_search_locations) or ()]
    return word.upper() if any(map(Path.is_dir, folders)) else None


class MethodParams(Section):
    """The section of a method: `adapter` selects it by its key in params.yaml."""

    _word: str = PrivateAttr("adapter")

    @property
    def word(self) -> str:
        """Its key in params.yaml, for messages."""
        return self._word

    @property
    def rates(self) -> dict[str, float]:
        """Its learning rates by key, that of most parameters first; none if only the head is trained."""
        found = {name: value for name, value in self.model_dump().items() if name.endswith(RATE)}
        return dict(sorted(found.items(), key=lambda rate: rate[0] != RATE))


class LsrParams(MethodParams):
    """Fields of `lsr.LsrConfig`; `init` is its `init_weights`, `layers` its `layers_to_transform`, `auto` its None.

    A key that is left out has the default of LsrConfig, which also checks what goes together.
    """

    type: Literal["LSR"]
    rank_shape: tuple[StrictInt, ...] = (2, 2)
    separation_rank: Literal["auto"] | Count = "auto"
    share: Literal["none", "layers"] = Field("none", description="whether all layers of a kind share A and B")
    train: Literal["factors", "core", "all"] = Field(
        "factors", description="trainable: all factors; a core between frozen frames; the core and the frames"
    )
    core: Literal["full", "diagonal"] = "full"
    init: Literal["random", "principal", "gradient", "update", "warm"] | Annotated[StrictStr, Field(pattern="/")] = (
        Field(
            "random",
            description="or the folder or hub repository of an adapter of LSR or LoRA, which training goes on from",
        )
    )
    frames: StrictStr = Field(
        "own", min_length=1, description="own, or the folder or hub repository of an adapter with the frames"
    )
    alpha: Alpha = 16.0
    examples: Count = Field(1024, description="from the train split, for gradient, update and warm")
    head_steps: Annotated[StrictInt, Field(ge=0)] = Field(
        60, description="steps to fit the head before gradient, update and warm"
    )
    budget: Literal["none"] | Count = Field(
        "none", description="directions of diagonal cores, distributed over the target layers by gradient or update"
    )
    dropout: Dropout = 0.0
    target_modules: Targets = "default"
    layers: Layers = "all"
    learning_rate: Rate = Field(description="of factors and cores: peak, per optimizer step")

    @property
    def source(self) -> str | None:
        """The folder or hub repository of the adapter that training goes on from."""
        return self.init if "/" in self.init else None

    @property
    def scheme(self) -> str:
        """The name of the initialization: that of another adapter takes its update for that of a short training run."""
        return "warm" if self.source else self.init

    @property
    def reads_examples(self) -> bool:
        """Whether the initialization looks at tokens."""
        return self.init in READ and self.frames == "own"

    @model_validator(mode="after")
    def _goes_on_from_one_adapter(self) -> Self:
        if self.source and self.frames != "own":
            raise ValueError(
                f"init: {self.init}: an adapter to go on from needs frames: own, got frames: {self.frames}"
            )
        return self

    @model_validator(mode="after")
    def _a_budget_is_spent_by_what_examples_say(self) -> Self:
        is_read = self.reads_examples or self.source
        if self.budget != "none" and (not is_read or (self.share, self.core) != ("none", "diagonal")):
            raise ValueError(
                f"budget: needs init: {', '.join(READ)}, frames: own, share: none and core: diagonal; got init: "
                f"{self.init}, frames: {self.frames}, share: {self.share} and core: {self.core}"
            )
        return self


class PeftParams(MethodParams):
    """Any other method of PEFT. All other keys are fields of its configuration, with PEFT's names and defaults.

    They are checked where PEFT is loaded. A key such as `logits_learning_rate` is the rate of the parameters that have
    `logits` in their name.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    type: Annotated[StrictStr, AfterValidator(own_loop)] = Field(
        min_length=1, description="PEFT's name of the method, such as LORA or VERA"
    )
    target_modules: Targets = Field("default", description="or none, where biases alone are trained")
    layers: Layers = "all"
    learning_rate: Rate = Field(description="peak, per optimizer step")

    @property
    def options(self) -> dict[str, Any]:
        """The fields of PEFT's configuration that the section sets."""
        return {name: value for name, value in self.__pydantic_extra__.items() if not name.endswith(f"_{RATE}")}

    @model_validator(mode="after")
    def _every_rate_is_one(self) -> Self:
        for name, rate in self.rates.items():
            if not isinstance(rate, int | float) or not 0 < rate <= 1:
                raise ValueError(f"{name}: must be above 0 and at most 1, got {rate!r}")
        return self

    @model_validator(mode="after")
    def _layers_are_chosen_among_those_that_are_listed(self) -> Self:
        targets = self.target_modules
        if self.layers != "all" and isinstance(targets, str) and targets != "default":
            # PEFT refuses an expression, and would adapt every layer with all-linear.
            raise ValueError(f"layers: needs target_modules to be default or a list; got target_modules: {targets}")
        return self


class FullParams(MethodParams):
    """Full fine-tuning: every weight of the base model is trainable."""

    learning_rate: Rate = Field(description="of the base model: peak, per optimizer step")


class HeadParams(MethodParams):
    """Only the head is trained, with train.head_learning_rate."""


def _class_of(section: Any) -> str | None:
    """Return the name of a section's class; None if it is not the section of a method."""
    kind = section.get("type") if isinstance(section, dict) else getattr(section, "type", None)
    if kind is None:
        return None
    return LsrParams.__name__ if kind == "LSR" else PeftParams.__name__


Method = Annotated[
    Annotated[LsrParams, Tag("LsrParams")] | Annotated[PeftParams, Tag("PeftParams")],
    Discriminator(
        _class_of, custom_error_type="no_type", custom_error_message="no such key; the section of a method has a type"
    ),
]
