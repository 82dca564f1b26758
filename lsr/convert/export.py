"""Export adapters as a plain PEFT LoRA or a plain transformers checkpoint, and import LoRA adapters."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from lsr.convert.lowrank import measure_merge, merge, read_lowrank
from lsr.convert.relative_errors import Norms, RelativeErrors, errors_of, norms_of, relative
from lsr.convert.writing import check_output, replace_folder, write, write_task
from lsr.errors import InputError
from lsr.loading.adapters import load_adapter
from lsr.loading.base_models import is_classifier
from lsr.loading.contents import Contents, read_contents, read_task
from lsr.loading.padding import set_padding
from lsr.loading.updates import LORA, LSR, Bases, Updates
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import PREFIX, TASK, Files, read_files
from lsr.tuner.layer import LsrLinear
from lsr.tuner.lookup import config_of, find_injected, layers_of
from lsr.tuner.packing import dtype_name
from lsr_onnx.task import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TENANTS

EXACT = 1e-6  # relative error of the update up to which an export equals its adapter
TOLERATED_LOSS = 0.05  # relative error of the update from which on an export in a dtype is refused
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_lora(
    adapter: PeftModel | str | Path,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    adapter_name: str = "default",
    base: str | None = None,
    rank: int | None = None,
    force: bool = False,
) -> RelativeErrors:
    """Export an adapter as a LoRA folder that PEFT loads without this package, with head and biases.

    `adapter` is a model with an LSR adapter, or an adapter's folder. LSR is exported exactly, without a base model:
    each layer has its true rank and scaling 1, and if the adapter is a LoRA (one rank in `rank_shape`, no core), A, B
    and alpha are copied bit for bit. An adapter of any other PEFT method is merged into its base model, or into `base`,
    and each layer's update is decomposed (`lsr.convert.lowrank`). With `rank`, the maximum rank per layer, LSR adapters
    are approximated, too. The written bytes are reproducible. A tokenizer in the adapter's folder is copied.

    Returns the relative errors of the written updates.

    Raises:
        InputError: if the folder exists or the dtype loses more of the update than `TOLERATED_LOSS`, unless `force`; if
            the dtype overflows; if the adapter's folder is not an adapter; or as `read_lowrank`.
    """
    folder = Path(folder)
    check_output(folder, () if isinstance(adapter, PeftModel) else (adapter,), replace=force)
    if isinstance(adapter, PeftModel):
        if rank is not None:
            raise InputError("rank: needed: the folder of an adapter, not a model with it")
        contents = _of_model(adapter, adapter_name)
        source = config_of(adapter, adapter_name).folder
        exact = None
    else:
        source = Path(adapter)
        contents, exact = _of_folder(source, base, rank)
    plain = {name: update.plain() for name, update in contents.updates.items()}
    updates = {}
    for name, update in plain.items():
        a, b = (_cast_weights(name, side, dtype) for side in (update.bases.a, update.bases.b))
        updates[name] = update._replace(bases=Bases(a=a, b=b))
    _check(errors_of(updates, plain), dtype, force)
    heads = {name: _cast_weights(name, value, dtype) for name, value in contents.heads.items()}
    errors = errors_of(updates, exact or plain)
    summary = None if exact is None else _summarize(errors)
    written = replace(contents, updates=updates, heads=heads)
    write(written, folder, LORA, with_tokenizer_of=source, summary=summary)
    return errors


def _summarize(errors: RelativeErrors) -> str:
    if errors.total <= EXACT:
        return "It equals an adapter of another method, and loads with PEFT alone."
    return f"It approximates an adapter, with a relative error of {errors.total:.2g}, and loads with PEFT alone."


def _of_folder(folder: Path, base: str | None, rank: int | None) -> tuple[Contents, Updates | None]:
    # An adapter's contents as a LoRA, and its updates in full if they are others.
    files = read_files(folder)
    if files.method == LSR and rank is None:
        return read_contents(files, LSR, with_biases=True), None
    return read_lowrank(files, base, rank)


def from_lora(lora: str | Path, output: str | Path, *, force: bool = False) -> LsrConfig:
    """Import a LoRA folder as an LSR adapter with the same A, B, head and biases, bit for bit.

    With `rank_shape=(r,)` and trained factors LSR equals LoRA: same outputs, same further training, and `export_lora`
    returns the same tensors. Returns the configuration, which names each layer.

    Raises:
        InputError: if the folder is not a LoRA, or does more than add B A to linear layers (DoRA, initializations that
            change the base weight, convolutions, embeddings); if the output exists and `force` is false; or if LSR
            refuses a value, such as an alpha of zero.
    """
    output = Path(output)
    check_output(output, (lora,), replace=force)
    write(read_contents(lora, LORA, with_biases=True), output, with_tokenizer_of=Path(lora))
    return cast("LsrConfig", LsrConfig.from_pretrained(str(output)))


def export_merged(
    adapter: PeftModel | str | Path,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    adapter_name: str = "default",
    base: str | None = None,
    tokenizer: Any = None,
    force: bool = False,
) -> RelativeErrors:
    """Write the base model with the adapter merged into its weights, and its tokenizer if given.

    `adapter` is a model with an LSR adapter, which is modified, or the folder of an adapter of any PEFT method that can
    be merged, onto the base model that it names or onto `base`. Label names come from the task.json of the adapter's
    folder. A classifier's config.json gets the tokenizer's padding token, and the tokenizer pads on the side that the
    model needs.

    Returns the relative errors of the updates by rounding.

    Raises:
        InputError: as `export_lora`, and unless task.json has one name for each label.
    """
    folder = Path(folder)
    if isinstance(adapter, PeftModel):
        check_output(folder, (), replace=force)
        return _merge_lsr(adapter, folder, dtype, adapter_name, tokenizer, force)
    check_output(folder, (adapter,), replace=force)
    files = read_files(adapter)
    if files.method == LSR:
        return _merge_lsr(load_adapter(files, base), folder, dtype, adapter_name, tokenizer, force)
    merged = merge(files, base)
    errors = relative(measure_merge(files, merged, dtype))
    _check(errors, dtype, force)
    _write_merged(merged.model, folder, files.folder, dtype, tokenizer)
    return errors


def _merge_lsr(
    model: PeftModel,
    folder: Path,
    dtype: torch.dtype,
    adapter_name: str,
    tokenizer: Any,
    force: bool,
) -> RelativeErrors:
    """Write a model with an LSR adapter, merged."""
    errors = _measure_merge_errors(layers_of(model, adapter_name), adapter_name, dtype)
    _check(errors, dtype, force)
    model.set_adapter(adapter_name)
    source = config_of(model, adapter_name).folder
    _write_merged(model, folder, source, dtype, tokenizer)
    return errors


def _write_merged(
    model: Any,
    folder: Path,
    source: Path | None,
    dtype: torch.dtype,
    tokenizer: Any,
) -> None:
    """Write a model, into which an adapter from the folder `source` is merged, unless it is merged already."""
    task = None if source is None else read_task(source)
    task_info = task or {}
    describe_labels(model.config, task_info, source)
    if task_info and TENANTS not in task_info and is_classifier(model):
        describe_problem(model.config, task_info)
    plain = cast("Any", model.merge_and_unload()) if isinstance(model, PeftModel) else model
    if tokenizer is not None and is_classifier(plain):
        set_padding(tokenizer, plain.config)
    for name, parameter in plain.named_parameters():
        parameter.data = _cast_weights(name, parameter.data, dtype)
    plain.to(dtype)  # buffers, and the dtype in the configuration
    with replace_folder(folder) as new:
        plain.save_pretrained(str(new))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(new))
        write_task(new, task)


def describe_labels(config: Any, task: Mapping[str, Any], folder: Path | None) -> None:
    """Set the label names of a model's configuration from task info, if it has names.

    Raises:
        InputError: unless the task info has one name per label; names the folder of the task info.
    """
    names = task.get("labels")
    if names is None:
        return
    if len(names) != config.num_labels or len(set(names)) != len(names):
        needed = f"{config.num_labels} different names"
        raise InputError(f"{folder}/{TASK}: labels must be {needed}, got {' '.join(names)}")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def describe_problem(config: Any, task: Mapping[str, Any]) -> None:
    """Set the problem type of a model's configuration, by which the pipeline of transformers reads its outputs."""
    if task.get("thresholds"):
        config.problem_type = MULTI_LABEL
    elif config.num_labels == 1:
        config.problem_type = REGRESSION
    else:
        config.problem_type = SINGLE_LABEL


