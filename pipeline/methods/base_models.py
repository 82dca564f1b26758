"""Load a base model with its head, or a tokenizer, for a row of pipeline/models.yaml: safetensors, no remote code."""

import hashlib
import importlib.util
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging

from pipeline import params
from pipeline.core import console
from pipeline.core.errors import UserError, first_line, nearest
from pipeline.params.rows import DatasetRow, HubModel, ModelRow, PackageModel

if TYPE_CHECKING:  # importing a model class takes seconds, and the stage tokenize has no model
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HEAD = "AutoModelForSequenceClassification"  # as listed in the configuration of a model with custom code
MAX_LENGTH = f"{params.PARAMS}: tokenize.max_length"
POSITIONS = ("position_embeddings", "embed_positions", "wpe")  # what transformers calls tables of learned positions
# transformers warns about a freshly initialized head, which is intended here; its FutureWarning about a renamed
# attribute concerns PEFT.
logging.set_verbosity_error()
logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load_base_model(row: ModelRow, dataset: DatasetRow) -> "PreTrainedModel":
    """Return the pretrained model with a freshly initialized head for the data set's labels; seed torch before.

    Its configuration gets the tokenizer's padding token: a decoder classifies the last token before the padding.

    Raises:
        UserError: if the model is missing, is not what the row pins, or lacks the head or the layers to adapt.
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
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=runs_code(row))
    pad(tokenizer, f"{row.where}: {public_name(row)[0]}", model)
    _check_names(row, model)
    return model


def outline(row: ModelRow) -> "PreTrainedModel":
    """Return the model that config.json describes, with a head and without weights: its layers have names and shapes.

    No code that the model brings is run.

    Raises:
        UserError: if the model is not there, is not what the row pins, or has no such head or layers to adapt.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    path, revision = _source(row)
    with _Explained(row), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        _check_kind(row, config, brings_its_own=False)
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    _check_names(row, model)
    return model


def _check_names(row: ModelRow, model: "PreTrainedModel") -> None:
    modules = dict(model.named_children())
    if unknown := [name for name in row.head or () if name not in modules]:
        raise UserError(f"{row.where}: head: the model has no module {unknown[0]}; it has {', '.join(modules)}")
    layers = [name for name, module in model.named_modules() if getattr(module, "weight", None) is not None]
    for ending in row.target_modules or ():
        if not any(f".{name}".endswith(f".{ending}") for name in layers):
            linear = linear_layers(model)
            raise UserError(
                f"{row.where}: target_modules: the model has no layer {ending!r}{nearest(ending, linear)}; its linear "
                f"layers: {', '.join(linear)}"
            )


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """Return the distinct last parts of the names of a backbone's linear layers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = (name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return list(dict.fromkeys(name.rpartition(".")[2] for name in found))


def pad(tokenizer: "PreTrainedTokenizerBase", where: str, model: "PreTrainedModel | None" = None) -> None:
    """Set up padding in a tokenizer and its model: GPT-2 and Llama have no padding token, so end-of-text is used.

    Padding comes after the text, because positions count from the left. Messages begin with `where`.

    Raises:
        UserError: if the tokenizer has neither a padding token nor an end-of-text token.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"{where}: the tokenizer has no padding token, and no end of text to use instead; add pad_token to "
                "its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if not type(tokenizer).__name__.startswith("XLNet"):  # XLNet expects padding on the left and classifies at the end
        tokenizer.padding_side = "right"
    if model is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def check_architecture(row: ModelRow) -> None:
    """Check by config.json alone that the model exists and has a head for text classification.

    Raises:
        UserError: if the model is missing, is not what the row pins, or cannot classify.
    """
    path, revision = _source(row)
    with _Explained(row):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=runs_code(row))
    _check_kind(row, config, runs_code(row) and HEAD in (getattr(config, "auto_map", None) or {}))


def _check_kind(row: ModelRow, config: "PreTrainedConfig", brings_its_own: bool) -> None:
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and not brings_its_own:
        raise UserError(
            f"{row.where}: {public_name(row)[0]}: transformers has no head that classifies texts on the "
            f"architecture {config.model_type}; choose another model"
        )


def load_tokenizer(row: ModelRow) -> "PreTrainedTokenizerBase":
    """Return the model's tokenizer, with padding set up.

    Raises:
        UserError: if the model is missing, is not what the row pins, or its tokenizer cannot pad.
    """
    path, revision = _source(row)
    with _Explained(row):
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=runs_code(row))
    pad(tokenizer, f"{row.where}: {public_name(row)[0]}")
    return tokenizer


def check_tokens(tokenizer: "PreTrainedTokenizerBase", max_length: int, where: str = MAX_LENGTH) -> None:
    """Refuse texts that are longer than the tokenizer says the model takes; `where` is what sets the length.

    Raises:
        UserError: if `max_length` is above that; a tokenizer without a limit says 1e30.
    """
    _check_most(tokenizer.model_max_length, max_length, where)


def check_positions(model: "PreTrainedModel", max_length: int, where: str = MAX_LENGTH) -> None:
    """Refuse texts that are longer than a table of learned positions reaches, whatever the tokenizer says.

    Raises:
        UserError: if `max_length` is above that.
    """
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            before = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            said = getattr(model.config, "max_position_embeddings", None) or module.num_embeddings
            _check_most(min(said, module.num_embeddings - before), max_length, where)


def _check_most(most: int, max_length: int, where: str) -> None:
    if max_length > most:
        raise UserError(f"{where}: the model takes at most {most} tokens, got {max_length}")


def brings_code(row: ModelRow) -> bool:
    """Return whether the row has the model's own code run."""
    return isinstance(row.source, HubModel) and row.source.trust_remote_code


def runs_code(row: ModelRow) -> bool:
    """Return whether the row allows the model's own code to run, and print that. Otherwise transformers would ask."""
    if not brings_code(row):
        return False
    _say_once(f"pipeline/models.yaml: {public_name(row)[0]}: runs its own code, as the row allows")
    return True


@cache
def _say_once(line: str) -> None:
    console.warn(line)


def public_name(row: ModelRow) -> tuple[str, str | None]:
    """Return the public name and revision of the base model, never a path on this machine."""
    return (row.source.same_as if isinstance(row.source, PackageModel) else row.source.path), row.source.revision


def installed_folder(name: str, table: Path) -> str | None:
    """Return the folder of the package that a table of models declares equal to a hub repository, or None.

    Raises:
        UserError: if there is such a package but it is not installed, or it is not what the row pins.
    """
    sources = [row.source for row in params.load_rows("model", table).values()]
    same = [source for source in sources if isinstance(source, PackageModel) and source.same_as == name]
    return str(_package_folder(same[0])) if same else None


def _source(row: ModelRow) -> tuple[str, str | None]:
    """Return the arguments of `from_pretrained`: a folder or repository, and its revision."""
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
    # Do not import the package: only its files are needed.
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
    """Turns loading errors into one line that names the model and the likely cause."""

    def __init__(self, row: ModelRow) -> None:
        self.name, self.where = public_name(row)[0], row.where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError | ValueError):
            raise UserError(
                f"{self.where}: cannot load {self.name}: {first_line(error)} (needed: a folder or hub "
                "repository with config.json, a tokenizer and model.safetensors; "
                "a hub needs a connection unless it is cached)"
            ) from None
