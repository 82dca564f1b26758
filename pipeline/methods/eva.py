"""EVA: LoRA's A from the leading singular vectors of each layer's inputs, and the ranks from their explained variance.

Reference: Paischer et al. 2024, "Parameter Efficient Fine-tuning via Explained Variance Adaptation" (arXiv 2410.07170).
"""

from collections.abc import Iterable, Mapping

from peft import PeftModel, initialize_lora_eva_weights
from torch import Tensor

from pipeline.core.errors import UserError, first_line
from pipeline.methods import device
from pipeline.params import PARAMS


def start(model: PeftModel, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Initialize a fresh LoRA with `init: eva` from batches of examples; their labels are ignored.

    Raises:
        UserError: if the examples are not suitable.
    """
    with device.placed(model):
        inputs = list(device.moved(batches, device.device_of(model)))
        for batch in inputs:
            batch.pop("labels", None)  # PEFT would treat them as a language model's, one per token
        was_training = model.training
        try:
            initialize_lora_eva_weights(model.eval(), inputs, show_progress_bar=False)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{PARAMS}: lora.init: eva: {first_line(error)}") from None
        model.train(was_training)
