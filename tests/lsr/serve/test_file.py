"""The file of a bank: read as it was written, one line for what is none, and the command that makes it."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from lsr import AdapterBank, quantize_adapter
from lsr.__main__ import main
from lsr.algebra.rounding import BITS
from lsr.loading.contents import Contents, read_contents
from lsr.loading.updates import Bases, Update
from lsr.serve import file
from lsr.tuner.packing import dtype_name
from tests.kit import refused, said, write
from tests.lsr.saved import FORMS, asked, save, save_lora, says
from tests.lsr.serve import decoding
from tests.lsr.serve.sealing import BLANK, digest, parts, seal
from tests.old_tiny.models import BERT, tiny, tokens
from tests.old_tiny.subjects import DENSE

CORED = "bert.encoder.layer.0.attention.self.query"
SHOWN = ("diagonal cores on shared bases", "factors", "a head of two modules")


@pytest.fixture
def saved(folders, tmp_path):
    """A function that saves a bank of two adapters of a form, and returns it and the folder of its adapters."""

    def of(form):
        bank = AdapterBank(tiny(FORMS[form][0]))
        for name in "abc":
            bank.add(name, folders(form) / name, task_info={"labels": [name, "other", "more"]})
        bank.remove("b")
        bank.save(tmp_path / "bank")
        return bank, folders(form)

    return of


@pytest.mark.parametrize("form", SHOWN)
def test_a_bank_is_read_as_it_was_written_and_takes_more(form, saved, tmp_path):
    bank, root = saved(form)
    model, _ = FORMS[form]
    before = (tmp_path / "bank" / file.FILE).read_bytes()
    again = AdapterBank.load(tiny(model), tmp_path / "bank")
    names = ["c", "a", "__base__", "c"]
    assert again.names == ["a", "c"]
    assert again.task_infos == {name: {"labels": [name, "other", "more"]} for name in "ac"}
    assert torch.equal(asked(again, names), asked(bank, names))
    again.add("b", root / "b")
    torch.testing.assert_close(asked(again, ["b", "b", "c", "c"])[1], says(model, root / "b", dtype=torch.float32)[1])
    assert torch.equal(asked(again, names), asked(bank, names))
    again.add("a", root / "b", replace=True)
    assert (tmp_path / "bank" / file.FILE).read_bytes() == before  # memory-mapped, but a copy of its own
    refused(bank.save, tmp_path / "bank", says="exists; choose another folder")


def test_shared_bases_are_in_the_file_once_and_stay_shared(saved, tmp_path):
    bank, _ = saved("diagonal cores on shared bases")
    tensors = load_file(tmp_path / "bank" / file.FILE)
    assert sorted(value.numel() for name, value in tensors.items() if name.startswith(file.BASES)) == [4 * 24] * 4
    cores = [value.shape for name, value in tensors.items() if name.endswith("cores/values")]
    assert cores == 4 * [(1 + 2, 4)]  # a row of zeros, and one of each adapter
    assert tensors["heads/classifier/weight/values"].shape == (1 + 2 * 3, 24)
    again = AdapterBank.load(tiny("bert"), tmp_path / "bank")
    assert len({layer.bases for layer in again.layers.values()}) == 2
    assert again.nbytes <= bank.nbytes  # which may have room for more


@pytest.mark.parametrize("precision", BITS)
def test_a_bank_in_few_bits_answers_as_peft_with_the_nearest_values(precision, tmp_path):
    """Where rows have 64 entries or more; shorter ones are in bfloat16."""
    bank = AdapterBank(tiny("bert-wide"), precision=precision)
    whole = AdapterBank(tiny("bert-wide"))
    save(tmp_path / "a", "bert-wide", **DENSE)
    save_lora(tmp_path / "b", "bert-wide", seed=2)
    for name in "ab":
        quantize_adapter(tmp_path / name, tmp_path / f"rounded-{name}", precision)
        bank.add(name, tmp_path / name)
        whole.add(name, tmp_path / f"rounded-{name}")
    bank.save(tmp_path / "bank")
    again = AdapterBank.load(tiny("bert-wide"), tmp_path / "bank")
    names = ["b", "a", "__base__", "a"]
    answers = asked(again, names)
    assert torch.equal(asked(bank, names), answers)
    torch.testing.assert_close(asked(whole, names), answers, rtol=1e-5, atol=1e-5)
    assert again.nbytes < whole.nbytes / 2
    stored = decoding.read(tmp_path / "bank", tiny("bert-wide"), BITS[precision])
    for row in (0, 1):
        expected = decoding.logits(tiny("bert-wide"), stored[names[row]][0], len(names))[row]
        torch.testing.assert_close(answers[row].double(), expected, rtol=1e-5, atol=1e-5)
    for name in "ab":
        check_nearest(*stored[name], decoding.values_of(read_contents(tmp_path / name)), BITS[precision])


def check_nearest(values, steps, exact, bits):
    """Check that no value of an adapter is nearer to another level than to that which stands for it."""
    assert exact.keys() == values.keys()
    for name, value in exact.items():
        step = steps[name]
        clipped = value.abs() - (2**bits - 1) / 2 * step  # how far it is outside the outermost level
        largest_error = torch.maximum(step / 2, clipped)
        error = (values[name] - value).abs()
        assert (error <= 1.001 * largest_error).all(), name


@pytest.mark.parametrize("precision", BITS)
def test_rows_of_an_odd_number_of_bytes_answer_as_dense_matrices_of_their_values(precision, tmp_path):
    """Those of full cores of rank 9 and, in 3 bits, of a head of width 72."""
    bank = AdapterBank(wide_base(), precision=precision)
    for seed, name in enumerate("ab"):
        bank.add(name, with_core_of_rank_9(seed))
    bank.save(tmp_path / "bank")
    tensors = load_file(tmp_path / "bank" / file.FILE)
    cores = tensors[f"layers/{CORED}/cores/values"]
    assert cores.shape[1] % 2 == 1
    core = decoding.from_codes(cores[1:2].numpy(), (81,), BITS[precision])[0].view(9, 9)
    weight = decoding.from_codes(tensors["heads/classifier/weight/values"][1:4].numpy(), (72,), BITS[precision])[0]
    dense = wide_base().double()
    bases = with_core_of_rank_9(0).updates[CORED].bases
    with torch.no_grad():
        dense.get_submodule(CORED).weight += 2 * bases.b.double() @ core @ bases.a.double()
        dense.classifier.weight.copy_(weight)
        dense.classifier.bias.copy_(tensors["heads/classifier/bias/values"][1:4].flatten())
        expected = {rows: dense(**tokens(rows)).logits.float() for rows in (1, 2)}
    for own in (bank, AdapterBank.load(wide_base(), tmp_path / "bank")):
        contents = own.contents("a")
        torch.testing.assert_close(contents.updates[CORED].core, core.float())
        torch.testing.assert_close(contents.heads["classifier.weight"], weight.float())
        torch.testing.assert_close(asked(own, ["a"]), expected[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(asked(own, ["a", "b"])[0], expected[2][0], rtol=1e-5, atol=1e-5)


def wide_base():
    """Return a model of width 72 with the same weights each time."""
    config = BertConfig(**BERT | {"hidden_size": 72, "num_hidden_layers": 1})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config).eval()


def with_core_of_rank_9(seed):
    """Return an adapter with a core between the same bases for any seed, and a head."""
    draws = torch.Generator().manual_seed(5)
    bases = Bases(a=torch.randn(9, 72, generator=draws) / 9, b=torch.randn(72, 9, generator=draws) / 9)
    draws.manual_seed(seed)
    heads = {
        "classifier.weight": torch.randn(3, 72, generator=draws),
        "classifier.bias": torch.randn(3, generator=draws),
    }
    update = Update(bases, 18, torch.randn(9, 9, generator=draws))
    return Contents("core", {}, {CORED: update}, heads, (".classifier",), None)


def damaged(tmp_path, change, is_sealed=True):
    """Write a bank with another header or other tensors, and their checksums or those of before."""
    with safe_open(tmp_path / "bank" / file.FILE, framework="pt") as content:
        header = json.loads(content.metadata()[file.HEADER])
    tensors = load_file(tmp_path / "bank" / file.FILE)
    change(header, tensors)
    folder = tmp_path / "broken"
    folder.mkdir()
    save_file(tensors, folder / file.FILE, metadata={file.HEADER: json.dumps(header)})
    if is_sealed:
        seal(folder / file.FILE)
    return folder


QUERY = "layers/bert.encoder.layer.0.attention.self.query/directions"
SCALING = QUERY.replace("directions", "scaling")
HEAD = "heads/classifier/bias"
MISFIT = "do not fit the base model or the names"
VALUE = QUERY.split("/")[1].replace("query", "value")
OUTPUT = "bert.encoder.layer.0.attention.output.dense"
WORDS = "bert.embeddings.word_embeddings"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header.update(precision="5bit"), "precision must be one of float32, bfloat16"),
        (lambda header, tensors: header.update(precision=5), "precision must be a name"),
        (lambda header, tensors: header["task_infos"].update(b={}), MISFIT),
        (lambda header, tensors: tensors[f"{QUERY}/values"].fill_(torch.nan), "values that are not"),
        (lambda header, tensors: tensors.update({f"{QUERY}/values": torch.ones(9, 47)}), MISFIT),
        (lambda header, tensors: header["layers"].append("x"), "layer 'x', which the base model does not have"),
        (lambda header, tensors: header["layers"].append(WORDS), f"layer '{WORDS}' cannot be adapted"),
        (lambda header, tensors: header["layers"].append("classifier"), "'classifier' is adapted or trained"),
        (lambda header, tensors: header["layers"].append(VALUE), "layers must be a list of different names"),
        (lambda header, tensors: header["layers"].remove(VALUE), f"{VALUE}/directions is not part of its layers"),
        (lambda header, tensors: header["layers"].append(OUTPUT), f"{OUTPUT}/directions is missing"),
        (lambda header, tensors: header["heads"].append(OUTPUT), f"trains '{OUTPUT}' in full"),
        (lambda header, tensors: header["heads"].clear(), "heads/classifier/bias is not part of its layers and heads"),
        (lambda header, tensors: tensors[f"{QUERY}/counts"].fill_(1000), MISFIT),
        (lambda header, tensors: tensors[f"{QUERY}/counts"][1:].add_(torch.tensor([-9, 9])), MISFIT),
        (lambda header, tensors: tensors[f"{QUERY}/counts"].copy_(tensors[f"{QUERY}/counts"].roll(1)), MISFIT),
        (lambda header, tensors: tensors[f"{SCALING}/counts"].copy_(torch.tensor([0, 2, 0])), MISFIT),
        (lambda header, tensors: tensors[f"{QUERY}/values"][0, 5].fill_(0.5), f"{QUERY}: its first row, which stands"),
        (lambda header, tensors: tensors[f"{HEAD}/values"][0].fill_(1), f"{HEAD}: its first row, which stands"),
        (lambda header, tensors: header["task_infos"].update(a=5), "a: task.json: must be an object, got 5"),
        (lambda header, tensors: tensors.pop(f"{HEAD}/counts"), "bias/counts' is missing"),
        (lambda header, tensors: tensors.update(more=torch.ones(3)), "'/values' is missing"),
        (
            lambda header, tensors: header["task_infos"].update(a={"labels": ["x", "y"]}),
            "a: its task names 2 different",
        ),
        (lambda header, tensors: header["task_infos"].update(c={"labels": ["x"] * 3}), "c: its task names 1 different"),
        (lambda header, tensors: header["task_infos"].update(a={"labels": ["x", "y", "\ud800"]}), "lone surrogate"),
        (lambda header, tensors: header["task_infos"].update(a=deep(51)), "more than 52 values within one another"),
        (
            lambda header, tensors: header.update(task_infos=[]),
            "task_infos must be an object with the task info of each",
        ),
        (lambda header, tensors: header.pop("shared_adapter"), "shared_adapter must be null or an object"),
        (
            lambda header, tensors: header.update(shared_adapter={"adapter_config.json": ""}),
            "shared_adapter must be null or an obj",
        ),
        (lambda header, tensors: header["base"].update(task_type=["SEQ_CLS"]), "base must be an object of base_model"),
        (lambda header, tensors: header["base"].update(more="x"), "base must be an object of base_model"),
        (lambda header, tensors: move(tensors, HEAD), "bias does not have the rows of a head for each adapter"),
        (lambda header, tensors: cut(tensors, SCALING), "needed of each adapter: a scaling, and either directions"),
        (lambda header, tensors: widen(tensors, f"{QUERY}/", 65), "rank of an adapter is 69; at most 64 is allowed"),
        (lambda header, tensors: widen(tensors, "heads/", 10_000), "a head has 10,003 outputs; at most 10,000"),
    ],
)
def test_a_file_that_is_no_bank_is_refused_in_one_line_though_its_checksums_are_right(change, message, saved, tmp_path):
    saved("factors")
    folder = damaged(tmp_path, change)
    refused(AdapterBank.load, tiny("bert"), folder, says=message)


def deep(count):
    """Return an object in which there are so many within one another."""
    return {"more": deep(count - 1)} if count else {}


def move(tensors, stack):
    """Give a row of the last adapter of a stack to the one before it."""
    tensors[f"{stack}/counts"] += torch.tensor([0, 1, -1])


def cut(tensors, stack):
    """Leave the last adapter without a row of a stack."""
    tensors[f"{stack}/values"] = tensors[f"{stack}/values"][:-1].clone()
    tensors[f"{stack}/counts"][-1] -= 1


def widen(tensors, part, more):
    """Give the last adapter more rows of the stacks with this in their names."""
    for name in [name for name in tensors if part in name and name.endswith("/values")]:
        tensors[name] = torch.cat([tensors[name], tensors[name][-1:].repeat(more, 1)])
        tensors[name.replace("/values", "/counts")][-1] += more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry, tensors: entry.__setitem__(0, "x"), "the bases of 'x' are missing"),
        (lambda entry, tensors: entry.__setitem__(1, 5), "cores of 5 entries between bases of rank 4"),
        (lambda entry, tensors: entry.__setitem__(1, 4.0), "bases must be an object with a name and a number"),
        (lambda entry, tensors: entry.append(4), "bases must be an object with a name and a number"),
        (lambda entry, tensors: reshape(tensors, "a", lambda a: a[:3]), "are 3 x 24 and 24 x 4; needed: r x n and"),
        (lambda entry, tensors: reshape(tensors, "a", lambda a: a[:, :23]), "a layer of 24 x 23, this one is 24 x 24"),
        (lambda entry, tensors: reshape(tensors, "b", lambda b: b[:23]), "a layer of 23 x 24, this one is 24 x 24"),
    ],
)
def test_so_are_bases_that_do_not_fit_their_layers(change, message, saved, tmp_path):
    saved("diagonal cores on shared bases")
    name = QUERY.split("/")[1]
    folder = damaged(tmp_path, lambda header, tensors: change(header["bases"][name], tensors))
    refused(AdapterBank.load, tiny("bert"), folder, says=message)


def reshape(tensors, side, change):
    """Change one side of the bases of all layers."""
    for name in [name for name in tensors if name.startswith(file.BASES) and name.endswith(f"/{side}")]:
        tensors[name] = change(tensors[name]).contiguous()


@pytest.mark.parametrize("form", SHOWN)
def test_a_bank_has_the_checksum_of_each_tensor_and_of_its_header_and_is_written_again_with_the_same_bytes(
    form, saved, tmp_path
):
    bank, _ = saved(form)
    whole = (tmp_path / "bank" / file.FILE).read_bytes()
    header, tensors, _ = parts(tmp_path / "bank" / file.FILE)
    fields = json.loads(header["__metadata__"][file.HEADER])
    assert fields["checksums"] == {name: digest(content) for name, content in tensors.items()}
    beginning = whole[: 8 + int.from_bytes(whole[:8], "little")]
    assert fields["checksum"] == digest(beginning.replace(fields["checksum"].encode(), BLANK))
    bank.save(tmp_path / "again")
    AdapterBank.load(tiny(FORMS[form][0]), tmp_path / "bank").save(tmp_path / "loaded")
    for name in ("again", "loaded"):
        assert (tmp_path / name / file.FILE).read_bytes() == whole


def exchange(header, tensors):
    """Let two adapters have each other's names and task infos, as a tool would that sorts what it writes."""
    header["task_infos"] = {name: header["task_infos"][name] for name in reversed(header["task_infos"])}


