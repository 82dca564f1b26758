"""The inputs of a stage: values of params.yaml, registry entries, local files, code, and outputs of earlier stages.

DVC hashes the deps of a stage after its end, so it would record a file edited meanwhile as one that the stage has read.
Therefore `pipeline.stage` compares the inputs at the beginning and the end.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.core import artifacts, digests
from pipeline.core.errors import UserError
from pipeline.data import content
from pipeline.params import PARAMS, REGISTRIES, FactorizeInitView, LsrParams, load_entry
from pipeline.params.schema import View
from pipeline.params.sources import RegistryEntry
from pipeline.params.yaml_file import by_dotted_key, read_yaml

Inputs = dict[str, str | None]  # inputs by name: a digest, or a value in JSON; None if it is missing
Entries = dict[str, RegistryEntry | None]  # entries by key of params.yaml; None if one is missing or invalid
TOKENIZE = "tokenize"  # the stage that records rows and files


def read_declaration(stage: str) -> dict[str, Any]:
    """Return the declaration of a stage in dvc.yaml."""
    entry: dict[str, Any] = read_yaml(digests.CODE / "dvc.yaml")["stages"][stage]
    return entry


def outputs(stage: str) -> list[Path]:
    """Return the files and folders that a stage writes."""
    entry = read_declaration(stage)
    paths = list[Path]()
    for key in ("outs", "metrics", "plots"):
        for item in entry.get(key, []):
            names = [item] if isinstance(item, str) else list(item)
            paths.append(Path(names[0]))
    return paths


def files(stage: str) -> Iterator[tuple[str, Path]]:
    """Yield the name and path of each file of our code, or of an earlier stage's outputs, in the deps of a stage.

    The registries and the folders of users are left out: a stage reads only what its entries name there.
    """
    ignored = _find_ignored()
    declaration = read_declaration(stage)
    left_out = {Path(folder) for folder in content.WATCHED}
    left_out |= {table.built_in for table in REGISTRIES.values()}
    for dep in map(Path, declaration["deps"]):
        if dep in left_out:
            continue
        is_output = dep.is_relative_to(artifacts.INIT.parent)
        root = Path() if is_output else digests.CODE
        for file in digests.files_below(root / dep):
            above = (file, *file.parents)
            if ignored.isdisjoint(above):
                name = file.relative_to(root)
                yield name.as_posix(), file


def _find_ignored() -> set[Path]:
    """Return the files and folders of our code that DVC ignores."""
    file = digests.CODE / ".dvcignore"
    lines = file.read_text(encoding="utf-8").splitlines()
    ignored = set[Path]()
    for line in lines:
        if line.startswith("/"):
            ignored.add(digests.CODE / line[1:])
    return ignored


def values(stage: str) -> Inputs:
    """Return the values in params.yaml on which a stage depends, as JSON by dotted key."""
    params = read_yaml(PARAMS)
    read = Inputs()
    for declared in read_declaration(stage)["params"]:
        key = str(params.get("adapter")) if declared == "${adapter}" else declared
        section = by_dotted_key(_find(params, key), f"{PARAMS}: {key}")
        for name, value in section.items():
            read[name] = json.dumps(value, default=str)
    return read


def _find(params: Any, key: str) -> Any:
    """Return the value of a dotted key, None if it is missing."""
    value = params
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def starts(view: FactorizeInitView) -> dict[str, str]:
    """Return the folders of adapters from which an initialization starts, by their keys in params.yaml."""
    folders = {}
    if view.tenants.folder:  # where the data have no tenants, params.yaml must not set it
        folders["tenants.shared_adapter"] = view.tenants.folder
    if isinstance(view.section, LsrParams) and view.section.source:
        folders[f"{view.section.key}.init"] = view.section.source
    return folders


def at_start(stage: str, view: View) -> Inputs:
    """Return the digests of a view's entries and of the files that a stage reads; for code, as it was imported."""
    entries: Entries = {"data": view.dataset, "model": view.base_model}
    inputs = _digest_entries(entries, view)
    of_code = digests.of_code_at_start()
    for name, file in files(stage):
        is_code = file.is_relative_to(digests.CODE)
        inputs[name] = of_code.get(file) if is_code else digests.sha256(file)
    return inputs | _local(stage, view)


