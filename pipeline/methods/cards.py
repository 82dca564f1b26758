"""The model cards of published adapters: training data, settings and scores.

The stage train writes the card with the validation score into the adapter's folder. The stage evaluate, which may not
change that folder, writes the same card with the test scores next to it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
from peft.utils.constants import DUMMY_TARGET_MODULES

from lsr.tuner.card import FILE, Card
from lsr.tuner.files import CONFIG
from pipeline.data import base_models
from pipeline.params import EvaluateView, TrainView
from pipeline.params.sections import RegressionParams
from pipeline.params.sources import PackageSource
from pipeline.tasks import Task
from pipeline.tasks.scoring import name_selection_score
from pipeline.tasks.task import interval_of
from pipeline.tasks.verdicts import verdicts

SCORE = re.compile(r"(?<=\n## Score\n\n).*?(?=\n\n## )", re.DOTALL)  # the section of that name


def of_training(view: TrainView, task: Task, counts: Mapping[str, int], score: float, adapter: Path) -> Card:
    """Return the card of an adapter in a folder; `score` is the validation score."""
    fields = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    base, revision = base_models.public_name(view.base_model)
    of_checkpoint = base_models.load_config(view.base_model, task).dtype
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[fields["peft_type"]]]
    package = config.__module__.partition(".")[0]
    # PEFT saves a head alone, or a whole model, as an adapter without layers.
    is_adapter = fields.get("target_modules") != DUMMY_TARGET_MODULES
    description = task.description
    read = " and ".join(f"`{name}`" for name in description.columns)
    target = description.predicts()
    sections = {
        "Score": _describe_score(view, task, score),
        "Parameters": _parameters(counts),
        "Training": _training(view, description.sections),
    }
    return Card(
        base,
        revision,
        fields["task_type"],
        task.head.names,
        is_pair=len(description.columns) > 1,
        dtype=None if of_checkpoint in (None, torch.float32) else "float32",
        **description.card(),
        method=fields["peft_type"],
        module=package if package in ("lsr", "peft") else config.__module__,
        called=f"{config.__name__.removesuffix('Config')} adapter" if is_adapter else "Fine-tuned modules",
        summary=f"It was trained on {view.data}. From a text ({read} in the data), it predicts {target}.",
        sections=sections,
        header={"datasets": [_dataset(view)], "metrics": list(task.entry.metrics)},
    )


def _describe_score(view: TrainView, task: Task, score: float) -> str:
    metric, shown = name_selection_score(task.scoring, score)
    of_class = task.description.of_class(metric)
    chosen = "checkpoint"
    if view.train.refit:
        chosen = "number of epochs of a second training run, on train and validation together"
    elif isinstance(view.section, RegressionParams):
        chosen = "strength of its penalty"
    return f"{metric}{of_class} {shown:.4g} on the {view.dataset.select_on} split, which chose the {chosen}."


def _parameters(counts: Mapping[str, int]) -> str:
    trained = f"{counts['adapter_trained']:,} of the adapter were trained"
    stored = f"{counts['adapter_stored']:,} are stored, plus {counts['head_parameters']:,} of the head"
    return f"{trained} and {stored}; {counts['base_parameters']:,} of the base model are frozen."


def _training(view: TrainView, more: Sequence[str]) -> str:
    sections = {
        view.adapter: view.section,
        "tokenize": view.tokenize,
        "train": view.train,
    }
    for key in more:
        sections[key] = getattr(view, key)
    values = ""
    for key, section in sections.items():
        chosen = section.model_dump(mode="json")
        values += f"{key}: {json.dumps(chosen)}\n"
    command = f"dvc exp run -S data={view.data} -S model={view.model} -S adapter={view.adapter} -S seed={view.seed}"
    return f"With these values in `params.yaml`:\n\n```yaml\n{values}```\n\n    {command}"


def of_evaluation(view: EvaluateView, task: Task, metrics: Mapping[str, float], adapter: Path) -> str:
    """Return the card of a trained adapter with its test scores in place of the validation score."""
    card = ModelCard((adapter / FILE).read_text(encoding="utf-8"))
    names = view.dataset.metrics
    data = cast("ModelCardData", card.data)
    data.model_name = f"{view.model} on {view.data}"
    data.eval_results = [
        EvalResult(
            task_type=task.description.hub_task,
            dataset_type=_dataset(view),
            dataset_name=view.data,
            dataset_split="test",
            metric_type=name,
            metric_value=metrics[name],
        )
        for name in names
    ]
    lines = ["| test split | score | 95 % interval |", "|---|---|---|"]
    for name in names:
        low, high = interval_of(name, metrics)
        score = f"{metrics[name]:.4g} | {low:.4g} to {high:.4g}"
        lines.append(f"| {name}{task.description.of_class(name)} | {score} |")
    lines += ["", f"of {metrics['examples']:,} examples."]
    for _, words in verdicts(names[0], metrics, task.description):
        lines += ["", f"By {names[0]}, it is {words}."]
    card.text = SCORE.sub("\n".join(lines), card.text)
    return str(card)


def _dataset(view: TrainView | EvaluateView) -> str:
    """Return the public name of the data, never a path on this machine."""
    source = view.dataset.source
    if isinstance(source, PackageSource):
        return source.package
    is_on_hub = source.kind == "hub" and not Path(str(source.path)).exists()
    return str(source.path) if is_on_hub else view.data
