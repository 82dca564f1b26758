"""The stages in this process, and what they have written."""

import sys
import warnings
from contextlib import chdir

import pytest
import torch

from pipeline import evaluation, params
from pipeline.core import artifacts
from pipeline.data import base_models, tokens
from pipeline.methods import adapters, planning
from pipeline.methods.batches import tokenizer_of
from pipeline.stage import run as start_stage
from pipeline.training.run import Progress
from stages import evaluate, factorize_init, tokenize, train
from tests.kit import ended

TOKENIZE = (tokenize, params.TokenizeView)
FACTORIZE = (factorize_init, params.FactorizeInitView)
TRAIN = (train, params.TrainView)
EVALUATE = (evaluate, params.EvaluateView)


def run(*stages):
    for stage, view in stages:
        stage.main(params.load(view))


def run_in(folder, *stages):
    """Run stages in a folder, and return it."""
    with chdir(folder):
        run(*stages)
    return folder


def ended_alone(stage, view):
    """How a stage ends that prints warnings as in a process of its own, where pytest keeps none: status and errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _print_warning
        status, _, err = ended(start_stage, stage.main, view, "a stage")
    return status, err


def _print_warning(message, category, filename, lineno, file=None, line=None):
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def report(path):
    return artifacts.read_metrics(path)


def base_model(view):
    """The base model with the head that training begins with: of numbers, it answers with about their mean."""
    torch.manual_seed(view.seed)
    model = base_of(view)
    if view.standardizes_labels:
        labels = torch.tensor(tokens.load_tokens("train")["label"][:], dtype=torch.float64)
        head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
        with torch.no_grad():
            if head.bias is None:
                head.weight.mul_(labels.square().mean().sqrt().item())
            else:
                head.weight.mul_(labels.std(correction=0).item())
                head.bias.fill_(labels.mean().item())
    return model


def base_of(view):
    model = base_models.load_base_model(view.base_model, tokens.load_task(view.dataset))
    tokenizer_of(model, view.base_model)
    return model


def trained(view, *, trainable=False):
    return adapters.load_adapter(base_of(view), artifacts.ADAPTER, trainable=trainable)


def outcome(view, split):
    """The task of a view, and what its trained adapter answers to a split beside what is right."""
    task, rows = tokens.load_task(view.dataset), tokens.load_tokens(split)
    model = trained(view)
    collate = task.head.collator(tokenizer_of(model, view.base_model))
    return task, evaluation.outcome(evaluation.outputs(task.head, model, rows, collate, 16), rows)


def added(base, view):
    """The base model with a fresh adapter; what total_directions are distributed by is drawn."""
    plan = planning.resolve(view, base)
    drawn = {}
    if getattr(view.section, "total_directions", "none") != "none":
        torch.manual_seed(0)
        drawn = {name: torch.randn_like(base.get_submodule(name).weight) for name in plan.layers}
    return adapters.add_adapter(base, plan, drawn)


def inputs():
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (3, 9))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model, **options):
    with torch.no_grad():
        return model.eval()(**inputs(), **options).logits


class KilledError(Exception):
    pass


def killed_training(monkeypatch, epochs):
    """Train as the stage does, until after so many epochs the process dies."""

    def kill(self, args, state, control, **_):
        if state.epoch > epochs:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", kill)
        with pytest.raises(KilledError):
            run(TRAIN)
