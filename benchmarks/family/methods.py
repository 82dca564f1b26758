"""The methods to compare, as overrides of params.yaml: forms of LSR, and their rivals.

The query and value layers of MiniLM are 12 matrices of 384 x 384. In each, a core of rank r has r^2 trained parameters,
a diagonal core r, and LoRA 768 r. There are 36 linear layers in all.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from pipeline.params.changed import Overrides

Layers = tuple[int, ...] | Literal["all"]
Pool = str  # the data for the frames: own, pooled, left out, or the name of another data set

ALL: tuple[Layers, ...] = ("all",)
RUNS: Mapping[int, tuple[Layers, ...]] = {  # consecutive layers; earlier ones never came near the best
    1: ((4,), (5,)),
    2: ((3, 4), (4, 5)),
    3: ((2, 3, 4), (3, 4, 5)),
}
ALL_LINEAR = ("query", "key", "value", "output.dense", "intermediate.dense")
FULL_SCALE = 0.01  # every weight is trained at a hundredth of the rates of adapters
HEAD_SCALE = 5.0  # a head that is trained alone, at higher rates
LARGE_SCALE = 0.25  # a LoRA of high rank in all linear layers fails at the rates of small adapters
# The scaling is alpha / rank, or alpha / 8 for a diagonal core, so that one grid of rates suits all ranks.
CORE_ALPHA = 24.0
FACTOR_ALPHA = 16.0  # of factors without a core, at rank 4
LORA_SCALING = 2

GROUPS = {  # groups of methods, with their labels in the legend
    "core": "LSR, core in frames of its own",
    "signs": "LSR, core in frames of signs",
    "pooled": "LSR, core in pooled frames",
    "foreign": "LSR, core in frames of another data set",
    "shared": "LSR, frames and core trained",
    "warm": "LSR that goes on from the short training",
    "factors": "LSR of the paper, Kronecker factors",
    "lora": "LoRA, all layers",
    "few": "LoRA r = 1, best few layers",
    "svd": "LoRA-XS, LoRA-SB",
    "ends": "head alone, every weight",
}
OURS = ("core", "signs", "pooled", "shared", "warm", "factors")


class Method(NamedTuple):
    """The overrides of a method, and how it is tuned."""

    group: str  # a key of GROUPS
    overrides: Overrides
    places: tuple[Layers, ...] = ALL  # layers to choose from, by the validation score, like the rate
    pool: Pool = "own"  # see `experiment.pool`
    like: str = ""  # the method whose tuned learning rate it uses, instead of its own tries
    scale: float = 1.0  # factor of the grid of learning rates
    is_long: bool = False  # whether it also runs in the long protocol


def core(rank: int, **others: object) -> Overrides:
    """Return a trained core between frozen dense frames."""
    return {
        "adapter": "lsr",
        "lsr.rank_shape": (rank,),
        "lsr.separation_rank": 1,
        "lsr.train": "core",
        "lsr.init": "update",
        "lsr.alpha": CORE_ALPHA,
        **{f"lsr.{name}": value for name, value in others.items()},
    }


def diagonal(rank: int, **others: object) -> Overrides:
    """Return the same with a diagonal core: r parameters per layer."""
    return core(rank, core="diagonal", **others)


def directions(budget: int, **others: object) -> Overrides:
    """Return diagonal cores in all linear layers, with `budget` entries in total."""
    return diagonal(1, budget=budget, target_modules=ALL_LINEAR, **others)


def trained_directions(budget: int) -> Overrides:
    """Return `budget` directions in query and value layers, trained together with their cores."""
    return diagonal(1, budget=budget, train="all")


def shared(rank: int, train: str = "all", **others: object) -> Overrides:
    """Return a core between frames that all layers of a kind share; by default the frames are trained, too."""
    return core(rank, train=train, share="layers", **others)


def kronecker(terms: int) -> Overrides:
    """Return the adapter of the LSR paper: Kronecker factors in rank shape (2, 2), all of them trained."""
    return {
        "adapter": "lsr",
        "lsr.rank_shape": (2, 2),
        "lsr.separation_rank": terms,
        "lsr.train": "factors",
        "lsr.init": "random",
        "lsr.alpha": FACTOR_ALPHA,
    }


def lora(rank: int) -> Overrides:
    """Return LoRA as in PEFT."""
    return {"adapter": "lora", "lora.r": rank, "lora.lora_alpha": LORA_SCALING * rank}


def twice(overrides: Overrides) -> Overrides:
    """Return the same in two epochs."""
    return {**overrides, "train.epochs": 2}


METHODS: Mapping[str, Method] = {
    # about 100 to 2,000 trained parameters
    "96 directions": Method("core", directions(96)),
    "200 directions": Method("core", directions(200)),
    "200 directions, pooled": Method("pooled", directions(200), pool="pooled"),
    "200 directions, left out": Method("pooled", directions(200), pool="left out"),
    **{
        f"200 directions, of {data}": Method("foreign", directions(200), pool=data, like="200 directions")
        for data in ("movie-reviews", "tweets", "amazon-reviews", "movie-ratings", "movie-pairs")
    },
    "200 directions, gradient": Method("core", directions(200, init="gradient")),
    "400 directions": Method("core", directions(400)),
    "core r=12": Method("core", core(12)),
    # the same with a bit per entry of a frame: about the bytes of LoRA r=1 in half a layer, one, two and three
    **{
        f"{count} directions, signs": Method("signs", directions(count, frames_dtype="sign"), is_long=count == 96)
        for count in (16, 32, 64, 96)
    },
    # 1,500 to 30,000, all of them trained
    "2 directions, trained": Method("shared", trained_directions(2)),
    "4 directions, trained": Method("shared", trained_directions(4)),
    "6 directions, trained": Method("shared", trained_directions(6)),
    "11 directions, trained": Method("shared", trained_directions(11)),
    "shared r=2": Method("shared", shared(2)),
    "shared r=3": Method("shared", shared(3), is_long=True),
    "shared r=3, gradient": Method("shared", shared(3, init="gradient")),
    "shared r=16": Method("shared", shared(16)),
    "LSR r=4 s=4": Method("factors", kronecker(4)),
    "LSR r=4 s=16": Method("factors", kronecker(16)),
    # the same that begin with what the short training learned, not only with its frames
    "200 directions, warm": Method("warm", directions(200, init="warm"), is_long=True),
    **{f"shared r={rank}, warm": Method("warm", shared(rank, init="warm"), is_long=rank == 3) for rank in (1, 2, 3)},
    # rivals
    "LoRA r=1, one layer": Method("few", lora(1), RUNS[1]),
    "LoRA r=1, two layers": Method("few", lora(1), RUNS[2]),
    "LoRA r=1, three layers": Method("few", lora(1), RUNS[3]),
    "LoRA r=1": Method("lora", lora(1), is_long=True),
    "LoRA r=2": Method("lora", lora(2)),
    "LoRA r=8": Method("lora", lora(8), is_long=True),
    # An update costs up to an epoch more, so LoRA gets the same.
    "LoRA r=1, one layer, two epochs": Method("few", twice(lora(1)), RUNS[1]),
    "LoRA r=1, two layers, two epochs": Method("few", twice(lora(1)), RUNS[2]),
    "LoRA r=1, three layers, two epochs": Method("few", twice(lora(1)), RUNS[3]),
    "LoRA r=1, two epochs": Method("lora", twice(lora(1))),
    "LoRA r=8, two epochs": Method("lora", twice(lora(8))),
    "LoRA r=1, all linear": Method("lora", {**lora(1), "lora.target_modules": ALL_LINEAR}),
    "LoRA r=16, all linear": Method(  # the same as the short training, and tried around its learning rate
        "lora", {**lora(16), "lora.target_modules": ALL_LINEAR}, scale=LARGE_SCALE
    ),
    "LoRA-XS r=12": Method("svd", core(12, init="principal")),
    "LoRA-SB r=12": Method("svd", core(12, init="gradient", head_steps=0)),
    "head alone": Method("ends", {"adapter": "head"}, scale=HEAD_SCALE),
    "every weight": Method("ends", {"adapter": "full"}, scale=FULL_SCALE),
}


def scales() -> str:
    """Return which methods have a grid of other learning rates, and its factor."""
    return "; ".join(f"{name}: times {method.scale:g}" for name, method in METHODS.items() if method.scale != 1)


def of_protocol(protocol: str) -> Iterator[str]:
    """Yield the names of the methods that run in a protocol."""
    yield from (name for name, method in METHODS.items() if method.is_long or protocol == "short")
