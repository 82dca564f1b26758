"""The gradients or updates from which frames are computed, for the selected data set or pooled over several."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS, READERS
from lsr.init.passes import Track, untracked
from lsr.loading.contents import read_contents
from lsr.loading.files import adapter_folder
from lsr.tuner.saved import first_line
from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data import datasets, pretrained, tokens
from pipeline.data.encoding import tokenize
from pipeline.methods import adapters, base_models, device
from pipeline.params import PARAMS, FactorizeInitView, LsrParams
from pipeline.params.model_row import ModelRow

BATCH = {"gradient": 32, "update": 8, "warm": 8}  # examples per batch; training takes one step per batch


class Read(NamedTuple):
    """What the passes over the examples of a data set give, and what they read."""

    layers: dict[str, Matrix]  # gradients or updates
    batches: int
    examples: int


def gradients(base: PreTrainedModel, view: FactorizeInitView) -> list[Read]:
    """Return the gradients or updates of the layers to adapt, for each data set, with fitted heads.

    `base` is the model of the selected data set; it is left unchanged, except that `warm` trains its head.

    The gradients of pooled rows do not depend on the selected row: each row uses its first examples and a head drawn
    from the seed. So all adapters of one pool get the same frames, bit for bit.

    Raises:
        UserError: if examples or their head are not suitable, or the selected row is not tokenized.
    """
    assert isinstance(view.section, LsrParams)
    count, tokenizer = view.section.examples, pretrained.load_tokenizer(view.base_model)
    size = BATCH[view.section.init]
    if not view.section.frames_from:
        batches = tokens.sample(tokens.load_tokens("train"), tokenizer, count, view.seed, size)
        return [_gradients(base, batches, view, view.data)]
    pooled = []
    for name in view.section.frames_from:
        row = view.pooled[name]
        set_seed(view.seed)  # the head is initialized when the checkpoint loads
        other = base_models.load_base_model(view.base_model, row)
        train = datasets.load(row, name).splits["train"]  # in the order of a hash, so the first ones are a sample
        first, _ = tokenize(train.select(range(min(count, len(train)))), tokenizer, view.tokenize.max_length)
        batches = tokens.batches(Dataset(first), tokenizer, size, view.seed)
        pooled.append(_gradients(other, batches, view, name))
    return pooled


def _gradients(
    base: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    view: FactorizeInitView,
    name: str,
) -> Read:
    assert isinstance(view.section, LsrParams)
    listed, names = list(batches), adapters.target_names(base, view.section, view.base_model, view.seed)
    read: list[int] = []  # the examples of each batch

    def track(items: Sequence[Any], title: str) -> Iterator[Any]:  # items: batches, or their positions
        for item in console.track(items, f"{name}: {title}", len(items), "batches"):
            read.append(len((listed[item] if isinstance(item, int) else item)["labels"]))
            yield item

    try:
        layers = read_gradients(
            base, names, listed, view.base_model, view.section.init, view.section.head_steps, view.seed, track
        )
        return Read(layers, len(read), sum(read))
    except ValueError as error:
        raise UserError(f"{PARAMS}: {view.section.word}.init: {name}: {error}") from None


def updates_of(source: str, base: PreTrainedModel, view: FactorizeInitView) -> Read:
    """Return the updates of another adapter, in a folder or hub repository; its head replaces that of the base model.

    Raises:
        UserError: if it is no adapter of LSR or LoRA, or has other layers or another head than the one to train.
    """
    assert isinstance(view.section, LsrParams)
    names = adapters.target_names(base, view.section, view.base_model, view.seed)
    where, modules = f"{PARAMS}: {view.section.word}.init", dict(base.named_modules())
    try:
        contents = read_contents(adapter_folder(source))
        contents.check_layers(modules)
        for name, state in contents.heads_on(modules, view.dataset.num_labels).items():
            modules[name].load_state_dict(state)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{where}: {first_line(error)}") from None
    for name in sorted(contents.updates.keys() ^ set(names)):
        does = "adapts" if name in contents.updates else "does not adapt"
        raise UserError(f"{where}: {source} {does} {name!r}; target_modules must name the layers that it adapts")
    return Read({name: contents.updates[name].pair() for name in names}, batches=0, examples=0)


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
