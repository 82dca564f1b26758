"""Saving and loading."""

from pathlib import Path
from typing import Any

from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter

from tests.capabilities.behavior import CLASSIFIERS, EVERY, LANGUAGE_MODELS, PAIRS, Behavior
from tests.capabilities.checks import check, far, reloaded, same, stir, train, trainable
from tests.capabilities.models import LABELS, Fields, logits, tiny
from tests.capabilities.subjects import HEADLESS, Subject


def _loading(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    far(logits(model), logits(tiny(subject.model)))
    reloaded(model, subject.model, folder)


def _meta_loading(subject: Subject, folder: Path) -> None:
    reloaded(subject.stirred(), subject.model, folder, low_cpu_mem_usage=True)


def _further_training(subject: Subject, folder: Path) -> None:
    model = subject.stirred()
    check(not trainable(reloaded(model, subject.model, folder)), "a loaded adapter trains without being asked to")
    further = reloaded(model, subject.model, folder, is_trainable=True)
    check(trainable(further).keys() == trainable(model).keys(), "something else trains after loading")
    losses, _ = train(further, steps=10)
    check(losses[-1] < losses[0], "training does not go on after loading")


def _no_pickles(subject: Subject, folder: Path) -> None:
    subject.stirred().save_pretrained(str(folder))
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    check(names == {"adapter_config.json", "adapter_model.safetensors"}, f"the folder holds {sorted(names)}")


def _same_bytes(subject: Subject, folder: Path) -> None:
    reloaded(subject.stirred(), subject.model, folder / "one").save_pretrained(str(folder / "two"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, two = ((folder / which / name).read_bytes() for which in ("one", "two"))
        check(one == two, f"{name} differs when a loaded adapter is saved again")


def _auto_class(subject: Subject, folder: Path) -> None:
    base = tiny(subject.model)
    base.save_pretrained(str(folder / "base"))
    base.name_or_path = str(folder / "base")
    model = stir(get_peft_model(base, subject.config()).eval())
    model.save_pretrained(str(folder / "adapter"))
    kind = AutoPeftModelForCausalLM if subject.is_causal else AutoPeftModelForSequenceClassification
    labels: Fields = {} if subject.is_causal else {"num_labels": LABELS}
    loaded = kind.from_pretrained(str(folder / "adapter"), **labels).eval()
    same(logits(loaded), logits(model), "the loaded model computes something else")


def _state_dict(subject: Subject, folder: Path) -> None:
    model, other = subject.stirred(), subject.fresh()
    result: Any = set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    check(not result.unexpected_keys, f"unexpected keys: {result.unexpected_keys}")
    same(logits(other), logits(model), "an adapter set from a state dict computes something else")


def _selected_adapters(subject: Subject, folder: Path) -> None:
    model = subject.with_two()
    model.save_pretrained(str(folder), selected_adapters=["second"])
    check([path.name for path in folder.iterdir() if path.is_dir()] == ["second"], "other adapters were saved too")
    model.set_adapter("second")
    loaded = PeftModel.from_pretrained(tiny(subject.model), str(folder / "second"))
    same(logits(loaded), logits(model), "a selected adapter computes something else")


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


def _hot_swap(subject: Subject, folder: Path) -> None:
    model, other = subject.fresh(**HEADLESS), subject.stirred(**HEADLESS)
    other.save_pretrained(str(folder))
    hotswap_adapter(model, str(folder), adapter_name="default", torch_device="cpu")
    same(logits(model), logits(other), "the swapped adapter computes something else")


BEHAVIORS = {
    "`save_pretrained`, `from_pretrained`: bit for bit": Behavior(_loading, EVERY),
    "`low_cpu_mem_usage=True`": Behavior(_meta_loading, EVERY),
    "saved again, the same bytes": Behavior(_same_bytes, EVERY),
    "safetensors and JSON, no pickle": Behavior(_no_pickles),
    "`is_trainable=True`: training goes on": Behavior(_further_training),
    "`AutoPeftModelForSequenceClassification`": Behavior(_auto_class, CLASSIFIERS),
    "`AutoPeftModelForCausalLM`": Behavior(_auto_class, LANGUAGE_MODELS, "llama-causal"),
    "`get_`, `set_peft_model_state_dict`": Behavior(_state_dict),
    "`load_adapter`": Behavior(_load_adapter, PAIRS),
    "`save_pretrained(selected_adapters=...)`": Behavior(_selected_adapters, PAIRS),
    "`hotswap_adapter`": Behavior(_hot_swap, ("bert",)),
}
