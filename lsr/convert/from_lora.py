"""Make an LSR adapter of a plain PEFT LoRA: the same tensors, in the fused layer of LSR."""

from pathlib import Path

from lsr.convert.composed import composed
from lsr.convert.writing import check_output, copy_task, write_adapter, writing
from lsr.loading.adapters import WRAPPED
from lsr.loading.lora import FACTOR, lora_pairs
from lsr.loading.task_note import labels_of, read_task
from lsr.tuner.card import Card
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import CONFIG, read_config, read_tensors
from lsr.tuner.mistakes import InputError


def from_lora(lora: str | Path, output: str | Path, *, force: bool = False) -> LsrConfig:
    """Write the LoRA in a folder as an LSR adapter with the same A, B, head and biases, bit for bit.

    With `rank_shape=(r,)` and trained factors LSR is LoRA: it computes the same, goes on training in the same way, and
    `export_lora` gives the same tensors again. Returns the configuration, which names each layer.

    Raises:
        InputError: if the folder is not a LoRA, or does more than add B A to linear layers (DoRA, initializations that
            change the base weight, convolutions, embeddings); if the output exists and `force` is false; or if LSR
            refuses a value, such as an alpha of zero.
    """
    lora, output = Path(lora), Path(output)
    check_output(output, (lora,), replace=force)
    fields = read_config(lora, "LORA")
    pairs = lora_pairs(lora, fields)
    bias = fields.get("bias", "none")
    options = {"dropout": fields.get("lora_dropout", 0.0), "bias": "lsr_only" if bias == "lora_only" else bias}
    try:
        config, factors = composed(fields, pairs, **options)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{lora / CONFIG}: {error}") from None
    # With bias="all" PEFT writes the biases of a head twice, by the names that they have inside its wrapper too.
    tensors = {k: value for k, value in read_tensors(lora).items() if not (FACTOR.fullmatch(k) or WRAPPED.search(k))}
    with writing(output) as new:
        write_adapter(new, config.to_dict(), tensors | factors)
        copy_task(lora, new)
        base, labels = config.base_model_name_or_path, labels_of(read_task(lora), tensors)
        Card("LSR", base, config.revision, config.task_type, labels).write(new)
    return config
