"""What users of PEFT expect of a method: one probe per behavior, for LSR or any other method."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from torch.testing import assert_close

from tests.capabilities.checks import base_weights, check, far, layers, near, rejects, reloaded, same, same_base
from tests.old_tiny.models import Fields, logits, tiny, tokens
from tests.old_tiny.subjects import CASES, CORE, METHODS, SHARED, TARGETS, Subject
from tests.old_tiny.training import is_factor, loss, stir, train, trainable


@dataclass(frozen=True)
class Behavior:
    """What users expect: a probe, the subjects on which LSR's tests run it, and the model of the page.

    A probe takes a subject and an empty folder; if the behavior is missing it raises, with the reason in the first
    line.
    """

    probe: Callable[[Subject, Path], None]
    on: Mapping[str, Subject] = field(default_factory=lambda: MODELS)
    shown_on: str = "bert"


def of(*models: str) -> dict[str, Subject]:
    """Return the usual subjects on models, by name."""
    return {model: Subject(model) for model in models}


MODELS = of("bert", "roberta", "distilbert", "gpt2", "gpt2-causal", "llama-causal")
PAIRS = {
    "two plain ones": Subject("roberta"),
    "one of the weight beside a core": Subject("gpt2", {"init_weights": "principal"}, beside=CORE),
    "two shared ones": Subject("distilbert", SHARED, beside={**SHARED, "train": "all"}),
    "one without a start beside a shared one": Subject("llama-causal", {"init_weights": False}, beside=SHARED),
    "one on other layers": Subject("gpt2-causal", beside={"target_modules": ["c_fc"]}),
}
HEADLESS: Fields = {"task_type": None}  # for an adapter without modules trained in full


def _fresh(subject: Subject, folder: Path) -> None:
    same(logits(subject.fresh()), logits(tiny(subject.model)), "a fresh adapter changes the model")


def _checkpointing(subject: Subject, folder: Path) -> None:
    for reentrant in (False, True):
        gradients = []
        for checkpointing in (False, True):
            model = subject.stirred().train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                model.enable_input_require_grads()
            loss(model).backward()
            gradients.append({name: parameter.grad for name, parameter in trainable(model).items()})
        plain, checkpointed = gradients
        for name, gradient in plain.items():
            check(checkpointed[name] is not None, f"{name} has no gradient")
            assert_close(checkpointed[name], gradient)


def _loading(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    far(logits(model), logits(tiny(subject.model)))
    for is_lean in (False, True):
        reloaded(model, subject.model, folder, low_cpu_mem_usage=is_lean)
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    check(names == {"adapter_config.json", "adapter_model.safetensors"}, f"the folder holds {sorted(names)}")


def _same_bytes(subject: Subject, folder: Path) -> None:
    reloaded(subject.stirred(), subject.model, folder / "one").save_pretrained(str(folder / "two"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, two = ((folder / which / name).read_bytes() for which in ("one", "two"))
        check(one == two, f"{name} differs when a loaded adapter is saved again")


def _load_adapter(subject: Subject, folder: Path) -> None:
    model = subject.with_two()
    model.save_pretrained(str(folder))
    for is_lean in (False, True):
        loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder))
        loaded.load_adapter(str(folder / "second"), "second", low_cpu_mem_usage=is_lean)
        for name in ("default", "second"):
            model.set_adapter(name)
            loaded.set_adapter(name)
            same(logits(loaded.eval()), logits(model), f"adapter {name} computes something else")
    model.save_pretrained(str(folder / "one"), selected_adapters=["second"])
    check([path.name for path in (folder / "one").iterdir() if path.is_dir()] == ["second"], "others were saved too")


def _hot_swap(subject: Subject, folder: Path) -> None:
    model = subject.fresh(**HEADLESS)
    other = subject.stirred(**HEADLESS)
    other.save_pretrained(str(folder))
    hotswap_adapter(model, str(folder), adapter_name="default", torch_device="cpu")
    same(logits(model), logits(other), "the swapped adapter computes something else")


def _merging(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    before = logits(model)
    model.merge_adapter()
    near(logits(model), before, "the merged model computes something else")


def _unmerging(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    before = logits(model)
    weights = base_weights(model)
    model.merge_adapter()
    model.unmerge_adapter()
    same_base(weights, model, "unmerging leaves rounding errors in the base weights")
    same(logits(model), before, "the unmerged model computes something else")


def _merge_and_unload(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    before = logits(model)
    plain = model.merge_and_unload(progressbar=True, safe_merge=True)
    check(type(plain) is type(tiny(subject.model)), "what is left is no plain model")
    check(plain.state_dict().keys() == tiny(subject.model).state_dict().keys(), "what is left has other weights")
    near(logits(plain), before, "the merged model computes something else")
    plain.save_pretrained(str(folder))
    same(logits(type(plain).from_pretrained(str(folder)).eval()), logits(plain), "a merged model is loaded differently")
    left = subject.stirred().unload().state_dict()
    base = tiny(subject.model).state_dict()
    check(left.keys() == base.keys(), "unloading leaves other weights")
    for name, value in base.items():
        if not name.startswith(subject.trained_whole or ("no head",)):
            same(left[name], value, "unloading does not give the base model back")


def _merge_of_unknown(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    rejects(lambda: model.merge_adapter(adapter_names=["typo"]), "a wrong name is passed over: nothing is merged")


def _safe_merge(subject: Subject, folder: Path) -> None:
    for act in ("merge_adapter", "merge_and_unload"):
        model = subject.stirred()
        *_, last = (name for name in trainable(model) if "modules_to_save" not in name)
        model.get_parameter(last).data.fill_(float("nan"))
        weights = base_weights(model)
        before = set(layers(model))
        rejects(partial(getattr(model, act), safe_merge=True), f"{act} merged NaN")
        same_base(weights, model, f"{act} changed base weights before it refused NaN")
        check(set(layers(model)) == before, f"{act} unloaded layers before it refused NaN")


NAMES = ["second", "__base__", "default", "second"]  # of rows


def _disable(subject: Subject, folder: Path) -> None:
    model = subject.with_two()
    for name in ("default", "second"):
        model.set_adapter(name)
        before = logits(model)
        with model.disable_adapter():
            same(logits(model), logits(tiny(subject.model)), "the disabled adapter changes the model")
        same(logits(model), before, "enabled again, it computes something else")


def _switching(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    first = logits(model)
    model.add_adapter("second", subject.second())
    same(logits(model.eval()), first, "a second adapter changes the model before it is active")
    check(model.active_adapters == ["default"], "a second adapter is active at once")
    check(not any("second" in name for name in trainable(model)), "a second adapter trains before it is active")
    model.set_adapter("second")
    stir(model, seed=1)
    alone = get_peft_model(tiny(subject.model), subject.second()).eval()
    result: Any = set_peft_model_state_dict(alone, get_peft_model_state_dict(model, adapter_name="second"))
    check(not result.unexpected_keys, f"unexpected keys: {result.unexpected_keys}")
    same(logits(model), logits(alone), "the second adapter computes something else than alone")
    check(not any(".default" in name for name in trainable(model)), "an inactive adapter trains")
    model.set_adapter("default")
    same(logits(model), first, "switching forth and back changes the first adapter")
    model.delete_adapter("second")
    same(logits(model), first, "deleting another adapter changes the active one")
    check(not any("second" in name for name in model.state_dict()), "something of a deleted adapter is left")


def _several_active(subject: Subject, folder: Path) -> None:
    model = subject.with_two(**HEADLESS)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    plain = tiny(subject.model)
    for name, layer in layers(model).items():
        for adapter in layer._get_available_adapters():
            plain.get_submodule(name.removeprefix("base_model.model.")).weight.data += layer.get_delta_weight(adapter)
    near(both, logits(plain), "active adapters do not add up")
    model.merge_adapter()
    near(logits(model), both, "merged together, they compute something else")
    model.unmerge_adapter()
    near(logits(model), both, "unmerged together, they compute something else")
    model.set_adapter("second")
    second = logits(model)
    model.set_adapter("default")
    near(logits(model.merge_and_unload(adapter_names=["second"])), second, "another adapter was merged")


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


def _typo(subject: Subject, folder: Path) -> None:
    names = [*TARGETS[subject.model], "typo"]
    rejects(lambda: subject.fresh(target_modules=names), "a wrong name next to a right one is ignored")


def _rank_pattern(subject: Subject, folder: Path) -> None:
    first = TARGETS[subject.model][0]
    last = METHODS[subject.method][2]
    rank = last.get("rank_shape", last.get("r"))
    usual = sum(p.numel() for p in trainable(subject.fresh(**HEADLESS)).values())
    changed = subject.fresh(rank_pattern={first: rank}, **HEADLESS)
    check(sum(p.numel() for p in trainable(changed).values()) != usual, "the pattern changes nothing")


def _tied_head(subject: Subject, folder: Path) -> None:
    model = subject.stirred(target_modules=["lm_head"])
    before = logits(model)
    embeddings = model.get_input_embeddings().weight.detach().clone()
    model.merge_adapter()
    same(model.get_input_embeddings().weight, embeddings, "merging changes the embeddings, too")
    near(logits(model), before, "the merged model computes something else")
    model.unmerge_adapter()
    base = model.get_base_model()
    check(base.lm_head.get_base_layer().weight is base.transformer.wte.weight, "unmerging leaves the head untied")


def _injection(subject: Subject, folder: Path) -> None:
    config = subject.config(**HEADLESS)
    model = stir(inject_adapter_in_model(config, tiny(subject.model)).eval())
    far(logits(model), logits(tiny(subject.model)))
    other = inject_adapter_in_model(subject.config(**HEADLESS), tiny(subject.model), low_cpu_mem_usage=True)
    set_peft_model_state_dict(other, get_peft_model_state_dict(model), low_cpu_mem_usage=True)
    same(logits(other.eval()), logits(model), "an injected adapter computes something else")


def _transformers_loading(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    model.save_pretrained(str(folder))
    plain = tiny(subject.model)
    plain.load_adapter(str(folder))
    same(logits(plain), logits(model), "transformers' load_adapter computes something else")


def _bfloat16(subject: Subject, folder: Path) -> None:
    base = tiny(subject.model).bfloat16()
    model = get_peft_model(copy.deepcopy(base), subject.config()).eval()
    factors = {name: p for name, p in trainable(model).items() if is_factor(name)}
    check({p.dtype for p in factors.values()} == {torch.float32}, "the adapter is not kept in float32")
    same(logits(model), logits(base), "a fresh adapter changes a bfloat16 model")
    train(model)
    model.save_pretrained(str(folder))
    same(logits(PeftModel.from_pretrained(base, str(folder))), logits(model), "loaded, it computes something else")


def _autocast(subject: Subject, folder: Path) -> None:
    model = subject.stirred().train()
    with torch.autocast("cpu", torch.bfloat16):
        now = loss(model)
    now.backward()
    dtypes = {getattr(parameter.grad, "dtype", None) for parameter in trainable(model).values()}
    check(dtypes == {torch.float32}, "gradients are not in float32")
    base = tiny(subject.model).bfloat16()
    model = get_peft_model(base, subject.config(**HEADLESS), autocast_adapter_dtype=False)
    check({p.dtype for p in trainable(model).values()} == {torch.bfloat16}, "the adapter is not in the base's dtype")
    train(model)


def _compile(subject: Subject, folder: Path) -> None:
    compilations: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = subject.stirred()
    other = subject.fresh()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    near(logits(compiled), logits(model), "compiled, it differs")
    gradients = []
    for one in (compiled, model):
        model.zero_grad()
        one(**tokens()).logits.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in trainable(model).items()})
    for name, gradient in gradients[1].items():
        near(gradients[0][name], gradient, f"compiled, the gradient of {name} differs")
    before = len(compilations)
    set_peft_model_state_dict(model, get_peft_model_state_dict(other))
    near(logits(compiled), logits(other), "the compiled model keeps the old adapter")
    check(len(compilations) == before, "the model is compiled again")
    torch.compiler.reset()


BEHAVIORS = {
    "a fresh adapter changes no bit": Behavior(_fresh, CASES),
    "gradient checkpointing, frozen embeddings": Behavior(_checkpointing),
    "`save_pretrained`, `from_pretrained`: bit for bit, no pickle": Behavior(_loading, CASES),
    "saved again, the same bytes": Behavior(_same_bytes, CASES),
    "`load_adapter`, `selected_adapters`": Behavior(_load_adapter, PAIRS),
    "`hotswap_adapter`": Behavior(_hot_swap, of("bert")),
    "`merge_adapter`": Behavior(_merging, CASES),
    "`Conv1D` of GPT-2": Behavior(_merging, of("gpt2"), "gpt2"),
    "`unmerge_adapter` restores the very bits": Behavior(_unmerging, CASES),
    "`merge_and_unload`, saved as a plain model; `unload`": Behavior(_merge_and_unload),
    "the same under a head of several layers (RoBERTa)": Behavior(_merge_and_unload, of("roberta"), "roberta"),
    "merging a wrong name is an error": Behavior(_merge_of_unknown),
    "`safe_merge` refuses NaN and leaves all as it was": Behavior(_safe_merge),
    "`disable_adapter`: the base, bit for bit": Behavior(_disable, PAIRS),
    "`add_adapter`, `set_adapter`, `delete_adapter`": Behavior(_switching, PAIRS),
    "several active adapters, merged together or one of them": Behavior(_several_active, PAIRS),
    "`adapter_names`: each row its adapter": Behavior(_mixed_batch, PAIRS),
    "`PeftMixedModel` with LoRA": Behavior(_mixed_methods, of("bert")),
    "a name that matches nothing is an error": Behavior(_typo),
    "`rank_pattern`": Behavior(_rank_pattern),
    "a tied head: merging leaves the embeddings": Behavior(_tied_head, of("gpt2-causal"), "gpt2-causal"),
    "`inject_adapter_in_model`": Behavior(_injection),
    "transformers' `load_adapter`": Behavior(_transformers_loading),
    "float32 adapter on a bfloat16 base": Behavior(_bfloat16, CASES),
    "autocast, `autocast_adapter_dtype=False`": Behavior(_autocast),
    "`torch.compile`: one graph, also for other weights": Behavior(_compile, of("bert")),
}
REFUSED = {  # of LSR, by PEFT or transformers themselves: what a user reads
    "`hotswap_adapter`": "Hotswapping only supports LORA but LSR was passed.",
    "`PeftMixedModel` with LoRA": "The provided `peft_type` 'LSR' is not compatible with the `PeftMixedModel`.",
}