DAMAGED = "damaged: its header has another checksum; write the bank again from its adapters"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (exchange, DAMAGED),
        (lambda header, tensors: header["task_infos"]["a"].update(labels=["other", "a", "more"]), DAMAGED),
        (lambda header, tensors: header["base"].update(revision="x"), DAMAGED),
        (lambda header, tensors: header["layers"].reverse(), DAMAGED),
        (lambda header, tensors: tensors[f"{QUERY}/values"][1, 5].add_(1e-3), f"damaged: {QUERY}/values has another"),
        (lambda header, tensors: tensors[f"{HEAD}/values"].copy_(tensors[f"{HEAD}/values"].roll(1, 0)), "damaged: "),
        (lambda header, tensors: tensors.update(more=torch.ones(3)), DAMAGED),
    ],
)
def test_what_a_tool_changes_that_computes_no_checksums_is_refused_in_a_line(change, message, saved, tmp_path):
    saved("factors")
    folder = damaged(tmp_path, change, is_sealed=False)
    refused(AdapterBank.load, tiny("bert"), folder, says=message)


def test_a_file_that_is_cut_off_missing_another_or_a_pipe_is_refused(saved, tmp_path):
    _, root = saved("factors")
    whole = (tmp_path / "bank" / file.FILE).read_bytes()
    another = (root / "a/adapter_model.safetensors").read_bytes()
    for content, reason in (
        (None, "no such file"),
        (whole[:-9], "corrupt or cut off"),
        (another, "no bank"),
    ):
        if content is not None:
            write(tmp_path / file.FILE, content)
        refused(AdapterBank.load, tiny("bert"), tmp_path, says=f"{file.FILE}: {reason}")
    (tmp_path / file.FILE).unlink()
    os.mkfifo(tmp_path / file.FILE)
    refused(main, ["bank", "--from", str(tmp_path), "-o", "bank"], says=f"{file.FILE}: not a file")