def _of_model(model: PeftModel, adapter_name: str) -> Contents:
    layers = layers_of(model, adapter_name)
    base = model.get_base_model()
    config = config_of(model, adapter_name)
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    files = Files(config.folder or Path("the model"), config.to_dict(), state)
    contents = read_contents(files, with_biases=True)
    own = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    return replace(
        contents,
        base={**contents.base, "auto_mapping": own},
        modules=[name.removeprefix(PREFIX) for name, _ in model.named_modules()],
        model_labels=find_injected(model)[adapter_name].labels,
        is_transposed=any(layer.is_transposed for layer in layers.values()),
    )


def _measure_merge_errors(layers: Mapping[str, LsrLinear], adapter_name: str, dtype: torch.dtype) -> RelativeErrors:
    """Measure ||round(W + ΔW) - W - ΔW||: an entry of ΔW below half a rounding step of W's entry vanishes."""
    norms = dict[str, Norms]()
    for name, layer in layers.items():
        weight = layer.get_pretrained_weight().float()
        update = layer.get_delta_weight(adapter_name).detach()
        written = _cast_weights(name, weight + update, dtype).double()
        exact = update.double()
        norms[name] = norms_of(written - weight.double() - exact, exact)
    return relative(norms)


def _cast_weights(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    written = tensor.to(dtype)
    if not torch.isfinite(written).all():
        raise InputError(f"{dtype_name(dtype)} cannot hold the weights of {name}: they overflow; use float32")
    return written


def _check(errors: RelativeErrors, dtype: torch.dtype, force: bool) -> None:
    if errors.total > TOLERATED_LOSS and not force:
        worst = f"{errors.layers[errors.worst]:.1%} of that in {errors.worst}"
        allowed = f"at most {TOLERATED_LOSS:.0%} is allowed; use float32, or --force"
        raise InputError(f"{dtype_name(dtype)} would lose {errors.total:.1%} of the update, {worst}; {allowed}")
