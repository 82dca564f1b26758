"""Merging into the base weights, and unmerging."""

from functools import partial
from pathlib import Path

from tests.capabilities.behavior import EVERY, PAIRS, Behavior
from tests.capabilities.checks import base_weights, check, layers, near, rejects, same, same_base, trainable
from tests.capabilities.models import logits, tiny
from tests.capabilities.subjects import HEADLESS, Subject


def _merging(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    before = logits(model)
    model.merge_adapter()
    near(logits(model), before, "the merged model computes something else")


def _unmerging(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    before, weights = logits(model), base_weights(model)
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


def _unload(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    weights = base_weights(subject.fresh().unload())
    plain = model.unload()
    for name, value in tiny(subject.model).state_dict().items():
        if not name.startswith(subject.trained_whole or ("no head",)):
            same(plain.state_dict()[name], value, "unloading does not give the base model back")
    check(weights.keys() == tiny(subject.model).state_dict().keys(), "what is left has other weights")


def _merge_by_name(subject: Subject, folder: Path) -> None:
    model = subject.with_two(**HEADLESS)
    model.set_adapter("second")
    expected = logits(model)
    model.set_adapter("default")
    near(logits(model.merge_and_unload(adapter_names=["second"])), expected, "another adapter was merged")


def _merge_of_unknown(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    rejects(lambda: model.merge_adapter(adapter_names=["typo"]), "a wrong name is passed over: nothing is merged")


def _safe_merge(subject: Subject, folder: Path) -> None:
    for act in ("merge_adapter", "merge_and_unload"):
        model = subject.stirred()
        *_, last = (name for name in trainable(model) if "modules_to_save" not in name)
        model.get_parameter(last).data.fill_(float("nan"))
        weights, before = base_weights(model), set(layers(model))
        rejects(partial(getattr(model, act), safe_merge=True), f"{act} merged NaN")
        same_base(weights, model, f"{act} changed base weights before it refused NaN")
        check(set(layers(model)) == before, f"{act} unloaded layers before it refused NaN")


BEHAVIORS = {
    "`merge_adapter`": Behavior(_merging, EVERY),
    "`Conv1D` of GPT-2": Behavior(_merging, ("gpt2",), "gpt2"),
    "`unmerge_adapter` restores the very bits": Behavior(_unmerging, EVERY),
    "`merge_and_unload`, saved as a plain model": Behavior(_merge_and_unload),
    "the same under a head of several layers (RoBERTa)": Behavior(_merge_and_unload, ("roberta",), "roberta"),
    "`unload` gives the base back bit for bit": Behavior(_unload),
    "`merge_and_unload(adapter_names=...)`": Behavior(_merge_by_name, PAIRS),
    "merging a wrong name is an error": Behavior(_merge_of_unknown),
    "`safe_merge` refuses NaN and leaves all as it was": Behavior(_safe_merge),
}
