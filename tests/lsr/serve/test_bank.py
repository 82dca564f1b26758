"""Rows of one batch through the adapters of a bank, against PEFT with each adapter alone."""

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.testing import assert_close

from lsr import AdapterBank
from lsr.loading.files import InputError
from lsr.serve.reading import read_adapter
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import tiny, tokens
from tests.lsr.serve.families import CORED, FORMS, save, says

NAMES = ["b", "__base__", "c", "a", "b"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that returns a folder of three adapters of a form, which nobody changes."""
    done = {}

    def of(form):
        if form not in done:
            model, fields = FORMS[form]
            done[form] = tmp_path_factory.mktemp("adapters")
            for seed, name in enumerate("abc"):
                save(done[form] / name, model, seed, **fields)
        return done[form]

    return of


@pytest.fixture
def bank(folders):
    return filled(folders("cores"))


def filled(folder, model="bert", dtype=torch.float32, **options):
    bank = AdapterBank(tiny(model).to(dtype), **options)
    for name in "abc":
        bank.add(name, folder / name)
    return bank


def asked(bank, names):
    with torch.no_grad():
        return bank(**tokens(len(names)), adapter_names=names).logits


# What it says


@pytest.mark.parametrize("form", FORMS)
def test_each_row_is_what_its_adapter_alone_says_in_full_precision(form, folders):
    model, fields = FORMS[form]
    folder = folders(form)
    # A folded start is subtracted from a weight of these very bytes.
    dtype = torch.float32 if fields.get("init_weights") == "principal" and form not in CORED else torch.float64
    alone = {name: says(model, folder / name, len(NAMES), dtype) for name in "abc"}
    alone["__base__"] = says(model, None, len(NAMES), dtype)
    expected = torch.stack([alone[name][row] for row, name in enumerate(NAMES)])
    assert (alone["a"] - alone["b"]).abs().max() > 1e-3
    for options in ({}, {"collapse": True}) if form in CORED else ({},):
        found = asked(filled(folder, model, dtype, **options), NAMES)
        assert_close(found, expected, rtol=1e-5, atol=1e-6)  # files hold float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["diagonal cores on shared signs", "factors"])
def test_lower_precision_is_as_near_as_one_adapter_is(form, dtype, folders):
    folder = folders(form)
    exact = torch.stack([says("bert", folder / name)[row] for row, name in enumerate("abca")])
    alone = torch.stack([says("bert", folder / name, dtype=dtype)[row] for row, name in enumerate("abca")])
    found = asked(filled(folder, dtype=dtype), list("abca"))
    assert found.dtype is dtype
    assert (found - exact).abs().max() < 3 * (alone - exact).abs().max() + 1e-6


def test_a_row_does_not_depend_on_the_others(bank):
    together = asked(bank, ["a", "b", "c", "a"])
    assert_close(asked(bank, ["a", "a", "a", "a"])[3], together[3])
    assert_close(asked(bank, ["__base__", "b", "__base__", "c"])[1], together[1])


def test_without_names_all_rows_are_those_of_the_base_model(bank):
    with torch.no_grad():
        assert torch.equal(bank(**tokens()).logits, says("bert", dtype=torch.float32))


def test_it_computes_under_autocast(bank):
    exact = asked(bank, ["a", "b", "c", "a"])
    with torch.autocast("cpu", torch.bfloat16):
        found = asked(bank, ["a", "b", "c", "a"])
    assert_close(found.float(), exact, rtol=0.05, atol=0.05)


def test_beams_and_answers_of_a_prompt_share_its_adapter(folders):
    folder = folders("no head")
    bank = filled(folder, "gpt2-causal")
    ids = tokens(2)["input_ids"][:, :5]
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mixed = bank.generate(ids, adapter_names=["a", "b"], **options)
    for row, name in enumerate("ab"):
        alone = PeftModel.from_pretrained(tiny("gpt2-causal"), str(folder / name)).generate(ids, **options)
        assert torch.equal(mixed[2 * row : 2 * row + 2], alone[2 * row : 2 * row + 2])


def test_ranks_and_layers_may_differ(tmp_path):
    small = save(tmp_path / "small", rank_shape=(2,), target_modules=["intermediate.dense"])
    large = save(tmp_path / "large", rank_shape=(6,), rank_pattern={"1.attention.self.query": (9,)})
    bank = AdapterBank(tiny("bert"))
    bank.add("small", small)
    bank.add("large", large)
    found = asked(bank, ["small", "large", "small", "large"])
    for row, folder in enumerate((small, large, small, large)):
        assert_close(found[row], says("bert", folder, dtype=torch.float32)[row])


def test_a_pooler_that_was_trained_whole_goes_with_its_adapter(tmp_path):
    folder = save(tmp_path / "one", modules_to_save=["pooler", "classifier"], **FORMS["cores"][1])
    bank = AdapterBank(tiny("bert"))
    bank.add("one", folder)
    found = asked(bank, ["__base__", "one"])
    assert_close(found[1], says("bert", folder, 2, torch.float32)[1])
    assert_close(found[0], says("bert", None, 2, torch.float32)[0])


def test_a_pooler_of_one_that_comes_later_is_not_that_of_the_others(folders, tmp_path):
    folder = save(tmp_path / "late", modules_to_save=["pooler", "classifier"], **FORMS["cores"][1])
    bank = filled(folders("cores"))
    before = asked(bank, ["a", "b", "__base__"])
    bank.add("late", folder)
    assert_close(asked(bank, ["a", "b", "__base__"]), before)
    bank.save(tmp_path / "bank")
    assert_close(asked(AdapterBank.load(tiny("bert"), tmp_path / "bank"), ["a", "b", "__base__"]), before)


def test_threads_have_their_own_rows(bank):
    expected = {name: asked(bank, [name] * 4) for name in "ab"}

    def is_right(name):
        return torch.equal(asked(bank, [name] * 4), expected[name])

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(is_right, "ab" * 50))


def test_rows_within_rows_end_where_they_end(bank):
    outer = asked(bank, ["a"] * 4)
    with bank.rows(["a"] * 4), torch.no_grad():
        assert not torch.equal(asked(bank, ["b"] * 4), outer)
        assert torch.equal(bank(**tokens(4)).logits, outer)


def test_a_copy_has_rows_of_its_own(bank):
    copied = copy.deepcopy(bank)
    with bank.rows(["a"] * 4):
        assert torch.equal(asked(copied, ["b"] * 4), asked(bank, ["b"] * 4))


def test_the_fast_path_of_a_transformer_layer_does_not_pass_by_the_adapters():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    bank = AdapterBank(nn.Sequential(layer))
    bank._insert_layer("0.linear1", nn.Identity())
    assert layer.activation_relu_or_gelu == 0


# Adding, replacing, removing


def test_it_grows_and_says_the_same(folders):
    folder = folders("cores")
    bank = AdapterBank(tiny("bert"), capacity=1)
    bank.add("a", folder / "a")
    before = asked(bank, ["a", "__base__"])
    for name in "bc":
        bank.add(name, folder / name)
    assert torch.equal(asked(bank, ["a", "__base__"]), before)
    assert bank.names == ["a", "b", "c"]
    assert {len(layer.cores) for layer in bank._layers.values()} == {5}


@pytest.mark.parametrize("form", ["cores", "factors"])
def test_replacing_and_removing_compile_nothing_again(form, folders):
    folder = folders(form)
    bank = filled(folder)
    torch.compiler.reset()
    bank.model.compile(backend="eager", fullgraph=True)
    first = asked(bank, ["a", "b", "c", "a"])
    with torch._dynamo.config.patch(error_on_recompile=True):
        bank.add("b", folder / "c", replace=True)
        replaced = asked(bank, ["a", "b", "c", "b"])
        bank.remove("a")
        bank.add("new", folder / "a")
        again = asked(bank, ["new", "b", "c", "__base__"])
    torch.compiler.reset()
    assert_close(replaced[:3:2], first[:3:2])
    assert_close(replaced[1], asked(filled(folder), ["c"] * 4)[1])
    assert_close(again[:3], replaced[:3])


def test_who_comes_takes_the_place_of_who_left_and_nothing_of_it(tmp_path, folders):
    bank = filled(folders("cores"))
    size = bank.nbytes
    bank.remove("b")
    part = save(tmp_path / "part", target_modules=["query"], **FORMS["cores"][1])
    bank.add("part", part)
    assert bank.nbytes == size
    assert bank.names == ["a", "c", "part"]
    assert_close(asked(bank, ["part", "part"]), says("bert", part, 2, torch.float32))


def test_one_reading_may_have_several_names(folders):
    bank = AdapterBank(tiny("bert"))
    reading = read_adapter(folders("cores") / "a")
    for number in range(40):
        bank.add(f"user {number}", reading)
    found = asked(bank, ["user 0", "user 39"])
    assert_close(found, says("bert", folders("cores") / "a", 2, torch.float32))


def test_shared_frames_are_in_memory_once(folders):
    bank = filled(folders("diagonal cores on shared signs"), capacity=3)
    frames = 2 * 2 * 4 * 24  # of two kinds, A and B
    cores, heads = 4 * 4 * 4, 4 * 3 * 25  # four places
    assert bank.nbytes == 4 * (frames + cores + heads)


# Training


@pytest.mark.parametrize("form", ["cores", "diagonal cores on shared signs"])
def test_one_pass_gives_each_adapter_the_gradients_that_it_has_alone(form, folders):
    folder, names = folders(form), ["a", "b", "__base__", "a"]
    bank = filled(folder, dtype=torch.float64)
    layer = bank._layers["bert.encoder.layer.1.attention.self.value"]
    with bank.side_by_side():
        bank(**tokens(), adapter_names=names).logits.square().sum().backward()
        cores, heads = layer.cores.grad, bank._heads["classifier"].by_name()["weight"].grad
    assert not cores[0].any()
    assert not heads[0].any()
    assert not cores[3].any()  # of c, which has no row
    for place, name in ((1, "a"), (2, "b")):
        alone = PeftModel.from_pretrained(tiny("bert").double(), str(folder / name), is_trainable=True).eval()
        rows = [row for row, chosen in enumerate(names) if chosen == name]
        alone(**tokens()).logits[rows].square().sum().backward()
        adapter = adapted_layers(alone)["bert.encoder.layer.1.attention.self.value"].adapter("default")
        assert_close(adapter.scaling * cores[place].double(), adapter.core.grad.double(), rtol=1e-5, atol=1e-7)
        head = alone.base_model.model.classifier.modules_to_save["default"]
        assert_close(heads[place], head.weight.grad.double(), rtol=1e-5, atol=1e-7)


def test_adapters_that_start_alike_learn_what_their_own_rows_say(folders, tmp_path):
    bank = AdapterBank(tiny("bert"), capacity=2)
    for name in ("yes", "no"):
        bank.add(name, folders("cores") / "a")
    names, labels = ["yes", "no", "yes", "no"], torch.tensor([0, 1, 0, 1])
    before = {name: value.clone() for name, value in bank.model.named_parameters()}
    with bank.side_by_side() as stacks:
        optimizer = torch.optim.AdamW(stacks, lr=0.05)
        for _ in range(20):
            bank(**tokens(), adapter_names=names, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        while_they_train = "while the bank's adapters are training side by side"
        assert f"cannot add 'new' {while_they_train}" in refused(bank.add, "new", folders("cores") / "a")
        assert f"cannot remove 'a' {while_they_train}" in refused(bank.remove, "a")
        assert f"cannot train {while_they_train}" in refused(bank.side_by_side().__enter__)
        assert all(stack.requires_grad for stack in stacks)
    assert torch.equal(asked(bank, names).argmax(1), labels)
    assert torch.equal(asked(bank, names[::-1]).argmax(1), labels.flip(0))
    assert all(torch.equal(value, before[name]) for name, value in bank.model.named_parameters())
    bank.save(tmp_path / "bank")
    assert torch.equal(asked(AdapterBank.load(tiny("bert"), tmp_path / "bank"), names), asked(bank, names))


# Mistakes


def refused(call, *arguments, **options):
    with pytest.raises(InputError) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_name_that_is_not_there_is_refused_with_the_nearest(bank, folders):
    bank.add("alpha", folders("cores") / "a")
    assert "no adapter is named 'alhpa'; there are 4, such as 'alpha'" in refused(asked, bank, ["a", "alhpa"])
    assert "no adapter is named 'x'" in refused(bank.remove, "x")


def test_an_empty_bank_has_no_names_and_is_not_saved(tmp_path):
    bank = AdapterBank(tiny("bert"))
    assert refused(asked, bank, ["a"]) == "adapter_names: no adapter is named 'a': the bank is empty"
    assert "the bank is empty: add an adapter first" in refused(bank.save, tmp_path / "bank")


def test_another_number_of_names_than_rows_is_refused(bank):
    with pytest.raises(ValueError, match="one name per row of the batch, 4, got 3"), torch.no_grad():
        bank(**tokens(4), adapter_names=["a", "b", "c"])
    assert len(asked(bank, ["a"])) == 1


@pytest.mark.parametrize("name", ["", "__base__"])
def test_a_name_that_means_something_else_is_refused(name, bank, folders):
    assert "must be a non-empty string other than '__base__'" in refused(bank.add, name, folders("cores") / "a")


def test_a_name_that_is_taken_is_refused(bank, folders):
    assert refused(bank.add, "a", folders("cores") / "b").startswith("a: an adapter of this name is in the bank")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**FORMS["cores"][1], "init_weights": "principal"}, "query': its frames differ from the bank's"),
        ({**FORMS["cores"][1], "rank_shape": (3,)}, "query': its core is 3 x 3, but the bank's cores are 4 x 4"),
        ({**FORMS["cores"][1], "core": "diagonal"}, "query': its core is 4, but the bank's cores are 4 x 4"),
        ({}, "trains factors, but the bank stores only cores; see collapse"),
        ({**FORMS["cores"][1], "bias": "all"}, r"trains biases of the base model (bias='all'); a bank cannot"),
        ({**FORMS["cores"][1], "base": "huge"}, "base_model_name_or_path is 'huge', but 'tiny' for the adapters in"),
    ],
    ids=["frames", "rank", "core", "form", "biases", "base"],
)
def test_an_adapter_that_does_not_go_with_the_others_is_refused_and_changes_nothing(fields, message, bank, tmp_path):
    before = asked(bank, ["a", "b", "c"])
    assert message in refused(bank.add, "new", save(tmp_path / "new", **fields))
    assert torch.equal(asked(bank, ["a", "b", "c"]), before)
    assert bank.names == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("bert-padded", "is for a layer of 24 x 24, but this one is 62 x 62"),
        ("roberta", "adapts a layer 'bert.encoder.layer.0.attention.self.query', which the base model does not have"),
    ],
)
def test_an_adapter_of_another_model_is_refused(model, message, folders):
    bank = AdapterBank(tiny(model))
    with pytest.raises(InputError) as raised:
        bank.add("a", save_without_head(folders, model))
    assert message in str(raised.value)
    assert len(bank) == 0


def save_without_head(folders, model):
    folder = folders("cores").parent / f"headless-{model}"
    if not folder.exists():
        save(folder, task_type=None, **FORMS["cores"][1])
    return folder


@pytest.mark.parametrize("fields", [FORMS["cores"][1], {}], ids=["cores", "factors"])
def test_another_base_model_of_the_same_shapes_is_refused(fields, tmp_path):
    save(tmp_path / "own", **fields)
    message = "is for another base model: the weights of layer 'bert.encoder.layer.0.attention.self.query' differ"
    assert message in refused(AdapterBank(another()).add, "own", tmp_path / "own")
    right = AdapterBank(tiny("bert"))
    right.add("own", tmp_path / "own")
    right.save(tmp_path / "bank")
    assert message in refused(AdapterBank.load, another(), tmp_path / "bank")


def another():
    base = tiny("bert")
    for parameter in base.parameters():
        parameter.data = parameter.data.flip(0)
    return base


def test_a_member_of_frames_of_another_base_model_is_refused(tmp_path):
    frames = save(tmp_path / "frames", **FORMS["cores"][1])
    save(tmp_path / "member", **FORMS["cores"][1] | {"frames": str(frames)})
    assert "is for another base model" in refused(AdapterBank(another()).add, "member", tmp_path / "member")


def test_modules_within_each_other_are_refused_in_both_orders(bank, tmp_path):
    save(tmp_path / "whole", modules_to_save=["pooler", "classifier"], **FORMS["cores"][1])
    targets = {"target_modules": ["query", "value", "pooler.dense"]}
    save(tmp_path / "inside", **FORMS["cores"][1] | targets)
    for names in (["whole", "inside"], ["inside", "whole"]):
        one = AdapterBank(tiny("bert"))
        one.add(names[0], tmp_path / names[0])
        before = asked(one, [names[0]] * 4)
        message = refused(one.add, names[1], tmp_path / names[1])
        assert "'bert.pooler.dense' is adapted or trained, and 'bert.pooler' trained in full" in message
        assert torch.equal(asked(one, [names[0]] * 4), before)


def test_a_note_that_is_no_json_is_refused(bank, folders):
    assert "c2: its note must be a JSON value" in refused(bank.add, "c2", folders("cores") / "c", note=object())
    assert "c2" not in bank


def test_a_head_of_another_number_of_labels_is_refused(folders):
    base = tiny("bert")
    base.classifier = nn.Linear(24, 5)
    bank = AdapterBank(base)
    message = refused(bank.add, "a", folders("cores") / "a")
    assert "classifier.weight is 3 x 24, but 5 x 24 in the base model" in message


def test_a_folded_start_of_another_weight_is_refused(folders):
    base = tiny("bert")
    base.bert.encoder.layer[1].attention.self.query.weight.data[0, 0] += 1
    bank = AdapterBank(base)
    message = refused(bank.add, "a", folders("a start that is subtracted") / "a")
    assert "layer 'bert.encoder.layer.1.attention.self.query': this is not the base model" in message


def test_a_head_that_no_entry_names_is_refused(folders, tmp_path):
    shutil.copytree(folders("cores") / "a", tmp_path / "a")
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"modules_to_save": None}))
    assert "does not belong to an adapter of this base model" in refused(
        AdapterBank(tiny("bert")).add, "a", tmp_path / "a"
    )


def test_a_folder_without_an_adapter_is_refused(bank, tmp_path):
    assert "no such folder" in refused(bank.add, "new", tmp_path / "nothing")


def test_a_layer_that_cannot_be_adapted_is_refused(folders):
    base = tiny("bert")
    base.bert.encoder.layer[0].attention.self.query = nn.Identity()
    assert "it must be Linear or Conv1D, got Identity" in refused(AdapterBank(base).add, "a", folders("cores") / "a")
