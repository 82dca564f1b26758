"""Read and check params.yaml and the registries. No other module opens these files.

`load(View)` checks all of them, and returns the fields of a stage's view.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core import artifacts
from pipeline.core.errors import UserError, nearest
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.effects import idle_in_file, resolve_epochs
from pipeline.params.schema import PARAMS, REGISTRIES, Params, View
from pipeline.params.sources import NAME, ModelEntry, RegistryEntry
from pipeline.params.validation import Place, validate
from pipeline.params.yaml_file import read_yaml

AnyView = TypeVar("AnyView", bound=View)


def load(view: type[AnyView]) -> AnyView:
    """Check all of params.yaml and of the registries, and return the part in `view`.

    Raises:
        UserError: with one line for each mistake, all at once.
    """
    content = read_yaml(PARAMS)
    params, datasets, models = all_of(
        [
            partial(validate, Params, content, PARAMS, ()),
            partial(check_entries, "data", content.get("data")),
            partial(check_entries, "model", content.get("model")),
        ]
    )
    dataset = datasets[params.data]
    idle = [f"{PARAMS}: {value.line}" for value in idle_in_file(params, dataset)]
    if idle:
        raise UserError("\n".join(idle))
    return build_view(view, params, dataset, models[params.model])


def all_of(checks: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run all checks, and return their results.

    Raises:
        UserError: with the lines of all failed checks.
    """
    results = []
    lines = list[str]()
    for check in checks:
        try:
            results.append(check())
        except UserError as error:
            lines += str(error).split("\n")
    if lines:
        different = dict.fromkeys(lines)
        raise UserError("\n".join(different))
    return results


def load_params() -> Params:
    """Return the checked params.yaml."""
    return validate(Params, read_yaml(PARAMS), PARAMS, ())


def apply_overrides(
    overrides: Mapping[str, Any],
    view: type[AnyView],
    path: Path = PARAMS,
    place: Place = (),
) -> AnyView:
    """Return a view of params.yaml with overrides by dotted key; messages name `path` and `place`.

    Raises:
        UserError: if params.yaml has no such key or does not allow the value; one line each.
    """
    content = deepcopy(read_yaml(PARAMS))
    for key, value in overrides.items():
        section, _, field = key.rpartition(".")
        inner = content.setdefault(section, {}) if section else content
        if not isinstance(inner, dict):
            keys = ".".join((*place, key))
            raise UserError(f"{path}: {keys}: {section} of {PARAMS} has no keys")
        inner[field] = value
    params = validate(Params, content, path, place)
    return build_view(view, params, load_entry("data", params.data), load_entry("model", params.model))


def build_view(
    view: type[AnyView],
    params: Params,
    dataset: DatasetEntry,
    base_model: ModelEntry,
) -> AnyView:
    """Build a view from checked params and the entries that they name."""
    section = params.sections[params.adapter]
    if dataset.tenant is not None and params.tenants.folder:
        section = params.head_only  # the shared adapter is not trained
    # It takes only its own fields, and as all are validated already, frozen sections stay as they are.
    return view.model_construct(
        **{**dict(params), "train": resolve_epochs(params.train, dataset)},
        refit=params.train.refit,
        section=section,
        dataset=dataset,
        base_model=base_model,
    )


def load_entry(key: str, name: str) -> Any:
    """Return the entry `name` for `key`, a key of params.yaml: data or model.

    A model without an entry may be named directly, as a folder or a Hub repository.

    Raises:
        UserError: if there is no such entry (the message lists the existing ones), or it does not fit the schema.
    """
    return Registry(key).load(name)


def check_entries(key: str, chosen: object = None) -> dict[str, Any]:
    """Check all entries for `key`, and return them by name, with the chosen one even if it is not registered.

    Raises:
        UserError: with one line per mistake in any entry.
    """
    registry = Registry(key)
    checks = {name: partial(registry.load, name) for name in registry.names}
    if isinstance(chosen, str):
        checks.setdefault(chosen, partial(registry.load, chosen))
    return dict(zip(checks, all_of(checks.values()), strict=True))


class Registry:
    """The entries of a registry, built-in and the user's own; each file is read once."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.table = REGISTRIES[key]
        self.own = read_yaml(self.table.own) if self.table.own.is_file() else {}
        self.built_in = read_yaml(self.table.built_in)

    @property
    def names(self) -> list[str]:
        """The names of all entries, the user's own first."""
        return list(self.own | self.built_in)

    def load(self, name: str) -> RegistryEntry:
        """Return an entry; a model may also be a folder or a hub repository without an entry.

        Raises:
            UserError: if there is no such entry, or it does not fit the schema.
        """
        table = self.table
        if name in self.own:
            if name in self.built_in:
                raise UserError(f"{table.own}: {name}: {table.built_in} has an entry of this name too; rename yours")
            entry = self._validate(name, self.own, table.own)
            return entry.of_ones_own() if isinstance(entry, DatasetEntry) else entry
        if name in self.built_in:
            return self._validate(name, self.built_in, table.built_in)
        where = f"{PARAMS}: {self.key}"
        unlisted = ModelEntry.from_name(name, where) if self.key == "model" else None
        if unlisted is None:
            raise UserError(f"{where}: {self._describe_missing(name)}")
        return unlisted

    def _validate(
        self,
        name: str,
        entries: Mapping[str, Any],
        path: Path,
    ) -> RegistryEntry:
        if self.key == "data" and not re.fullmatch(NAME, str(name)):
            raise UserError(f"{path}: {name!r}: the name of an entry has only letters, digits, - and _")
        entry = validate(self.table.schema, entries[name], path, (str(name),))
        entry._where = str(path)
        return entry

    def _describe_missing(self, name: str) -> str:
        """Return the message for a missing entry, with the existing ones and a remedy."""
        what = "entry"
        other = "to add one: python -m pipeline.add FILE"
        if self.key == "model":
            what = "entry or folder"
            other = "or a Hub repository such as owner/name"
        own = self.table.own
        in_repository = artifacts.repository() / own
        if artifacts.is_temporary_copy() and in_repository.is_file() and name in read_yaml(in_repository):
            remedy = f"run `git add {own}`, also for the files that it names, and then the experiment again"
            return f"no {what} {name!r} in this temporary copy, which has only what Git tracks: {remedy}"
        listed = ", ".join(self.names)
        return f"no {what} {name!r}{nearest(name, self.names)}; entries: {listed}; {other}"