@pytest.mark.parametrize("precision", ["8bit", "4bit", "3bit", "2bit"])
@pytest.mark.parametrize(
    ("row", "scale", "message"),
    [
        (0, 1.0, "its first row, which stands for an adapter without rows, must be zeros"),
        (1, float("nan"), "its values must be finite, and the scales of its codes 0 or more"),
        (2, float("inf"), "its values must be finite"),
        (1, 3.3e38, "its values must be finite"),
        (1, -1.0, "the scales of its codes 0 or more"),
    ],
)
def test_scales_of_codes_that_are_out_of_bounds_are_refused(row, scale, message, precision, tmp_path):
    bank = AdapterBank(tiny("bert-wide"), precision=precision)
    bank.add("a", save_lora(tmp_path / "a", "bert-wide"))
    bank.save(tmp_path / "bank")
    stored = torch.tensor([scale], dtype=torch.bfloat16).view(torch.uint8)
    folder = damaged(tmp_path, lambda header, tensors: tensors[f"{QUERY}/values"][row, -2:].copy_(stored))
    refused(AdapterBank.load, tiny("bert-wide"), folder, says=f"{QUERY}: ")
    assert message in refused(AdapterBank.load, tiny("bert-wide"), folder)


@pytest.mark.parametrize(
    ("side", "value", "dtype"),
    [
        ("a", 1e300, torch.float32),
        ("b", 1e300, torch.float32),
        ("b", 1e5, torch.float16),
    ],
)
def test_bases_that_overflow_in_the_base_model_are_refused(side, value, dtype, saved, tmp_path):
    saved("diagonal cores on shared bases")
    base = tiny("bert").to(dtype)
    folder = damaged(
        tmp_path,
        lambda header, tensors: reshape(tensors, side, lambda old: torch.full_like(old, value, dtype=torch.float64)),
    )
    name = QUERY.split("/")[1]
    refused(AdapterBank.load, base, folder, says=f"{name}: its bases must be finite in {dtype_name(dtype)}")


