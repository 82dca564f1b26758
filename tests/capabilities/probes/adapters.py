"""Several adapters on one model."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from tests.capabilities.behavior import PAIRS, Behavior
from tests.capabilities.checks import check, layers, near, same, trainable
from tests.capabilities.models import logits, tiny, tokens
from tests.capabilities.subjects import HEADLESS, TARGETS, Subject

NAMES = ["second", "__base__", "default", "second"]  # of rows


def _disable(subject: Subject, folder: Path) -> None:
    model = subject.with_two()
    for name in ("default", "second"):
        model.set_adapter(name)
        before = logits(model)
        with model.disable_adapter():
            same(logits(model), logits(tiny(subject.model)), "the disabled adapter changes the model")
        same(logits(model), before, "enabled again, it computes something else")


def _add_adapter(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    before = logits(model)
    model.add_adapter("second", subject.second())
    same(logits(model.eval()), before, "a second adapter changes the model before it is active")
    check(model.active_adapters == ["default"], "a second adapter is active at once")
    check(not any("second" in name for name in trainable(model)), "a second adapter trains before it is active")


def _set_adapter(subject: Subject, folder: Path) -> None:
    model = subject.with_two()
    first = logits(model)
    model.set_adapter("second")
    alone = get_peft_model(tiny(subject.model), subject.second()).eval()
    set_peft_model_state_dict(alone, get_peft_model_state_dict(model, adapter_name="second"))
    same(logits(model), logits(alone), "the second adapter computes something else than alone")
    check(not any(".default" in name for name in trainable(model)), "an inactive adapter trains")
    model.set_adapter("default")
    same(logits(model), first, "switching forth and back changes the first adapter")


def _several_active(subject: Subject, folder: Path) -> None:
    model = subject.with_two(**HEADLESS)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    near(both, _with_updates(subject, model, {"default": 1, "second": 1}), "active adapters do not add up")
    model.merge_adapter()
    near(logits(model), both, "merged together, they compute something else")
    model.unmerge_adapter()
    near(logits(model), both, "unmerged together, they compute something else")


def _delete_adapter(subject: Subject, folder: Path) -> None:
    model = subject.with_two()
    first = logits(model)
    model.delete_adapter("second")
    same(logits(model), first, "deleting another adapter changes the active one")
    check(not any("second" in name for name in model.state_dict()), "something of a deleted adapter is left")


def _mixed_batch(subject: Subject, folder: Path) -> None:
    model = subject.with_two(**HEADLESS)
    outputs = {"__base__": logits(tiny(subject.model))}
    for name in ("default", "second"):
        model.set_adapter(name)
        outputs[name] = logits(model)
    expected = torch.stack([outputs[name][row] for row, name in enumerate(NAMES)])
    for active in ("default", "second"):
        model.set_adapter(active)
        with torch.no_grad():
            mixed = model(**tokens(), adapter_names=NAMES).logits
        near(mixed, expected, "the adapters of rows are ignored")
        same(logits(model), outputs[active], "a mixed batch changes the model")


def _mixed_methods(subject: Subject, folder: Path) -> None:
    model = get_peft_model(tiny(subject.model), subject.config(**HEADLESS), mixed=True)
    model.add_adapter("second", LoraConfig(r=2, target_modules=TARGETS[subject.model]))


def _with_updates(subject: Subject, model: Any, weights: dict[str, float]) -> Tensor:
    """Return the logits of the base model with a weighted sum of adapters' updates added."""
    plain = tiny(subject.model)
    for name, layer in layers(model).items():
        there = layer._get_available_adapters()
        update = sum(w * layer.get_delta_weight(adapter) for adapter, w in weights.items() if adapter in there)
        plain.get_submodule(name.removeprefix("base_model.model.")).weight.data += update
    return logits(plain)


BEHAVIORS = {
    "`disable_adapter`: the base, bit for bit": Behavior(_disable, PAIRS),
    "`add_adapter`": Behavior(_add_adapter, PAIRS),
    "`set_adapter`": Behavior(_set_adapter, PAIRS),
    "`delete_adapter`": Behavior(_delete_adapter, PAIRS),
    "several active adapters": Behavior(_several_active, PAIRS),
    "`adapter_names`: each row its adapter": Behavior(_mixed_batch, PAIRS),
    "`PeftMixedModel` with LoRA": Behavior(_mixed_methods, ("bert",)),
}
