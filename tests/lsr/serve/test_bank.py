"""Rows of one batch through the adapters of a bank, against PEFT with each adapter alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.testing import assert_close

from lsr import AdapterBank
from lsr.loading.files import InputError
from lsr.tuner.linear import adapted_layers
from tests.capabilities.models import tiny, tokens
from tests.lsr.serve.families import CORED, FORMS, FRAMES, save, says

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
def test_each_row_is_what_its_adapter_alone_says(form, folders):
    model, fields = FORMS[form]
    folder = folders(form)
    # A folded start is subtracted from a weight of these very bytes.
    dtype = torch.float32 if fields.get("init_weights") == "principal" and form not in CORED else torch.float64
    alone = {name: says(model, folder / name, len(NAMES), dtype) for name in "abc"}
    alone["__base__"] = says(model, None, len(NAMES), dtype)
    expected = torch.stack([alone[name][row] for row, name in enumerate(NAMES)])
    assert (alone["a"] - alone["b"]).abs().max() > 1e-3
    for options in ({}, {"collapse": True}) if form in CORED else ({},):
        bank = filled(folder, model, dtype, **options)
        assert_close(asked(bank, NAMES), expected, rtol=1e-5, atol=1e-6)  # files hold float32
        with torch.no_grad():
            assert_close(bank(**tokens()).logits, says(model, None, 4, dtype))  # without names


def test_beams_and_answers_of_a_prompt_share_its_adapter(folders):
    folder = folders("no head")
    bank = filled(folder, "gpt2-causal")
    ids = tokens(2)["input_ids"][:, :5]
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mixed = bank.generate(ids, adapter_names=["a", "b"], **options)
    for row, name in enumerate("ab"):
        alone = PeftModel.from_pretrained(tiny("gpt2-causal"), str(folder / name)).generate(ids, **options)
        assert torch.equal(mixed[2 * row : 2 * row + 2], alone[2 * row : 2 * row + 2])


def test_ranks_layers_and_modules_trained_in_full_may_differ(tmp_path):
    small = save(tmp_path / "small", rank_shape=(2,), target_modules=["intermediate.dense"])
    large = save(tmp_path / "large", rank_shape=(6,), rank_pattern={"1.attention.self.query": (9,)})
    pooled = save(tmp_path / "pooled", modules_to_save=["pooler", "classifier"])
    bank = AdapterBank(tiny("bert"))
    for folder in (small, large):
        bank.add(folder.name, folder)
    before = asked(bank, ["small", "large", "__base__"])
    bank.add("pooled", pooled)  # the others keep the base model's own pooler
    assert_close(asked(bank, ["small", "large", "__base__"]), before)
    found = asked(bank, ["small", "large", "pooled", "large"])
    for row, folder in enumerate((small, large, pooled, large)):
        assert_close(found[row], says("bert", folder, dtype=torch.float32)[row])


def test_threads_have_their_own_rows(bank):
    expected = {name: asked(bank, [name] * 4) for name in "ab"}
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda name: torch.equal(asked(bank, [name] * 4), expected[name]), "ab" * 50))


# Adding, replacing, removing


def test_it_grows_and_who_comes_takes_the_place_of_who_left_and_nothing_of_it(folders, tmp_path):
    bank = AdapterBank(tiny("bert"), capacity=1)
    bank.add("a", folders("cores") / "a")
    before = asked(bank, ["a", "__base__"])
    for name in "bc":
        bank.add(name, folders("cores") / name)
    assert torch.equal(asked(bank, ["a", "__base__"]), before)
    assert {len(layer.stacks()["cores"]) for layer in bank._layers.values()} == {5}
    size, part = bank.nbytes, save(tmp_path / "part", target_modules=["query"], **FRAMES)
    bank.remove("b")
    bank.add("part", part)
    assert (bank.nbytes, bank.names) == (size, ["a", "c", "part"])
    assert_close(asked(bank, ["part", "part"]), says("bert", part, 2, torch.float32))


def test_replacing_and_removing_compile_nothing_again(folders):
    folder = folders("cores")
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


# Training


@pytest.mark.parametrize("form", ["cores", "diagonal cores on shared signs"])
def test_one_pass_gives_each_adapter_the_gradients_that_it_has_alone(form, folders):
    folder, names = folders(form), ["a", "b", "__base__", "a"]
    bank = filled(folder, dtype=torch.float64)
    layer = bank._layers["bert.encoder.layer.1.attention.self.value"]
    with bank.side_by_side():
        bank(**tokens(), adapter_names=names).logits.square().sum().backward()
        cores, heads = layer.stacks()["cores"].grad, bank._heads["classifier"].stacks()["weight"].grad
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
    assert torch.equal(asked(bank, names).argmax(1), labels)
    assert all(torch.equal(value, before[name]) for name, value in bank.model.named_parameters())
    bank.save(tmp_path / "bank")
    assert torch.equal(asked(AdapterBank.load(tiny("bert"), tmp_path / "bank"), names), asked(bank, names))


# Mistakes


def refused(call, *arguments, **options):
    with pytest.raises(InputError) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_name_that_is_not_there_or_taken_is_refused(bank, folders):
    bank.add("alpha", folders("cores") / "a")
    assert "no adapter is named 'alhpa', of 4 in the bank; did you mean alpha?" in refused(asked, bank, ["a", "alhpa"])
    assert "no adapter is named 'x', of 4 in the bank" in refused(bank.remove, "x")
    assert "the bank is empty: add an adapter first" in refused(AdapterBank(tiny("bert")).save, folders("cores") / "no")
    assert "a: an adapter of this name is in the bank" in refused(bank.add, "a", folders("cores") / "b")
    assert "other than '__base__', got '__base__'" in refused(bank.add, "__base__", folders("cores") / "b")
    assert "no such folder" in refused(bank.add, "new", folders("cores") / "nothing")
    with pytest.raises(ValueError, match="one name per row of the batch, 4, got 3"), torch.no_grad():
        bank(**tokens(), adapter_names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**FRAMES, "init_weights": True}, "query's: its frames differ from the bank's; see collapse"),
        ({**FRAMES, "rank_shape": (3,)}, "its core is 3 x 3, but the bank's cores are 4 x 4"),
        ({}, "trains factors, but the bank stores only cores; see collapse"),
        ({**FRAMES, "bias": "all"}, "trains biases of the base model (bias='all'); a bank cannot"),
        ({**FRAMES, "base": "huge"}, "base_model_name_or_path is 'huge', but 'tiny' for the adapters in"),
    ],
    ids=["frames", "rank", "form", "biases", "base"],
)
def test_an_adapter_that_does_not_go_with_the_others_is_refused_and_changes_nothing(fields, message, bank, tmp_path):
    before = asked(bank, ["a", "b", "c"])
    assert message.removeprefix("query's: ") in refused(bank.add, "new", save(tmp_path / "new", **fields))
    assert torch.equal(asked(bank, ["a", "b", "c"]), before)
    assert bank.names == ["a", "b", "c"]


def test_modules_within_each_other_are_refused_in_both_orders(tmp_path):
    save(tmp_path / "whole", modules_to_save=["pooler", "classifier"], **FRAMES)
    save(tmp_path / "inside", target_modules=["query", "value", "pooler.dense"], **FRAMES)
    for first, second in (("whole", "inside"), ("inside", "whole")):
        bank = AdapterBank(tiny("bert"))
        bank.add(first, tmp_path / first)
        before = asked(bank, [first] * 4)
        message = refused(bank.add, second, tmp_path / second)
        assert "'bert.pooler.dense' is adapted or trained, and 'bert.pooler' trained in full" in message
        assert torch.equal(asked(bank, [first] * 4), before)


def with_five_labels():
    base = tiny("bert")
    base.classifier = nn.Linear(24, 5)
    return base


BASES = {  # another base model: what is said of it
    "widths": (lambda: tiny("bert-padded"), "the adapter is for a layer of 24 x 24, and this one is 62 x 62"),
    "layers": (lambda: tiny("roberta"), "adapts a layer 'bert.encoder.layer.0.attention.self.query', which the base"),
    "labels": (with_five_labels, "classifier.bias is 3, but 5 in the base model"),
}


@pytest.mark.parametrize("what", BASES)
@pytest.mark.parametrize("form", ["cores", "factors"])
def test_another_base_model_is_refused(what, form, folders, tmp_path):
    base, message = BASES[what]
    bank = AdapterBank(base())
    assert message in refused(bank.add, "a", folders(form) / "a")
    assert len(bank) == 0
    if what == "labels":
        filled(folders(form)).save(tmp_path / "bank")
        said = refused(AdapterBank.load, base(), tmp_path / "bank")
        assert "weight of a head is 3 x 24, but 5 x 24 in the base model" in said
