"""Make an LSR adapter of a plain PEFT LoRA: the same tensors, in the fused layer of LSR."""

from pathlib import Path

from lsr.convert.writing import check_output, write
from lsr.loading.contents import read_contents
from lsr.loading.lora import LORA
from lsr.tuner.config import LsrConfig


def from_lora(lora: str | Path, output: str | Path, *, force: bool = False) -> LsrConfig:
    """Write the LoRA in a folder as an LSR adapter with the same A, B, head and biases, bit for bit.

    With `rank_shape=(r,)` and trained factors LSR is LoRA: it computes the same, goes on training in the same way, and
    `export_lora` gives the same tensors again. Returns the configuration, which names each layer.

    Raises:
        InputError: if the folder is not a LoRA, or does more than add B A to linear layers (DoRA, initializations that
            change the base weight, convolutions, embeddings); if the output exists and `force` is false; or if LSR
            refuses a value, such as an alpha of zero.
    """
    output = Path(output)
    check_output(output, (Path(lora),), replace=force)
    write(read_contents(lora, LORA, with_biases=True), output)
    config = LsrConfig.from_pretrained(str(output))
    assert isinstance(config, LsrConfig)
    return config
