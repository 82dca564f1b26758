"""The gradients or updates from which frames are computed: over examples, or those of another adapter."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS, READERS
from lsr.init.passes import Track, untracked
from lsr.loading.contents import read_contents
from lsr.tuner.files import adapter_folder
from lsr.tuner.mistakes import first_line
from pipeline import tasks
from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data import tokens
from pipeline.data.pretrained import load_tokenizer
from pipeline.methods import adapters, base_models, device
from pipeline.params import PARAMS, FactorizeInitView, LsrParams
from pipeline.params.model_row import ModelRow

BATCH = {"gradient": 32, "update": 8, "warm": 8}  # examples per batch; training takes one step per batch


class Read(NamedTuple):
    """What the passes over the examples of a data set give, and what they read."""

    layers: dict[str, Matrix]  # gradients or updates
    batches: int
    examples: int


NOTHING = Read({}, 0, 0)


def of_examples(base: PreTrainedModel, view: FactorizeInitView) -> Read:
    """Return the gradients or updates of the layers to adapt, with a fitted head.

    `base` is left unchanged, except that `warm` trains its head.

    Raises:
        UserError: if the examples or their head are not suitable, or the data are not tokenized.
    """
    section = view.section
    assert isinstance(section, LsrParams)
    names = adapters.target_names(base, section, view.base_model, view.seed)
    train, collate = tokens.load_tokens("train"), tasks.of(view.dataset).collator(load_tokenizer(view.base_model))
    batches = list(tokens.sample(train, collate, section.examples, view.seed, BATCH[section.init]))
    read: list[int] = []  # the examples of each batch

    def track(items: Sequence[Any], title: str) -> Iterator[Any]:
        for item in console.track(items, f"{view.data}: {title}", len(items), "batches"):
            read.append(len(item["labels"]))
            yield item

    try:
        layers = read_gradients(
            base, names, batches, view.base_model, section.init, section.head_steps, view.seed, track
        )
    except ValueError as error:
        raise UserError(f"{PARAMS}: {section.word}.init: {view.data}: {error}") from None
    return Read(layers, len(read), sum(read))


def of_adapter(source: str, base: PreTrainedModel, view: FactorizeInitView) -> Read:
    """Return the updates of another adapter, in a folder or hub repository; its head replaces that of the base model.

    Raises:
        UserError: if it is no adapter of LSR or LoRA, or has other layers or another head than the one to train.
    """
    assert isinstance(view.section, LsrParams)
    names = adapters.target_names(base, view.section, view.base_model, view.seed)
    where, modules = f"{PARAMS}: {view.section.word}.init", dict(base.named_modules())
    task = tasks.of(view.dataset)
    try:
        contents = read_contents(adapter_folder(source))
        contents.check_layers(modules)
        for name, state in contents.heads_on(modules, task.width(task.names)).items():
            modules[name].load_state_dict(state)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{where}: {first_line(error)}") from None
    for name in sorted(contents.updates.keys() ^ set(names)):
        does = "adapts" if name in contents.updates else "does not adapt"
        raise UserError(f"{where}: {source} {does} {name!r}; target_modules must name the layers that it adapts")
    return NOTHING._replace(layers={name: contents.updates[name].product() for name in names})


def read_gradients(
    base: PreTrainedModel,
    names: Sequence[str],
    batches: Iterable[Mapping[str, Tensor]],
    row: ModelRow,
    init: str,
    head_steps: int,
    seed: int,
    track: Track = untracked,
) -> dict[str, Matrix]:
    """Return the gradients of a base model's layers, or the updates of a short training run, for an initialization.

    The head is fitted to the examples first, and restored unless the initialization goes on from training. The model
    runs on the fastest device and is moved back afterwards, because decompositions are reproducible to the byte only on
    one device.

    Raises:
        ValueError: if the examples or the head are not suitable.
    """
    layers = {name: base.get_submodule(name) for name in names}
    head = [base.get_submodule(name) for name in base_models.head_of(row, base)]
    with device.placed(base):
        examples = device.moved(batches, device.device_of(base))
        initialization = INITIALIZATIONS[init]
        kept = {"keep_head": True} if initialization.goes_on else {}
        read = READERS[initialization.reads]
        return read(base, layers, examples, head, steps=head_steps, seed=seed, track=track, **kept)
