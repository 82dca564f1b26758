"""What only LSR has of PEFT's behaviors: its layers, files and rows, and factors that layers share.

The others are in tests/capabilities, the formulas in test_special_cases.py.
"""

import copy
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig, initialize_from_data, parameter_groups
from lsr.tuner.initialize import initialize_factors
from lsr.tuner.layer import LsrLinear, find_lsr_layers
from tests.kit import edit, refused
from tests.lsr.layers import adapters
from tests.lsr.saved import save_with_base
from tests.old_tiny.models import LABELS, logits, tiny, tokens
from tests.old_tiny.subjects import CASES, DENSE, SHARED, Subject
from tests.old_tiny.training import is_factor, train, trainable


def is_head(case, name):
    return any(f"{head}.modules_to_save." in name for head in case.trained_whole)


def is_chosen_bias(case, name):
    if not name.endswith("bias") or "original_module" in name:  # a head that was replaced is out of use
        return False
    return {"none": False, "all": True, "lsr_only": "base_layer.bias" in name}[case.fields.get("bias", "none")]


def in_file(name):
    name = name.replace(".modules_to_save.default", "").replace(".lsr_adapters.default.", ".lsr_adapters.")
    return name.removesuffix(".default")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_cores_heads_and_chosen_biases_train_move_within_two_steps_and_are_the_file(case, tmp_path):
    model = case.fresh()
    assert len(find_lsr_layers(model)) == case.layers
    assert list(find_lsr_layers(model)) == model.base_model.targeted_module_names
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (is_factor(name) or is_head(case, name) or is_chosen_bias(case, name)), name
    grouped = [id(parameter) for group in parameter_groups(model) for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, trainable(model).values()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in trainable(model) if not name.endswith("key.bias")} <= moved  # unseen by the softmax
    assert moved <= trainable(model).keys()
    model.save_pretrained(str(tmp_path))
    written = load_file(tmp_path / "adapter_model.safetensors")
    kept = {name: value for name, value in model.state_dict().items() if is_factor(name) or name in trainable(model)}
    expected = {in_file(name): value for name, value in kept.items()}  # frozen bases too
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())


def test_small_factors_turn_no_faster_than_others():
    model = CASES["two factors"].fresh(separation_rank=4)
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in model.named_parameters() if "lsr_" in name}
    groups = parameter_groups(model, 0.004, 0.001)
    rates = {names.get(id(one)): group["lr"] for group in groups for one in group["params"]}
    factors = {"factor_A1": 0.004, "factor_A2": 0.002, "factor_B1": 0.004, "factor_B2": 0.002}
    assert rates == factors | {None: 0.001}  # the head


def chosen_by_patterns(model):
    actual = {}
    for name, layer in find_lsr_layers(model).items():
        adapter = layer.adapter("default")
        short = name.removeprefix("bert.encoder.layer.").replace("attention.self.", "")
        actual[short] = adapter.form.rank_shape, adapter.scaling
    return actual


def test_patterns_choose_rank_and_alpha_of_single_layers_also_when_loaded(tmp_path):
    model = CASES["patterns, more saved whole"].stirred()
    assert chosen_by_patterns(model) == {
        "0.query": ((1, 2), 3 / 2),
        "0.key": ((2, 2), 7 / 4),
        "0.value": ((2, 2), 7 / 4),
        "1.query": ((1, 2), 7 / 2),
        "1.key": ((2, 2), 7 / 4),
        "1.value": ((2, 1), 7 / 2),
    }
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny("bert"), str(tmp_path))
    assert chosen_by_patterns(loaded) == chosen_by_patterns(model)
    assert torch.equal(logits(loaded), logits(model))


def test_a_card_has_the_header_of_the_hub_and_gives_way_to_one_that_somebody_wrote(tmp_path):
    model = save_with_base(tmp_path)
    card = tmp_path / "adapter/README.md"
    first = card.read_bytes()
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    assert card.read_bytes() == first
    data = ModelCard.load(card).data
    assert (data.library_name, data.base_model, data.license) == ("peft", str(tmp_path / "base"), "other")
    assert "lsr" in data.tags
    card.write_text("---\nlicense: mit\n---\n\nMine.\n")
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    assert "Mine." in card.read_text()
    assert ModelCard.load(card).data.license == "mit"


def test_training_without_the_examples_that_a_start_needs_is_warned_of_once():
    fields = {"rank_shape": (2,), "train": "core", "init_weights": "gradient", "target_modules": ["query"], "seed": 0}
    model = get_peft_model(tiny("bert"), LsrConfig(**fields)).train()
    with warnings.catch_warnings(record=True) as actual:
        warnings.simplefilter("always")
        for _ in range(2):
            model(**tokens())
    assert len([one for one in actual if "has been given none" in str(one.message)]) == 1


AWAITING = {"rank_shape": (2,), "init_weights": "gradient", "target_modules": ["query"], "seed": 0}


