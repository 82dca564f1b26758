"""A table of DVC experiments: those that differ only in the seed are one row."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from dvc.scm import SCMError

from pipeline import params
from pipeline.compare.estimates import estimate
from pipeline.compare.rows import PERCENT
from pipeline.compare.tables import Flat
from pipeline.core import artifacts
from pipeline.core.errors import UserError, first_line

Shown = Mapping[str, Any]  # params, metrics and hashes of dependencies by name, as `dvc exp show` has them
SEED, SCORE = "seed", "score"
NAMED = ("data", "model", "adapter")
COUNTS = ("adapter_trained", "adapter_stored", "adapter_effective", "head_parameters", "adapter_bytes")
EVERY_COMMIT = -1
WORKSPACE = "workspace"  # not an experiment yet


def read() -> list[Shown]:
    """Return the experiments and commits of the current repository that have a score.

    Raises:
        UserError: if there is no repository, or DVC cannot read it.
    """
    try:
        shown = dvc.api.exp_show(num=EVERY_COMMIT)
    except (DvcException, SCMError) as error:
        raise UserError(f"--experiments: {first_line(error)}") from None
    return [one for one in shown if one["rev"] != WORKSPACE and isinstance(_metric(one, SCORE), int | float)]


def rows(experiments: Iterable[Shown]) -> list[Flat]:
    """Return a row per set of params other than the seed: the score over seeds in percent, counts, and differences."""
    groups: dict[tuple[tuple[str, str], ...], dict[int, Shown]] = {}
    for one in experiments:
        groups.setdefault(_inputs(one), {}).setdefault(int(_param(one, SEED) or 0), one)
    return [_row(inputs, group, _differing(list(groups))) for inputs, group in sorted(groups.items())]


def _row(inputs: tuple[tuple[str, str], ...], group: Mapping[int, Shown], differing: Sequence[str]) -> Flat:
    seeds, first = sorted(group), next(iter(group.values()))
    score = estimate([PERCENT * _metric(group[seed], SCORE) for seed in seeds])
    return {
        **{name: _param(first, name) for name in NAMED},
        "differs": " ".join(f"{key}={value}" for key, value in inputs if key in differing),
        **score.flat("score"),
        "seeds": " ".join(map(str, seeds)),
        **{name: _metric(first, name) for name in COUNTS},
        "experiments": " ".join(group[seed].get("Experiment") or group[seed]["rev"] for seed in seeds),
    }


def _inputs(one: Shown) -> tuple[tuple[str, str], ...]:
    """Return the inputs of an experiment except the seed: params that its adapter reads, hashes of code and data."""
    others = set(params.ADAPTERS) - {_param(one, "adapter")}
    found = {}
    for name, value in one.items():
        key = name.removeprefix(f"{params.PARAMS}:")
        section = key.partition(".")[0]
        is_param = section in params.Params.model_fields and section not in others
        is_hash = isinstance(value, str) and "/" in name and Path(name).parts[0] != artifacts.INIT.parts[0]
        if value is not None and key != SEED and (is_param or is_hash):
            found[key] = str(value)
    return tuple(sorted(found.items()))


def _differing(groups: Sequence[tuple[tuple[str, str], ...]]) -> list[str]:
    """Return the params that differ between groups; NAMED ones have their own columns, and code has a commit."""
    shared = set.intersection(*map(set, groups)) if groups else set()
    differing = {key for group in groups for key, value in set(group) - shared}
    return sorted(key for key in differing if key not in NAMED and "/" not in key)


def _metric(one: Shown, name: str) -> Any:
    value = one.get(f"{artifacts.EVALUATE_METRICS.as_posix()}:{name}", one.get(name))
    return value if isinstance(value, int | float) else None


def _param(one: Shown, name: str) -> Any:
    return one.get(f"{params.PARAMS}:{name}", one.get(name))
