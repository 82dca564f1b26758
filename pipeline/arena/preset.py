"""The schema of pipeline/arena.yaml: each preset is a comparison of methods on tasks.

Methods and tasks are overrides of params.yaml by dotted key, so the arena can compare any trainings.
"""

from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, StrictFloat, StrictInt, StrictStr, model_validator

from pipeline.core.errors import UserError, nearest
from pipeline.params.reading import load_table
from pipeline.params.rows import Named, Word
from pipeline.params.sections import Count, Section
from pipeline.params.sources import all_different

PATH = Path("pipeline/arena.yaml")
Overrides = dict[Annotated[str, Field(pattern=r"^[a-z0-9_.]+$", description="a dotted key of params.yaml")], JsonValue]
# A name in tables and plots, without characters that a file name or a table cannot contain.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 =.,()+_-]{0,39}$")]
Factor = Annotated[StrictFloat, Field(gt=0, le=1000)]
Factors = Annotated[tuple[Factor, ...], AfterValidator(all_different)]
Amount = Literal["all"] | Count
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
OWN = ("data", "model", "seed")  # keys that the arena sets itself


class Reads(Section):
    """How much of each split a training reads: its first rows, a random sample because splits are sorted by a hash.

    Further rows of train are added to validation, because it decides on rates, and a small one decides badly.
    """

    train: Amount
    validation: Amount
    test: Amount
    longest: Amount = Field(description="tokens; longer texts are left out")


class Tuning(Section):
    """The tries of each method on each task, all with the first seed; the validation score decides."""

    rates: Annotated[Factors, Field(min_length=1)] = Field(description="factors of the learning rates of the method")
    wider: Annotated[StrictInt, Field(ge=0, le=10)] = Field(
        description="further tries beyond an end of the rates, one by one, as long as the best one is at that end"
    )
    head_rates: Factors = Field(description="factors of train.head_learning_rate, tried at the best rate; 1 always is")


class Method(Section):
    """What a method sets: `adapter`, and keys of its section or of others."""

    adapter: StrictStr
    params: Overrides = Field(default_factory=dict)


class Preset(Section):
    """One comparison. Every method sees the same data and has the same number of tries."""

    model: Named
    tasks: Annotated[dict[Word, Overrides], Field(min_length=1)] = Field(
        description="rows of pipeline/datasets.yaml, with overrides for each"
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(all_different)]
    baseline: Name = Field(description="the method that others are compared with")
    tuning: Tuning
    reads: Reads
    params: Overrides = Field(description="overrides for all")
    methods: Annotated[dict[Name, Method], Field(min_length=1)]

    @model_validator(mode="after")
    def _nobody_sets_what_the_arena_sets(self) -> Self:
        places = {
            "params": self.params,
            **{f"tasks: {name}": values for name, values in self.tasks.items()},
            **{f"methods: {name}: params": method.params for name, method in self.methods.items()},
        }
        for (place, values), key in product(places.items(), (*OWN, "adapter")):
            if key in values:
                raise ValueError(f"{place}: {key} is set by the arena itself")
        return self

    @model_validator(mode="after")
    def _the_baseline_is_a_method(self) -> Self:
        if self.baseline not in self.methods:
            known = ", ".join(self.methods)
            raise ValueError(
                f"baseline: no method {self.baseline!r}{nearest(self.baseline, self.methods)}; methods: {known}"
            )
        return self


def load(name: str, path: Path = PATH) -> Preset:
    """Return a preset.

    Raises:
        UserError: if there is none of this name, or the file is not valid.
    """
    presets = load_table(path, Preset)
    if name not in presets:
        raise UserError(f"{path}: no preset {name!r}{nearest(name, presets)}; presets: {', '.join(presets)}")
    return presets[name]
