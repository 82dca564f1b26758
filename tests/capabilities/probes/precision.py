"""Number formats, compilers, copies and reports."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from tests.capabilities.behavior import EVERY, PAIRS, Behavior
from tests.capabilities.checks import check, is_factor, layers, loss, near, same, train, trainable
from tests.capabilities.models import logits, tiny, tokens
from tests.capabilities.subjects import HEADLESS, Subject


def _bfloat16(subject: Subject, folder: Path) -> None:
    base = tiny(subject.model).bfloat16()
    model = get_peft_model(copy.deepcopy(base), subject.config()).eval()
    factors = {name: p for name, p in trainable(model).items() if is_factor(name)}
    check({p.dtype for p in factors.values()} == {torch.float32}, "the adapter is not kept in float32")
    same(logits(model), logits(base), "a fresh adapter changes a bfloat16 model")
    train(model)
    model.save_pretrained(str(folder))
    same(logits(PeftModel.from_pretrained(base, str(folder))), logits(model), "loaded, it computes something else")


def _own_dtype(subject: Subject, folder: Path) -> None:
    base = tiny(subject.model).bfloat16()
    model = get_peft_model(base, subject.config(**HEADLESS), autocast_adapter_dtype=False)
    check({p.dtype for p in trainable(model).values()} == {torch.bfloat16}, "the adapter is not in the base's dtype")
    train(model)


def _autocast(subject: Subject, folder: Path) -> None:
    model = subject.stirred().train()
    with torch.autocast("cpu", torch.bfloat16):
        now = loss(model)
    now.backward()
    dtypes = {getattr(parameter.grad, "dtype", None) for parameter in trainable(model).values()}
    check(dtypes == {torch.float32}, "gradients are not in float32")


def _compile(subject: Subject, folder: Path) -> None:
    torch.compiler.reset()
    model = subject.stirred()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    near(logits(compiled), logits(model), "compiled, it differs")
    gradients = []
    for one in (compiled, model):
        model.zero_grad()
        one(**tokens()).logits.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in trainable(model).items()})
    for name, gradient in gradients[1].items():
        near(gradients[0][name], gradient, f"compiled, the gradient of {name} differs")
    torch.compiler.reset()


def _swap_compiled(subject: Subject, folder: Path) -> None:
    compilations: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    model, other = subject.fresh(), subject.stirred()
    compiled = torch.compile(model, backend=backend)
    logits(compiled)
    before = len(compilations)
    set_peft_model_state_dict(model, get_peft_model_state_dict(other))
    near(logits(compiled), logits(other), "the compiled model keeps the old adapter")
    check(len(compilations) == before, "the model is compiled again")
    torch.compiler.reset()


def _copy(subject: Subject, folder: Path) -> None:
    model = subject.with_two()
    before, twin = logits(model), copy.deepcopy(model)
    same(logits(twin), before, "a copy computes something else")
    train(twin)
    same(logits(model), before, "training a copy changes the original")


def _reports(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    count = sum(parameter.numel() for parameter in trainable(model).values())
    model.print_trainable_parameters()
    check(model.get_nb_trainable_parameters()[0] == count, "print_trainable_parameters counts something else")
    status = model.get_model_status()
    check(status.trainable_params == count, "get_model_status counts something else")
    check((status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], []), "wrong status")
    # PEFT also lists heads that are trained in full.
    reported = {f"base_model.{layer.name}" for layer in model.get_layer_status()}
    check(set(layers(model)) <= reported, "get_layer_status lists other layers")
    model = subject.stirred(**HEADLESS)  # heads are never merged
    model.merge_adapter()
    check(model.get_model_status().merged_adapters == ["default"], "a merged adapter is not reported")


BEHAVIORS = {
    "float32 adapter on a bfloat16 base": Behavior(_bfloat16, EVERY),
    "`autocast_adapter_dtype=False`": Behavior(_own_dtype),
    "autocast": Behavior(_autocast),
    "`torch.compile`, one graph": Behavior(_compile, ("bert",)),
    "another adapter's weights set in place, not compiled again": Behavior(_swap_compiled, ("bert",)),
    "`deepcopy`": Behavior(_copy, PAIRS),
    "`get_layer_status`, `get_model_status`, counts": Behavior(_reports),
}
