"""Load PEFT adapters of any method onto their base models, merge them, and compute outputs to compare."""

from contextlib import suppress
from copy import deepcopy
from inspect import signature
from itertools import filterfalse
from math import prod
from pathlib import Path
from typing import Any

import torch
from peft import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from lsr.errors import check_held, wrap_errors
from lsr.loading.base_models import MISFITS, load_base
from lsr.loading.fields import START, config_of
from lsr.loading.updates import LSR, check_config
from lsr.tuner.files import CONFIG, PREFIX, WRAPPED, Files, read_files
from lsr.tuner.options import Fields
from lsr.tuner.packing import Tensors, dtype_name

# Of the token ids that models are asked for.
ROWS = 8
LENGTH = 16
SEED = 0
RESERVED = 2  # positions that RoBERTa's embeddings keep for padding
HALF = {torch.bfloat16, torch.float16}
ATEN = torch.ops.aten
FROM_TENSOR = {  # operations that take sizes after a tensor
    ATEN.new_empty,
    ATEN.new_zeros,
    ATEN.new_ones,
    ATEN.new_full,
    ATEN.repeat,
}
ROOM = 1 << 20  # entries that a method may create for any base model, in addition to those of this model and the file


def load_adapter(adapter: Path | Files, base: str | None = None, method: str | None = LSR) -> PeftModel:
    """Load an adapter, given as a folder or its files, onto its base model, in evaluation mode and float32.

    The base model is `base`, a folder or hub repository, or the one that the adapter names. It gets as many labels as
    the adapter's head. `method` is the required PEFT method; None allows any. The errors are those of `read_files`,
    `load_base` and `load_onto`.
    """
    files = read_files(adapter, method)
    model = load_base(files.fields, files.tensors, base)
    return load_onto(model, files).float()  # files may hold float64


def load_onto(base: nn.Module, adapter: Path | Files, *, trainable: bool = False) -> PeftModel:
    """Load the adapter in a folder, of any PEFT method, onto a base model and its device.

    Like PeftModel.from_pretrained, but it reads untrusted files within limits and accepts quantized adapters. Head and
    biases get the dtype of the base model, and the adapter at least float32.

    Raises:
        InputError: if the folder is not an adapter, is incomplete, or does not fit the base model.
    """
    files = read_files(adapter)
    config = _config_of(files, base)
    config.inference_mode = not trainable
    device = next(base.parameters()).device
    # Do not initialize factors that are about to be loaded, unless it changes the base model, as PiSSA, or PEFT would
    # round what it loads to the dtype of the base model.
    dtypes = {name: parameter.dtype for name, parameter in base.named_parameters()}
    changes_base = isinstance(getattr(config, START, None), str) or getattr(config, "layer_replication", None)
    is_empty = not changes_base and HALF.isdisjoint(dtypes.values())
    model_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
    entries = sum(tensor.numel() for tensor in (*base.parameters(), *files.tensors.values()))
    with wrap_errors(f"{files.folder}: does not fit the base model", *MISFITS):
        with _AllocationLimit(entries + ROOM):
            model = model_class(base, config, low_cpu_mem_usage=is_empty)
        _check_complete(model, files.tensors)
        tensors = {name: value.to(device) for name, value in files.tensors.items()}
        set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=is_empty)
        tuner: Any = model.base_model
        if hasattr(tuner, "_cast_adapter_dtype"):  # methods that add tokens instead of layers have none
            tuner._cast_adapter_dtype("default", autocast_adapter_dtype=True)
    for name, parameter in model.named_parameters():  # PEFT has put tensors of the file in their place
        dtype = dtypes.get(_name_in_base(name), parameter.dtype)
        parameter.data = parameter.data.to(dtype)
    if trainable:
        return model
    return model.eval()


@torch.no_grad()
def merge_adapter(model: PeftModel, files: Files) -> Any:
    """Merge an adapter, of any PEFT method, into its base model, and return that model; `files` are the adapter's.

    Raises:
        InputError: if it cannot be merged.
    """
    base = model.get_base_model()
    with wrap_errors(f"{files.folder}: {files.method} cannot be merged", *MISFITS):
        for name, module in list(base.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):  # most methods leave a head of several layers in its wrapper
                head = module.unload_and_optionally_merge_module(True, False, None)
                base.set_submodule(name, head)
        return model.merge_and_unload()


