"""Knobs that params.yaml no longer has. What needs them cannot run again; its finished cells stay in the table.

A cell's key is a hash of what the cell sets, and finished cells are found by their keys. So the hash is taken of the
words that params.yaml had when the first cells ran.
"""

from typing import Any

from benchmarks.views import Overrides

KNOBS: Overrides = {  # as they were in all cells but those that are removed
    "lsr.budget": "none",
    "lsr.rank_stabilized": False,
    "lsr.residual": "zero",
    "lsr.align": False,
    "lsr.aspect": 1.0,
    "lsr.b_rate": 1.0,
    "lsr.frame_rate": 1.0,
}
FRAMES = {"factors": "trained", "first": "frozen"}  # lsr.frames, by lsr.train
FOLDED = ("principal", "minor", "cp")  # each with "lsr.residual: fold", the only way that is left

ALIGNED = {"row space, aligned (removed)": {"lsr.init": "row_space", "lsr.align": True}}
FROM_ZERO = {"principal, from zero (removed)": {"lsr.init": "principal", "lsr.residual": "zero"}}
FROZEN_COPY = {"principal, frozen copy (removed)": {"lsr.init": "principal", "lsr.residual": "frozen"}}
RATE_GROUPS = {"lsr.b_rate": 4.0, "lsr.frame_rate": 8.0}  # after LoRA+ (Hayou et al. 2024, arXiv 2402.12354)


def cp_and_activation(rank_shape: tuple[int, ...], separation_rank: int) -> dict[str, Overrides]:
    """Return the two methods; CP had three factors, and the number of terms that came nearest to the budget."""
    cp = {
        "lsr.init": "cp",
        "lsr.residual": "zero",
        "lsr.rank_shape": rank_shape,
        "lsr.separation_rank": separation_rank,
    }
    return {"CP, from zero (removed)": cp, "activation (removed)": {"lsr.init": "activation"}}


def in_first_words(overrides: Overrides) -> dict[str, Any]:
    """Return what overrides set, as params.yaml said it when the first cells ran."""
    others = dict(overrides)
    frames = FRAMES[others.pop("lsr.train")]
    residual = {"lsr.residual": "fold"} if others.get("lsr.init") in FOLDED else {}
    return {**KNOBS, "lsr.frames": frames, **residual, **others}