def test_what_one_model_has_read_is_not_taken_for_read_by_another_with_the_same_configuration():
    config = LsrConfig(**AWAITING, task_type="SEQ_CLS")
    first, second = (get_peft_model(tiny("bert"), config).train() for _ in range(2))
    batch = {**tokens(), "labels": torch.arange(4) % LABELS}
    initialize_from_data(first, [batch], head_steps=1)
    with warnings.catch_warnings(action="error"):
        first(**batch)
    with pytest.warns(UserWarning, match="has been given none"):
        second(**batch)


def test_models_of_other_widths_that_share_a_configuration_are_each_saved_with_their_own_shapes(tmp_path):
    config = LsrConfig(rank_shape=(2,), target_modules=["0"], init_weights=False, seed=0)
    bases = [nn.Sequential(nn.Linear(width, width)) for width in (12, 20)]
    models = [get_peft_model(copy.deepcopy(base), config) for base in bases]
    for base, model in zip(bases, models, strict=True):
        model.save_pretrained(str(tmp_path))
        x = torch.eye(base[0].in_features)
        assert torch.equal(PeftModel.from_pretrained(base, str(tmp_path))(x), model(x))


def test_a_model_with_adapters_is_not_wrapped_again():
    config = LsrConfig(rank_shape=(2,), target_modules=["query"], seed=0)
    model = get_peft_model(tiny("bert"), config)
    says = f"layer {QUERIES[0]!r} is adapted by a PEFT model within this one: call add_adapter() on that, or unload()"
    refused(get_peft_model, model, config, kind=ValueError, says=says)


def test_a_deleted_adapter_awaits_no_examples():
    model = get_peft_model(tiny("bert"), LsrConfig(rank_shape=(2,), target_modules=["query"], seed=0)).train()
    model.add_adapter("other", LsrConfig(**AWAITING))
    model.delete_adapter("other")
    with warnings.catch_warnings(action="error"):
        model(**tokens())


def test_without_a_seed_factors_are_the_next_draws_of_torchs_generator():
    fields = {"rank_shape": (2,), "target_modules": ["query", "value"]}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = get_peft_model(tiny("bert"), LsrConfig(**fields))
        after = torch.randn(1)
        torch.manual_seed(5)
        for adapter in adapters(model).values():
            assert_close(adapter.factor_A1.detach(), torch.randn(1, 2, 24) / (3 * 24) ** 0.5)
            assert not adapter.factor_B1.any()
            torch.randn(1, 24, 2)  # of B, times zero
        assert torch.randn(1).equal(after)


@pytest.mark.parametrize("share", ["none", "layers"])
def test_layers_that_a_state_dict_names_are_adapted_whatever_the_configuration_names(share):
    fields = {**DENSE, "train": "core", "share": share, "seed": 0}
    every = get_peft_model(tiny("bert"), LsrConfig(**fields, target_modules=["query", "value"]))
    state = {name.removeprefix("base_model.model."): value for name, value in get_peft_model_state_dict(every).items()}
    with pytest.warns(RuntimeWarning, match="inconsistency"):
        model = inject_adapter_in_model(LsrConfig(**fields, target_modules=["query"]), tiny("bert"), state_dict=state)
    assert find_lsr_layers(model).keys() == find_lsr_layers(every).keys()


@pytest.mark.parametrize(
    "fields",
    [{"separation_rank": 2}, {**DENSE, "train": "core"}, {**DENSE, "train": "all", "share": "layers"}],
    ids=str,
)
@pytest.mark.parametrize("is_trainable", [True, False])
def test_what_requires_grad_beside_the_active_adapter_is_what_peft_says_of_lora(is_trainable, fields, tmp_path):
    config = {"task_type": "SEQ_CLS", **fields}
    get_peft_model(tiny("bert"), LsrConfig(**config)).save_pretrained(str(tmp_path))
    model = PeftModel.from_pretrained(tiny("bert"), str(tmp_path), is_trainable=is_trainable)
    model.load_adapter(str(tmp_path), "other", is_trainable=True)
    model.load_adapter(str(tmp_path), "opposite")
    model.add_adapter("added", LsrConfig(**config))

    def what_requires_grad(name):
        return {p.requires_grad for key, p in model.named_parameters() if name in key.split(".")}

    actual = {name: what_requires_grad(name) for name in ("default", "other", "opposite", "added")}
    assert actual == {"default": {is_trainable}, "other": {True}, "opposite": {False}, "added": {False}}
    model.set_adapter("other")
    assert (what_requires_grad("other"), what_requires_grad("default")) == ({True}, {False})


NAMES = ["second", "__base__", "default", "second"]


@pytest.fixture
def pair():
    return Subject("bert").with_two()


def in_one_batch(model, names):
    with torch.no_grad():
        return model(**tokens(), adapter_names=names).logits


def test_heads_that_were_trained_whole_go_with_their_adapter(pair):
    row = in_one_batch(pair, ["__base__", "__base__", "default", "__base__"])[2]
    assert_close(row, logits(pair)[2])


