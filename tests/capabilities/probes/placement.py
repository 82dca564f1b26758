"""Which layers can be adapted, and how adapters are added."""

import warnings
from pathlib import Path

from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

from tests.capabilities.behavior import CLASSIFIERS, Behavior
from tests.capabilities.checks import check, far, layers, near, rejects, reloaded, same, stir, train, trainable
from tests.capabilities.models import logits, tiny
from tests.capabilities.subjects import HEADLESS, METHODS, TARGETS, Subject


def _all_linear(subject: Subject, folder: Path) -> None:
    model = subject.fresh(target_modules="all-linear")
    check(len(layers(model)) >= 8, f"only {len(layers(model))} layers are adapted")


def _typo(subject: Subject, folder: Path) -> None:
    names = [*TARGETS[subject.model], "typo"]
    rejects(lambda: subject.fresh(target_modules=names), "a wrong name beside a right one is passed over")


def _rank_pattern(subject: Subject, folder: Path) -> None:
    first, last = TARGETS[subject.model][0], METHODS[subject.method][2]
    rank = last.get("rank_shape", last.get("r"))
    usual = sum(p.numel() for p in trainable(subject.fresh(**HEADLESS)).values())
    changed = subject.fresh(rank_pattern={first: rank}, **HEADLESS)
    check(sum(p.numel() for p in trainable(changed).values()) != usual, "the pattern changes nothing")


def _head(subject: Subject, folder: Path) -> None:
    fields = {"task_type": None, "modules_to_save": list(subject.trained_whole)}
    model = subject.stirred(**fields)
    for head in subject.trained_whole:
        check(any(f"{head}.modules_to_save.default" in name for name in trainable(model)), f"{head} does not train")
    reloaded(model, subject.model, folder, "a loaded head")


def _tied_warning(subject: Subject, folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        subject.fresh(target_modules=["lm_head"])
    check(any("tie_word_embeddings" in str(warning.message) for warning in caught), "no word about tied weights")


def _tied_head(subject: Subject, folder: Path) -> None:
    model = subject.stirred(target_modules=["lm_head"])
    before, embeddings = logits(model), model.get_input_embeddings().weight.detach().clone()
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


def _transformers_adding(subject: Subject, folder: Path) -> None:
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


BEHAVIORS = {
    '`target_modules="all-linear"`': Behavior(_all_linear),
    "a name that matches nothing is an error": Behavior(_typo),
    "`rank_pattern`": Behavior(_rank_pattern),
    "`modules_to_save`": Behavior(_head, CLASSIFIERS),
    "a tied head: PEFT's warning": Behavior(_tied_warning, ("gpt2-causal",), "gpt2-causal"),
    "a tied head: merging leaves the embeddings": Behavior(_tied_head, ("gpt2-causal",), "gpt2-causal"),
    "`inject_adapter_in_model`": Behavior(_injection),
    "transformers' `load_adapter`": Behavior(_transformers_loading),
    "transformers' `add_adapter`, `disable_adapters`, `delete_adapter`": Behavior(_transformers_adding, ("bert",)),
}
