"""Calibrate a trained head: its last layer is divided by the temperatures that the validation split determines.

So the adapter and its exports have calibrated probabilities, without a division by readers.
"""

from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import DataCollatorWithPadding

from pipeline import evaluation
from pipeline.methods import heads
from pipeline.tasks import Task
from pipeline.tasks.calibration import fit_temperatures
from pipeline.tasks.facts import Facts
from pipeline.tasks.tenants import widths_of


def calibrate(
    task: Task, model: PeftModel, validation: Dataset, collate: DataCollatorWithPadding, batch_size: int
) -> Task:
    """Scale the head of a trained model, and return the task with its temperatures, and thresholds if it has some.

    A task without probabilities is returned as it is.
    """
    head = task.head
    if not head.has_probabilities:
        return task
    outputs = evaluation.outputs(head, model, validation, collate, batch_size)
    outcome = evaluation.outcome(outputs, validation)
    calibrated = task.with_fitted(temperatures=fit_temperatures(head.collect_logits(outcome)))
    divisors = apply_temperatures(calibrated.facts, model)
    if not task.facts.tenants:  # tenants have no thresholds
        outcome = replace(outcome, outputs=outputs / divisors)
    return calibrated.tune_thresholds(outcome)


def apply_temperatures(facts: Facts, model: PeftModel) -> Tensor:
    """Divide the outputs of the head by the temperatures that validation determined; return those of all outputs."""
    assert facts.temperatures is not None
    widths = widths_of(facts) if facts.tenants else 1
    repeated = np.repeat(facts.temperatures, widths)
    of_outputs = torch.from_numpy(repeated).float()
    heads.scale_head(model, of_outputs)
    return of_outputs