@torch.no_grad()
def outputs(  # float64
    model: Any,
    rows: int = ROWS,
    state: Tensors | None = None,
    *,
    at_once: bool = False,
) -> Tensor | None:
    """Return the model's first output (logits if it has a head) for seeded random token ids.

    None if the model does not take token ids alone, such as a model of images or sound. `state` temporarily replaces
    tensors by name. Rows are computed one by one, so that no padding token is needed, or `at_once`.
    """
    count = _count_tokens(model)
    if count is None:
        return None
    ids = _draw_ids(model.config, count)[:rows]
    logits = []
    for batch in ids.split(rows if at_once else 1):
        inputs = {"input_ids": batch, "return_dict": True}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = batch
        output = functional_call(model, dict(state or {}), (), inputs, tie_weights=False)
        logits.append(output[0].double())
    return torch.cat(logits)


def _count_tokens(model: Any) -> int | None:
    """Return the number of different token ids; None if the model does not take token ids alone."""
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if "input_ids" not in signature(plain.forward).parameters:  # Whisper embeds tokens, but reads sound
        return None
    with suppress(NotImplementedError):  # CLIP has two inputs
        embeddings = plain.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding):
            return embeddings.num_embeddings
    return None


def _draw_ids(config: Any, count: int) -> Tensor:  # (ROWS, length)
    """Draw token ids; those of an encoder-decoder end with the end token, at which T5 and BART classify."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    length = LENGTH
    if positions >= 1:  # XLNet, which has no table of positions, has -1
        length = max(1, min(LENGTH, positions - RESERVED))
    draws = torch.Generator().manual_seed(SEED)
    ids = torch.randint(count, (ROWS, length), generator=draws)
    end = getattr(config, "eos_token_id", None)
    if config.is_encoder_decoder and isinstance(end, int):
        ids[ids == end] = (end + 1) % count
        ids[:, -1] = end
    return ids


def _name_in_base(name: str) -> str:
    """Return the base model's name of a parameter in a PEFT wrapper."""
    for wrapper in (".modules_to_save.default", ".original_module", ".base_layer"):
        name = name.replace(wrapper, "")
    return name.removeprefix(PREFIX)


def _config_of(files: Files, base: nn.Module) -> PeftConfig:  # checked before any memory of its sizes is taken
    if files.method == LSR:
        return check_config(files)
    sides = [min(parameter.shape) for parameter in base.parameters() if parameter.dim() == 2]
    widest = max(sides, default=0)
    with wrap_errors(files.folder / CONFIG, *MISFITS):
        return config_of(deepcopy(files.fields), widest)


class _AllocationLimit(TorchDispatchMode):
    """Limits the total entries of created tensors to `most`: untrusted configurations may state any size.

    The projections of VeRA and RandLoRA, for example, are not in the file: PEFT draws them from a seed.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = self.left = most

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Fields | None = None,
    ) -> Any:
        options = kwargs or {}
        if str(options.get("device")) != "meta":
            self.left -= _count_new_entries(func.overloadpacket, args)
            if self.left < 0:
                raise ValueError(f"it creates over {self.most:,} entries, more than the base model and its file have")
        return func(*args, **options)


def _count_new_entries(operation: Any, args: tuple[Any, ...]) -> int:
    """Return how many entries an operation creates from given sizes, rather than from the shape of a tensor."""
    if any(isinstance(value, Tensor) for value in args):
        if operation not in FROM_TENSOR:
            return 0
        tensor, sizes, *_ = args
        return prod(sizes) * (tensor.numel() if operation is ATEN.repeat else 1)
    lists = [value for value in args if isinstance(value, list | tuple)]  # some have bounds or moments before it
    sizes = lists[0] if lists else args[:1]
    if not all(isinstance(size, int) for size in sizes):
        return 0
    axes = 2 if operation is ATEN.eye else 1
    return prod(sizes) ** axes


def _check_complete(model: PeftModel, tensors: Tensors) -> None:
    # That a file holds exactly the tensors of a model's adapter, head and biases: PEFT checks their shapes alone.
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    # With bias="all" PEFT also lists the biases inside the wrapper of a head.
    expected = set(filterfalse(WRAPPED.search, state))
    check_held(set(filterfalse(WRAPPED.search, tensors)), expected, "this adapter on this base model")
    for name in sorted(expected):
        tensor = tensors[name]
        if state[name].is_floating_point() and not tensor.is_floating_point():
            raise ValueError(f"{name} holds {dtype_name(tensor.dtype)} values; needed: floating-point ones")