def test_a_bank_of_another_version_is_refused_with_what_to_do(saved, tmp_path):
    saved("factors")
    tensors = load_file(tmp_path / "bank" / file.FILE)
    save_file(tensors, tmp_path / "bank" / file.FILE, metadata={"lsr_bank_8": "{}"})
    says = "bank.safetensors: lsr_bank_8, needed: lsr_bank_9; write the bank again from its adapters"
    refused(AdapterBank.load, tiny("bert"), tmp_path / "bank", says=says)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with two adapters in `users`, and their base model beside it."""
    tiny("bert").save_pretrained(str(tmp_path / "base"))
    for seed, name in enumerate(("anna", "ben")):
        save(tmp_path / "users" / name, seed=seed, base="./base", **FORMS["diagonal cores on shared bases"][1])
    write(tmp_path / "users/ben/task.json", {"labels": ["no", "maybe", "yes"]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", [("bank", "--from", "bank", "-o", "new"), ("serve", "bank")])
def test_a_command_says_in_a_line_that_a_bank_is_damaged(words, here):
    said(main, "bank", "--from", "users", "-o", "bank", "--base", "base")
    path = here / "bank" / file.FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(main, words, says="bank/bank.safetensors: damaged: ")
    assert not (here / "new").exists()


def test_the_adapters_of_a_folder_become_one_file(here):
    printed = said(main, "bank", "--from", "users", "-o", "bank", "--precision", "8bit", "--base", "base")
    size = (here / "bank" / file.FILE).stat().st_size
    assert printed == f"bank: 2 adapters in 8bit, {size:,} bytes, {size / 2:,.0f} per adapter\n"
    bank = AdapterBank.load(tiny("bert"), here / "bank")
    assert bank.task_infos == {"anna": {}, "ben": {"labels": ["no", "maybe", "yes"]}}
    actual = asked(bank, ["ben", "anna"])
    for row, name in enumerate(("ben", "anna")):
        expected = says("bert", here / "users" / name, 2, torch.float32)[row]
        torch.testing.assert_close(actual[row], expected, rtol=0.02, atol=0.02)