def test_beams_of_the_models_own_configuration_share_the_adapter_of_their_prompt():
    model = Subject("gpt2-causal").with_two()
    ids = tokens(2)["input_ids"][:, :5]
    lengths = {"max_new_tokens": 4, "pad_token_id": 0}
    names = ["second", "default"]
    expected = []
    for row, name in enumerate(names):
        model.set_adapter(name)
        expected.append(model.generate(input_ids=ids, num_beams=3, **lengths)[row])
    model.generation_config.num_beams = 3
    mixed = model.generate(input_ids=ids, adapter_names=names, **lengths)
    assert torch.equal(mixed, torch.stack(expected))


def test_names_that_do_not_go_are_refused_and_leave_the_model_usable(pair):
    before = logits(pair)
    wrong = ["default", "secnod", "default", "default"]
    says = "no adapter is named 'secnod'; there are ['default', 'second', '__base__']"
    refused(in_one_batch, pair, wrong, kind=ValueError, says=says)
    says = "adapter_names must hold one name per row of the batch, 4, got 0"
    refused(in_one_batch, pair, [], kind=ValueError, says=says)
    says = "adapter_names is for evaluation only: call eval()"
    refused(in_one_batch, pair.train(), NAMES, kind=ValueError, says=says)
    pair.eval().merge_adapter()
    says = "adapters are merged into the base weights; call unmerge_adapter() first"
    refused(in_one_batch, pair, NAMES, kind=ValueError, says=says)
    pair.unmerge_adapter()
    assert torch.equal(logits(pair), before)


QUERIES = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
SUBJECTS = {name: subject for name, subject in CASES.items() if subject.config().share == "layers"}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_the_first_layer_of_a_kind_owns_the_factors_and_the_file_holds_them_once(subject, tmp_path):
    model = subject.stirred()
    first, others = (
        {re.sub(r"\d+", "*", name): adapter for name, adapter in adapters(model).items() if f".{i}." in name}
        for i in (0, 1)
    )
    assert first.keys() == others.keys()
    for kind, adapter in first.items():
        assert (others[kind].owner, adapter.owner) == (adapter, None)
        assert others[kind].core is not adapter.core
    assert len({id(adapter) for adapter in first.values()}) == len(first)
    model.save_pretrained(str(tmp_path))
    written = {key for key in load_file(tmp_path / "adapter_model.safetensors") if ".lsr_" in key}
    held = {key for key in model.state_dict() if ".lsr_" in key}
    assert written == {key.replace(".lsr_adapters.default.", ".lsr_adapters.") for key in held}
    parts = [key.rpartition(".lsr_adapters.") for key in written]
    assert {part for name, _, part in parts if ".1." in name} == {"core"}
    assert {part for name, _, part in parts if ".0." in name} == {"core", "factor_A1", "factor_B1"}


def test_layers_of_other_shapes_are_of_kinds_of_their_own():
    """What is called alike is shared among equal shapes alone; one layer may have none like it."""
    torch.manual_seed(0)
    shapes = [(12, 12), (12, 12), (12, 20), (20, 20), (20, 20), (20, 20)]
    blocks = nn.Sequential(*(nn.Sequential(OrderedDict(fc=nn.Linear(*shape))) for shape in shapes))
    model = get_peft_model(blocks, LsrConfig(**{**SHARED, "target_modules": ["fc"]}))
    actual = adapters(model)
    owners = {name: next(key for key, one in actual.items() if one is (a.owner or a)) for name, a in actual.items()}
    assert owners == {"0.fc": "0.fc", "1.fc": "0.fc", "2.fc": "2.fc", "3.fc": "3.fc", "4.fc": "3.fc", "5.fc": "3.fc"}
    done = []
    initialize_factors(model, done=done.append)
    assert done == ["*.fc (12 x 12)", "*.fc (20 x 12)", "*.fc (20 x 20)"]


def test_an_injection_that_fails_holds_no_factors_afterwards(monkeypatch):
    def fail(*args):
        raise MemoryError

    model = Subject("bert", SHARED).fresh()
    before = vars(model.base_model).copy()
    monkeypatch.setattr(LsrLinear, "update_layer", fail)
    with pytest.raises(MemoryError):
        model.add_adapter("second", Subject("bert", SHARED).config())
    assert vars(model.base_model) == before


@pytest.mark.parametrize("is_more", [False, True])
def test_peft_refuses_a_file_that_holds_less_or_more_which_it_would_pass_over(is_more, tmp_path):
    Subject("bert", SHARED).fresh().save_pretrained(str(tmp_path))
    name, of_first = (f"base_model.model.{layer}.lsr_adapters" for layer in reversed(QUERIES))

    def change(tensors):
        if is_more:
            tensors[f"{name}.factor_A1"] = tensors[f"{of_first}.factor_A1"].clone()
        else:
            del tensors[f"{name}.core"]

    edit(tmp_path / "adapter_model.safetensors", change)
    says = "factor_A1 is not part of this adapter on this base model" if is_more else "core is missing"
    line = refused(PeftModel.from_pretrained, tiny("bert"), str(tmp_path), kind=ValueError, says=says)
    assert line.startswith("the adapter's file: ")
    assert QUERIES[1] in line