def at_end(stage: str, view: View) -> Inputs:
    """Return the present values and digests of a stage: params.yaml, entries and all files are read again."""
    try:
        inputs = values(stage)
    except UserError:  # params.yaml is half written
        inputs = Inputs()
    entries: Entries = {}
    chosen = {"data": view.data, "model": view.model}
    for key, name in chosen.items():
        try:
            entries[key] = load_entry(key, name)
        except UserError:  # it is removed, or half written
            entries[key] = None
    inputs |= _digest_entries(entries, view)
    for name, file in files(stage):
        inputs[name] = digests.sha256(file)
    return inputs | _local(stage, view)


def _digest_entries(entries: Entries, view: View) -> Inputs:
    where = {
        "data": f"{view.dataset.where}: {view.data}",
        "model": f"{view.base_model.where}: {view.model}",
    }
    inputs = Inputs()
    for key, entry in entries.items():
        name = where[key]
        inputs[name] = None if entry is None else content.sha256_of(entry)
    return inputs


def _local(stage: str, view: View) -> Inputs:
    """Return the digests of local files that a stage reads: of model, data, and adapters to start from."""
    deps = read_declaration(stage)["deps"]
    sources: list[content.Source] = [view.base_model.source]
    if "data" in deps:
        sources.append(view.dataset.source)
    if content.MODELS in deps and isinstance(view, FactorizeInitView):
        sources += starts(view).values()
    local = Inputs()
    paths = map(content.iter_local_paths, sources)
    for path in chain.from_iterable(paths):
        for file in content.files(path):
            name = file.as_posix()
            local[name] = digests.sha256(file) if file.is_file() else None
    return local


def compute_digests(view: View) -> dict[str, str]:
    """Return the digests that the stage tokenize records: of the model's and data's entries and local files."""
    # A folder that `model` itself names is the path that messages name anyway.
    is_named = Path(view.model) in content.iter_local_paths(view.base_model.source)
    model_place = view.base_model.where
    if not is_named:
        model_place = f"{model_place}: {view.model}"
    data_place = f"{view.dataset.where}: {view.data}"
    return {
        f"model: {view.model}": content.sha256_of(view.base_model),
        **content.digests(view.base_model.source, model_place),
        f"data: {view.data}": content.sha256_of(view.dataset),
        **content.digests(view.dataset.source, data_place),
    }


def check_recorded(view: View, before: Inputs) -> None:
    """Check that a view's entries, and its model's files among the inputs, are the ones that tokenize has read.

    Raises:
        UserError: if one has changed.
    """
    try:
        known = artifacts.read_metrics(artifacts.INPUTS)
    except FileNotFoundError:
        raise UserError(f"{artifacts.INPUTS}: not found; run python -m stages.tokenize first, or dvc repro") from None
    present: Inputs = {
        f"data: {view.data}": content.sha256_of(view.dataset),
        f"model: {view.model}": content.sha256_of(view.base_model),
    }
    expected: Inputs = {name: known.get(name) for name in present}
    for path in content.iter_local_paths(view.base_model.source):
        expected |= _below(path, known)
        present |= _below(path, before)
    for name in {**expected, **present}:
        if present.get(name) != expected.get(name):
            raise UserError(
                f"{name}: not what the stage tokenize has read; run dvc repro, or python -m stages.tokenize"
            )


def _below(folder: Path, inputs: Inputs) -> Inputs:
    """Return the inputs that are in a folder, or are the file itself."""
    below = Inputs()
    for name, digest in inputs.items():
        path = Path(name)
        if path.is_relative_to(folder):
            below[name] = digest
    return below


def differences(before: Inputs, after: Inputs) -> list[str]:
    """Describe the inputs that have changed; values of params.yaml with both values."""
    lines = []
    for name in {**before, **after}:
        old = before.get(name)
        new = after.get(name)
        if old == new:
            continue
        values = ""
        if name.startswith(f"{PARAMS}: "):
            values = f" from {old or 'none'} to {new or 'none'}"
        lines.append(f"{name}: changed{values}")
    return lines
