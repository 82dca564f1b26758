"""What PEFT's users expect of a method: one probe a behaviour, for LSR or any other method.

A probe gets a subject (a method's configuration on a tiny model) and an empty folder; it returns if the behaviour is
there, and raises if not, with the reason in the first line. `BEHAVIOURS` is the whole list: tests run it on LSR's
configurations, and `python -m docs.capabilities` writes down which methods have what.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from tests.lsr.subjects import (
    HEADLESS,
    METHODS,
    TARGETS,
    Subject,
    base_weights,
    check,
    far,
    is_factor,
    layers,
    loss,
    near,
    same,
    same_base,
    stir,
    train,
    trainable,
)
from tests.tiny_models import LABELS, logits, tiny, tokens

NAMES = ["second", "__base__", "default", "second"]  # of rows


def with_updates(subject, model, weights):
    """What the base model says with weights times the updates of adapters added."""
    plain = tiny(subject.model)
    for name, layer in layers(model).items():
        update = sum(w * layer.get_delta_weight(adapter) for adapter, w in weights.items())
        plain.get_submodule(name.removeprefix("base_model.model.")).weight.data += update
    return logits(plain)


# A fresh adapter, and training


def probe_fresh(subject, folder):
    unchanged = near if subject.folds else same  # W less a start plus that start is rounded
    unchanged(logits(subject.fresh()), logits(tiny(subject.model)), "a fresh adapter changes the model")


def probe_training(subject, folder):
    model = subject.fresh()
    before = base_weights(model)
    losses, moved = train(model, steps=25)
    check(losses[-1] < 0.98 * losses[0], "training does not lower the loss")
    check(all(moved.values()), "a trainable tensor never had a gradient")
    same_base(before, model, "training changed the base weights")


def probe_checkpointing(subject, folder):
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


def probe_trainer(subject, folder):
    rows = [{name: ids[row] for name, ids in tokens().items()} for row in range(4)]
    for row, example in enumerate(rows):
        example["labels"] = example["input_ids"] if subject.is_causal else torch.tensor(row % LABELS)
    runs = []
    for checkpoint in (None, str(folder / "one" / "checkpoint-2")):
        arguments = TrainingArguments(
            str(folder / ("two" if checkpoint else "one")),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            seed=0,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        model = subject.fresh()
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=checkpoint)
        runs.append(get_peft_model_state_dict(model))
    whole, resumed = runs
    for name, value in whole.items():
        same(resumed[name], value, f"a resumed training ends with another {name}")


# Saving and loading


def probe_loading(subject, folder):
    model = subject.stirred()
    model.save_pretrained(str(folder))
    far(logits(model), logits(tiny(subject.model)))
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder))
    same(logits(loaded), logits(model), "a loaded adapter computes something else")


def probe_meta_loading(subject, folder):
    model = subject.stirred()
    model.save_pretrained(str(folder))
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder), low_cpu_mem_usage=True)
    same(logits(loaded), logits(model), "an adapter loaded through the meta device computes something else")


def probe_further_training(subject, folder):
    model = subject.stirred()
    model.save_pretrained(str(folder))
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder))
    check(not trainable(loaded), "a loaded adapter trains without being asked to")
    further = PeftModel.from_pretrained(tiny(subject.model), str(folder), is_trainable=True)
    check(trainable(further).keys() == trainable(model).keys(), "something else trains after loading")
    losses, _ = train(further, steps=10)
    check(losses[-1] < losses[0], "training does not go on after loading")


def probe_no_pickles(subject, folder):
    subject.stirred().save_pretrained(str(folder))
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    check(names == {"adapter_config.json", "adapter_model.safetensors"}, f"the folder holds {sorted(names)}")


def probe_same_bytes(subject, folder):
    subject.stirred().save_pretrained(str(folder / "one"))
    PeftModel.from_pretrained(tiny(subject.model), str(folder / "one")).save_pretrained(str(folder / "two"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, two = ((folder / copy / name).read_bytes() for copy in ("one", "two"))
        check(one == two, f"{name} differs when a loaded adapter is saved again")


def probe_auto_class(subject, folder):
    base = tiny(subject.model)
    base.save_pretrained(str(folder / "base"))
    base.name_or_path = str(folder / "base")
    model = stir(get_peft_model(base, subject.config()).eval())
    model.save_pretrained(str(folder / "adapter"))
    kind = AutoPeftModelForCausalLM if subject.is_causal else AutoPeftModelForSequenceClassification
    labels = {} if subject.is_causal else {"num_labels": LABELS}
    loaded = kind.from_pretrained(str(folder / "adapter"), **labels).eval()
    same(logits(loaded), logits(model), "the loaded model computes something else")


def probe_state_dict(subject, folder):
    model, other = subject.stirred(), subject.fresh()
    result = set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    check(not result.unexpected_keys, f"unexpected keys: {result.unexpected_keys}")
    same(logits(other), logits(model), "an adapter set from a state dict computes something else")


def probe_selected_adapters(subject, folder):
    model = subject.with_two()
    model.save_pretrained(str(folder), selected_adapters=["second"])
    check([path.name for path in folder.iterdir() if path.is_dir()] == ["second"], "other adapters were saved too")
    model.set_adapter("second")
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder / "second"))
    same(logits(loaded), logits(model), "a selected adapter computes something else")


def probe_load_adapter(subject, folder):
    model = subject.with_two()
    model.save_pretrained(str(folder))
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder))
    loaded.load_adapter(str(folder / "second"), "second")
    for name in ("default", "second"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        same(logits(loaded), logits(model), f"adapter {name} computes something else")


def probe_hot_swap(subject, folder):
    model, other = subject.fresh(**HEADLESS), subject.stirred(**HEADLESS)
    other.save_pretrained(str(folder))
    hotswap_adapter(model, str(folder), adapter_name="default", torch_device="cpu")
    same(logits(model), logits(other), "the swapped adapter computes something else")


# Merging


def probe_merging(subject, folder):
    model = subject.stirred()
    before = logits(model)
    model.merge_adapter()
    near(logits(model), before, "the merged model computes something else")


def probe_unmerging(subject, folder):
    model = subject.stirred()
    before, weights = logits(model), base_weights(model)
    model.merge_adapter()
    model.unmerge_adapter()
    same_base(weights, model, "unmerging leaves rounding errors in the base weights")
    same(logits(model), before, "the unmerged model computes something else")


def probe_merge_and_unload(subject, folder):
    model = subject.stirred()
    before = logits(model)
    plain = model.merge_and_unload(progressbar=True, safe_merge=True)
    check(type(plain) is type(tiny(subject.model)), "what is left is no plain model")
    check(plain.state_dict().keys() == tiny(subject.model).state_dict().keys(), "what is left has other weights")
    near(logits(plain), before, "the merged model computes something else")
    plain.save_pretrained(str(folder))
    same(logits(type(plain).from_pretrained(str(folder)).eval()), logits(plain), "a merged model is loaded differently")


def probe_unload(subject, folder):
    model = subject.stirred()
    weights = base_weights(subject.fresh().unload())
    plain = model.unload()
    for name, value in tiny(subject.model).state_dict().items():
        if not name.startswith(subject.trained_whole or ("no head",)):
            same(plain.state_dict()[name], value, "unloading does not give the base model back")
    check(weights.keys() == tiny(subject.model).state_dict().keys(), "what is left has other weights")


def probe_merge_by_name(subject, folder):
    model = subject.with_two(**HEADLESS)
    model.set_adapter("second")
    expected = logits(model)
    model.set_adapter("default")
    near(logits(model.merge_and_unload(adapter_names=["second"])), expected, "another adapter was merged")


def probe_merge_of_unknown(subject, folder):
    try:
        subject.stirred().merge_adapter(adapter_names=["typo"])
    except ValueError:
        return
    raise AssertionError("a wrong name is passed over: nothing is merged")


def probe_safe_merge(subject, folder):
    for act in ("merge_adapter", "merge_and_unload"):
        model = subject.stirred()
        *_, last = (name for name in trainable(model) if "modules_to_save" not in name)
        model.get_parameter(last).data.fill_(float("nan"))
        weights, before = base_weights(model), set(layers(model))
        try:
            getattr(model, act)(safe_merge=True)
        except ValueError:
            same_base(weights, model, f"{act} changed base weights before it refused NaN")
            check(set(layers(model)) == before, f"{act} unloaded layers before it refused NaN")
        else:
            raise AssertionError(f"{act} merged NaN")


# Several adapters


def probe_disable(subject, folder):
    model = subject.stirred()
    before = logits(model)
    with model.disable_adapter():
        same(logits(model), logits(tiny(subject.model)), "the disabled adapter changes the model")
    same(logits(model), before, "enabled again, it computes something else")


def probe_add_adapter(subject, folder):
    model = subject.stirred()
    before = logits(model)
    model.add_adapter("second", subject.second())
    same(logits(model.eval()), before, "a second adapter changes the model before it is active")
    check(model.active_adapters == ["default"], "a second adapter is active at once")
    check(not any("second" in name for name in trainable(model)), "a second adapter trains before it is active")


def probe_set_adapter(subject, folder):
    model = subject.with_two()
    first = logits(model)
    model.set_adapter("second")
    alone = get_peft_model(tiny(subject.model), subject.second()).eval()
    set_peft_model_state_dict(alone, get_peft_model_state_dict(model, adapter_name="second"))
    same(logits(model), logits(alone), "the second adapter computes something else than alone")
    check(not any(".default" in name for name in trainable(model)), "an inactive adapter trains")
    model.set_adapter("default")
    same(logits(model), first, "switching forth and back changes the first adapter")


def probe_several_active(subject, folder):
    model = subject.with_two(**HEADLESS)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    near(both, with_updates(subject, model, {"default": 1, "second": 1}), "active adapters do not add up")
    model.merge_adapter()
    near(logits(model), both, "merged together, they compute something else")


def probe_delete_adapter(subject, folder):
    model = subject.with_two()
    first = logits(model)
    model.delete_adapter("second")
    same(logits(model), first, "deleting another adapter changes the active one")
    check(not any("second" in name for name in model.state_dict()), "something of a deleted adapter is left")


def probe_weighted(subject, folder):
    fields = HEADLESS
    model = subject.stirred(**fields)
    model.add_adapter("second", subject.config(**fields))
    model.set_adapter("second")
    stir(model, seed=1).eval()
    model.add_weighted_adapter(["default", "second"], [0.5, -2.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    near(logits(model), with_updates(subject, model, {"default": 0.5, "second": -2.0}), "the sum is not exact")
    model.save_pretrained(str(folder), selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder / "sum"))
    same(logits(loaded), logits(model), "a loaded sum computes something else")


def probe_mixed_batch(subject, folder):
    model = subject.with_two(**HEADLESS)
    outputs = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        outputs[name] = logits(model)
    with model.disable_adapter():
        outputs["__base__"] = logits(model)
    with torch.no_grad():
        found = model(**tokens(), adapter_names=NAMES).logits
    expected = torch.stack([outputs[name][row] for row, name in enumerate(NAMES)])
    near(found, expected, "the adapters of rows are ignored")


def probe_mixed_methods(subject, folder):
    model = get_peft_model(tiny(subject.model), subject.config(**HEADLESS), mixed=True)
    model.add_adapter("second", LoraConfig(r=2, target_modules=TARGETS[subject.model]))


# Where it can sit


def probe_all_linear(subject, folder):
    model = subject.fresh(target_modules="all-linear")
    check(len(layers(model)) >= 8, f"only {len(layers(model))} layers are adapted")


def probe_typo(subject, folder):
    try:
        subject.fresh(target_modules=[*TARGETS[subject.model], "typo"])
    except ValueError:
        return
    raise AssertionError("a wrong name beside a right one is passed over")


def probe_rank_pattern(subject, folder):
    first, last = TARGETS[subject.model][0], METHODS[subject.method][2]
    rank = last.get("rank_shape", last.get("r"))
    usual = sum(p.numel() for p in trainable(subject.fresh(**HEADLESS)).values())
    changed = subject.fresh(rank_pattern={first: rank}, **HEADLESS)
    check(sum(p.numel() for p in trainable(changed).values()) != usual, "the pattern changes nothing")


def probe_head(subject, folder):
    fields = {"task_type": None, "modules_to_save": list(subject.trained_whole)}
    model = subject.stirred(**fields)
    for head in subject.trained_whole:
        check(any(f"{head}.modules_to_save.default" in name for name in trainable(model)), f"{head} does not train")
    model.save_pretrained(str(folder))
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder))
    same(logits(loaded), logits(model), "a loaded head computes something else")


@contextmanager
def recorded() -> Iterator[list]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def probe_tied_warning(subject, folder):
    with recorded() as found:
        subject.fresh(target_modules=["lm_head"])
    check(any("tie_word_embeddings" in str(warning.message) for warning in found), "no word about tied weights")


def probe_tied_head(subject, folder):
    model = subject.stirred(target_modules=["lm_head"])
    before, embeddings = logits(model), model.get_input_embeddings().weight.detach().clone()
    model.merge_adapter()
    same(model.get_input_embeddings().weight, embeddings, "merging changes the embeddings, too")
    near(logits(model), before, "the merged model computes something else")
    model.unmerge_adapter()
    base = model.get_base_model()
    check(base.lm_head.get_base_layer().weight is base.transformer.wte.weight, "unmerging leaves the head untied")


def probe_injection(subject, folder):
    config = subject.config(**HEADLESS)
    model = stir(inject_adapter_in_model(config, tiny(subject.model)).eval())
    far(logits(model), logits(tiny(subject.model)))
    other = inject_adapter_in_model(subject.config(**HEADLESS), tiny(subject.model), low_cpu_mem_usage=True)
    set_peft_model_state_dict(other, get_peft_model_state_dict(model), low_cpu_mem_usage=True)
    same(logits(other.eval()), logits(model), "an injected adapter computes something else")


def probe_transformers_loading(subject, folder):
    model = subject.stirred()
    model.save_pretrained(str(folder))
    plain = tiny(subject.model)
    plain.load_adapter(str(folder))
    same(logits(plain), logits(model), "transformers' load_adapter computes something else")


def probe_transformers_adding(subject, folder):
    model = tiny(subject.model)
    model.add_adapter(subject.config(**HEADLESS), "first")
    train(model)
    adapted = logits(model)
    far(adapted, logits(tiny(subject.model)))
    model.disable_adapters()
    same(logits(model), logits(tiny(subject.model)), "disable_adapters leaves something")
    model.enable_adapters()
    same(logits(model), adapted, "enable_adapters computes something else")
    model.delete_adapter("first")
    same(logits(model), logits(tiny(subject.model)), "delete_adapter leaves something")


# Precision, compilers, reports


def probe_bfloat16(subject, folder):
    base = tiny(subject.model).bfloat16()
    model = get_peft_model(copy.deepcopy(base), subject.config()).eval()
    factors = {name: p for name, p in trainable(model).items() if is_factor(name)}
    check({p.dtype for p in factors.values()} == {torch.float32}, "the adapter is not kept in float32")
    if subject.folds:  # W less a start is rounded to eight bits
        near(logits(model), logits(base), "a fresh adapter changes a bfloat16 model", tolerance=0.03)
    else:
        same(logits(model), logits(base), "a fresh adapter changes a bfloat16 model")
    train(model)
    model.save_pretrained(str(folder))
    same(logits(PeftModel.from_pretrained(base, str(folder))), logits(model), "loaded, it computes something else")


def probe_own_dtype(subject, folder):
    base = tiny(subject.model).bfloat16()
    model = get_peft_model(base, subject.config(**HEADLESS), autocast_adapter_dtype=False)
    check({p.dtype for p in trainable(model).values()} == {torch.bfloat16}, "the adapter is not in the base's dtype")
    train(model)


def probe_autocast(subject, folder):
    model = subject.stirred().train()
    with torch.autocast("cpu", torch.bfloat16):
        now = loss(model)
    now.backward()
    check({p.grad.dtype for p in trainable(model).values()} == {torch.float32}, "gradients are not in float32")


def probe_compile(subject, folder):
    torch.compiler.reset()
    model = subject.stirred()
    near(logits(torch.compile(model, backend="eager", fullgraph=True)), logits(model), "compiled, it differs")
    torch.compiler.reset()


def probe_swap_compiled(subject, folder):
    compilations = []

    def backend(graph, inputs):
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


def probe_copy(subject, folder):
    model = subject.with_two()
    before, twin = logits(model), copy.deepcopy(model)
    same(logits(twin), before, "a copy computes something else")
    train(twin)
    same(logits(model), before, "training a copy changes the original")


def probe_reports(subject, folder):
    model = subject.stirred()
    count = sum(parameter.numel() for parameter in trainable(model).values())
    model.print_trainable_parameters()
    check(model.get_nb_trainable_parameters()[0] == count, "print_trainable_parameters counts something else")
    status = model.get_model_status()
    check(status.trainable_params == count, "get_model_status counts something else")
    check((status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], []), "wrong status")
    # PEFT lists heads that train whole among the layers.
    reported = {f"base_model.{layer.name}" for layer in model.get_layer_status()}
    check(set(layers(model)) <= reported, "get_layer_status lists other layers")
    model = subject.stirred(**HEADLESS)  # heads are never merged
    model.merge_adapter()
    check(model.get_model_status().merged_adapters == ["default"], "a merged adapter is not reported")


CLASSIFIERS = ("bert", "roberta", "distilbert", "gpt2")
LANGUAGE_MODELS = ("gpt2-causal", "llama-causal")
MODELS = (*CLASSIFIERS, *LANGUAGE_MODELS)
EVERY = "every"  # configuration of LSR, see CASES


@dataclass(frozen=True)
class Behaviour:
    """A probe, the models (or EVERY configuration) on which it must hold, and the one that the page is about."""

    probe: Callable[[Subject, Path], None]
    on: tuple[str, ...] | str = MODELS
    shown_on: str = "bert"


BEHAVIOURS = {
    "a fresh adapter changes no bit": Behaviour(probe_fresh, EVERY),
    "training moves all of it, and no base weight": Behaviour(probe_training),
    "`Trainer`: training, resumed from a checkpoint": Behaviour(probe_trainer, shown_on="llama-causal"),
    "gradient checkpointing, frozen embeddings": Behaviour(probe_checkpointing),
    "`save_pretrained`, `from_pretrained`: bit for bit": Behaviour(probe_loading, EVERY),
    "`low_cpu_mem_usage=True`": Behaviour(probe_meta_loading, EVERY),
    "saved again, the same bytes": Behaviour(probe_same_bytes, EVERY),
    "safetensors and JSON, no pickle": Behaviour(probe_no_pickles),
    "`is_trainable=True`: training goes on": Behaviour(probe_further_training),
    "`AutoPeftModelForSequenceClassification`": Behaviour(probe_auto_class, CLASSIFIERS),
    "`AutoPeftModelForCausalLM`": Behaviour(probe_auto_class, LANGUAGE_MODELS, "llama-causal"),
    "`get_`, `set_peft_model_state_dict`": Behaviour(probe_state_dict),
    "`load_adapter`": Behaviour(probe_load_adapter),
    "`save_pretrained(selected_adapters=...)`": Behaviour(probe_selected_adapters),
    "`hotswap_adapter`": Behaviour(probe_hot_swap, ("bert",)),
    "`merge_adapter`": Behaviour(probe_merging, EVERY),
    "`unmerge_adapter` restores the very bits": Behaviour(probe_unmerging, EVERY),
    "`merge_and_unload`, saved as a plain model": Behaviour(probe_merge_and_unload),
    "the same under a head of several layers (RoBERTa)": Behaviour(probe_merge_and_unload, ("roberta",), "roberta"),
    "`unload` gives the base back bit for bit": Behaviour(probe_unload),
    "`merge_and_unload(adapter_names=...)`": Behaviour(probe_merge_by_name),
    "merging a wrong name is an error": Behaviour(probe_merge_of_unknown),
    "`safe_merge` refuses NaN and leaves all as it was": Behaviour(probe_safe_merge),
    "`disable_adapter`: the base, bit for bit": Behaviour(probe_disable),
    "`add_adapter`": Behaviour(probe_add_adapter),
    "`set_adapter`": Behaviour(probe_set_adapter),
    "`delete_adapter`": Behaviour(probe_delete_adapter),
    "several active adapters": Behaviour(probe_several_active),
    "`add_weighted_adapter`, exact (`cat`)": Behaviour(probe_weighted),
    "`adapter_names`: each row its adapter": Behaviour(probe_mixed_batch),
    "`PeftMixedModel` with LoRA": Behaviour(probe_mixed_methods, ("bert",)),
    '`target_modules="all-linear"`': Behaviour(probe_all_linear),
    "a name that matches nothing is an error": Behaviour(probe_typo),
    "`rank_pattern`": Behaviour(probe_rank_pattern),
    "`modules_to_save`": Behaviour(probe_head, CLASSIFIERS),
    "`Conv1D` of GPT-2": Behaviour(probe_merging, ("gpt2",), "gpt2"),
    "a tied head: PEFT's warning": Behaviour(probe_tied_warning, ("gpt2-causal",), "gpt2-causal"),
    "a tied head: merging leaves the embeddings": Behaviour(probe_tied_head, ("gpt2-causal",), "gpt2-causal"),
    "`inject_adapter_in_model`": Behaviour(probe_injection),
    "transformers' `load_adapter`": Behaviour(probe_transformers_loading),
    "transformers' `add_adapter`, `disable_adapters`, `delete_adapter`": Behaviour(
        probe_transformers_adding, ("bert",)
    ),
    "float32 adapter on a bfloat16 base": Behaviour(probe_bfloat16, EVERY),
    "`autocast_adapter_dtype=False`": Behaviour(probe_own_dtype),
    "autocast": Behaviour(probe_autocast),
    "`torch.compile`, one graph": Behaviour(probe_compile, ("bert",)),
    "another adapter's numbers set in place, not compiled again": Behaviour(probe_swap_compiled, ("bert",)),
    "`deepcopy`": Behaviour(probe_copy),
    "`get_layer_status`, `get_model_status`, counts": Behaviour(probe_reports),
}
