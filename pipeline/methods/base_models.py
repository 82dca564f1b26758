"""A row of pipeline/models.yaml becomes a base model with its head, or a tokenizer: safetensors, no remote code."""

import hashlib
import importlib.util
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer
from transformers.utils import logging

from pipeline import console, params
from pipeline.errors import UserError, first_line
from pipeline.params.rows import DatasetRow, HubModel, ModelRow, PackageModel

if TYPE_CHECKING:  # importing a model class takes seconds, and the stage tokenize has no model
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What transformers says of a freshly drawn head is meant for those who did not ask for one; its FutureWarning of a
# renamed attribute is meant for PEFT.
logging.set_verbosity_error()
logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load_base_model(row: ModelRow, dataset: DatasetRow) -> "PreTrainedModel":
    """Return the pretrained model with a freshly drawn head for the labels of the data set; seed torch before.

    Raises:
        UserError: if the model is not there, is not what the row pins, or has no such head.
    """
    from transformers import AutoModelForSequenceClassification

    path, revision = _source(row)
    names = dataset.names
    labels = (
        {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} if names else {}
    )
    with _Explained(row):
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=runs_code(row),
            num_labels=dataset.num_labels,
            problem_type="regression" if dataset.is_regression else "single_label_classification",
            **labels,
        )
    modules = dict(model.named_children())
    if unknown := [name for name in row.head if name not in modules]:
        raise UserError(
            f"pipeline/models.yaml: head: the model has no module {unknown[0]}; it has {', '.join(modules)}"
        )
    return model


def load_tokenizer(row: ModelRow) -> "PreTrainedTokenizerBase":
    """Return the model's tokenizer.

    Raises:
        UserError: if the model is not there, or is not what the row pins.
    """
    path, revision = _source(row)
    with _Explained(row):
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=runs_code(row))


def runs_code(row: ModelRow) -> bool:
    """Return whether the row has the model's own code run, and say so. Without an answer transformers asks for one."""
    if not (isinstance(row.source, HubModel) and row.source.trust_remote_code):
        return False
    _say_once(f"pipeline/models.yaml: {row.source.path}: runs the code that it brings, as the row says")
    return True


@cache
def _say_once(line: str) -> None:
    console.warn(line)


def public_name(row: ModelRow) -> tuple[str, str | None]:
    """Return the name and revision under which others find the base model: no path of this machine."""
    return (row.source.same_as if isinstance(row.source, PackageModel) else row.source.path), row.source.revision


def installed_folder(name: str) -> str | None:
    """Return the folder of the package that pipeline/models.yaml says is the same as a hub repository, or None.

    Raises:
        UserError: if there is such a package, but it is not installed or not what the row pins.
    """
    sources = [row.source for row in params.load_rows("model").values()]
    same = [source for source in sources if isinstance(source, PackageModel) and source.same_as == name]
    return str(_package_folder(same[0])) if same else None


def _source(row: ModelRow) -> tuple[str, str | None]:
    """Return what `from_pretrained` takes: a folder or a repository, and its revision."""
    if isinstance(row.source, HubModel):
        return row.source.path, row.source.revision
    return str(_package_folder(row.source)), None


def _package_folder(source: PackageModel) -> Path:
    name, _, wanted = source.package.partition("==")
    install = f"install it with: pip install {source.package}"
    try:
        installed = version(name)
    except PackageNotFoundError:
        raise UserError(f"pipeline/models.yaml: package {source.package} is not installed; {install}") from None
    if installed != wanted:
        raise UserError(
            f"pipeline/models.yaml: package {name} has version {installed}, the row pins {wanted}; {install}"
        )
    root, _, rest = source.folder.partition("/")
    # The package's code is not imported: only its files are wanted.
    spec = importlib.util.find_spec(root)
    folder = Path(spec.submodule_search_locations[0], rest) if spec and spec.submodule_search_locations else Path(root)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"pipeline/models.yaml: package {source.package} holds no {source.folder}/model.safetensors")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise UserError(f"pipeline/models.yaml: {weights.name} of {source.package} has sha256 {found}, not the row's")
    return folder


class _Explained:
    """Turns what loading raises into one line: which model, and what to look at."""

    def __init__(self, row: ModelRow) -> None:
        self.name = public_name(row)[0]

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError | ValueError):
            raise UserError(
                f"pipeline/models.yaml: cannot load {self.name}: {first_line(error)} (needed: a folder or hub "
                "repository with config.json, a tokenizer and model.safetensors; "
                "a hub needs a connection unless it is cached)"
            ) from None
