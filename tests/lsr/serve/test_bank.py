"""Rows of one batch through the adapters of a bank, against PEFT with each adapter alone."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace as changed

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

from lsr import AdapterBank
from lsr.loading import updates
from lsr.loading.contents import Contents, read_contents
from lsr.loading.updates import Bases, Update
from lsr.serve.file import FILE
from lsr.serve.modules import BankHead
from lsr.tuner.files import WEIGHTS
from lsr_onnx.answers import Answer
from tests.kit import edit, refused, write
from tests.lsr.saved import FORMS, asked, save, save_lora, says
from tests.old_tiny.models import DECODER, tiny, tokens
from tests.old_tiny.subjects import BASES, SHARED
from tests.old_tiny.training import stir

NAMES = ["b", "__base__", "c", "a", "b"]
# Architectures that need more than those of FORMS: class, sizes, and the layers that a LoRA adapts.
MIXTRAL = DECODER | {"num_local_experts": 2, "num_key_value_heads": 1}
JAMBA = MIXTRAL | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
MAMBA = {"vocab_size": 64, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 4}
# As DeBERTa-v3, whose layers for queries and keys are also called with its positions, once for all texts.
DEBERTA = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "relative_attention": True,
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
}
OTHERS = {
    "deberta-v2": (AutoModelForSequenceClassification, DEBERTA, ["value_proj", "dense"]),
    "mixtral": (AutoModelForCausalLM, MIXTRAL, ["q_proj", "v_proj"]),
    # These read the weight and bias of dt_proj, which thus has no adapter.
    "mamba": (AutoModelForCausalLM, MAMBA, ["in_proj", "x_proj", "dt_proj"]),
    "jamba": (AutoModelForCausalLM, JAMBA, ["in_proj", "x_proj", "dt_proj", "q_proj"]),
}


@pytest.fixture
def bank(folders):
    return filled(folders("cores"))


def filled(folder, model="bert", dtype=torch.float32):
    bank = AdapterBank(tiny(model).to(dtype))
    for name in "abc":
        bank.add(name, folder / name)
    return bank


@pytest.mark.parametrize("form", FORMS)
def test_each_row_is_what_its_adapter_alone_says(form, folders):
    model, fields = FORMS[form]
    folder = folders(form)
    alone = {name: says(model, folder / name, len(NAMES)) for name in "abc"}
    alone["__base__"] = says(model, None, len(NAMES))
    expected = torch.stack([alone[name][row] for row, name in enumerate(NAMES)])
    assert (alone["a"] - alone["b"]).abs().max() > 1e-3
    bank = filled(folder, model, torch.float64)
    assert_close(asked(bank, NAMES), expected, rtol=1e-5, atol=1e-6)  # files hold float32
    assert {layer.bases is not None for layer in bank.layers.values()} == {fields.get("train") == "core"}


def test_t5_which_reads_the_dtype_of_a_weight_says_what_each_adapter_alone_says(tmp_path):
    sizes = {"d_model": 24, "d_kv": 12, "d_ff": 40, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, vocab_size=64, eos_token_id=2, decoder_start_token_id=0)
    base = T5ForSequenceClassification(config).double().eval()
    ids = tokens(2)["input_ids"]
    ids[:, -1] = config.eos_token_id
    bank = AdapterBank(copy.deepcopy(base))
    expected = []
    for row, name in enumerate("ab"):
        lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q", "wo"], modules_to_save=["classification_head"])
        alone = stir(get_peft_model(copy.deepcopy(base), lora), row).eval()
        alone.save_pretrained(tmp_path / name)
        bank.add(name, tmp_path / name)
        expected.append(alone(ids).logits[row])
    with torch.no_grad():
        actual = bank(input_ids=ids, adapter_names=["a", "b"]).logits
    assert_close(actual, torch.stack(expected), rtol=1e-5, atol=1e-6)  # files hold float32


@pytest.mark.parametrize("kind", OTHERS)
def test_of_other_architectures_each_row_is_what_peft_says_with_its_adapter_alone(kind, tmp_path):
    auto, sizes, targets = OTHERS[kind]
    torch.manual_seed(0)
    auto.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path / "base")
    task = "CAUSAL_LM" if auto is AutoModelForCausalLM else "SEQ_CLS"
    config = LoraConfig(task_type=task, r=2, target_modules=targets, init_lora_weights=False)
    bank = AdapterBank(auto.from_pretrained(tmp_path / "base"))
    for name in ("a", "b"):
        get_peft_model(auto.from_pretrained(tmp_path / "base"), config).save_pretrained(str(tmp_path / name))
        bank.add(name, tmp_path / name)
    ids = tokens(rows=3)["input_ids"]
    ids[:, -1] = DECODER["eos_token_id"]
    names = ["b", "__base__", "a"]
    with torch.no_grad():
        found = bank(input_ids=ids, adapter_names=names).logits
        for name, row, logits in zip(names, ids, found, strict=True):
            model = auto.from_pretrained(tmp_path / "base")
            if name != "__base__":
                model = PeftModel.from_pretrained(model, tmp_path / name)
            expected = model.eval()(input_ids=row[None]).logits[0]
            assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["query_proj", "key_proj"])
def test_layers_that_deberta_v3_also_calls_with_positions_are_refused(target, tmp_path):
    base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("deberta-v2", **DEBERTA))
    bank = AdapterBank(copy.deepcopy(base))
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=[target])).save_pretrained(tmp_path / "a")
    problem = refused(lambda: bank.add("a", tmp_path / "a"))
    name = f"deberta.encoder.layer.0.attention.self.{target}"
    reason = "so a bank cannot tell the rows of a batch apart"
    assert problem == f"{tmp_path / 'a'}: {name!r} is called with a first axis of 1 for 2 texts, {reason}"
    assert bank.names == []


def test_an_answer_has_the_labels_of_its_adapter_and_a_number_has_none(tmp_path):
    bank = AdapterBank(tiny("bert"))
    names = ("two", "five", "number")
    write(save_lora(tmp_path / "two", labels=2) / "task.json", {"labels": ["no", "yes"]})
    for name, labels in zip(names[1:], (5, 1), strict=True):
        save_lora(tmp_path / name, labels=labels)
    for name in names:
        bank.add(name, tmp_path / name)
    actual = asked(bank, names)
    two, five, number = bank.answers(actual, names)
    assert (two.labels, five.labels[4], number.labels) == (("no", "yes"), "LABEL_4", None)
    no, yes = actual[0, :2].softmax(0).tolist()
    assert two.probabilities == pytest.approx({"no": no, "yes": yes})


def test_a_label_applies_from_its_threshold_on():
    logits = torch.tensor([0.0, -0.1, 0.1])
    answer = Answer("a", ("even", "below", "above"), logits, thresholds=(0.5, 0.5, 0.5))
    assert answer.applying == ["even", "above"]


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_without_task_json_labels_apply_as_the_pipeline_of_transformers_has_it_for_the_base_model(labels, tmp_path):
    save_lora(tmp_path / "foreign", labels=labels)
    base = tiny("bert")
    base.config.problem_type = "multi_label_classification"
    bank = AdapterBank(base)
    bank.add("foreign", tmp_path / "foreign")
    names = ["foreign"] * 4
    shares = asked(bank, names)[:, :labels].sigmoid()
    for answer, own in zip(bank.answers(asked(bank, names), names), shares.tolist(), strict=True):
        expected = {f"LABEL_{number}": share for number, share in enumerate(own)}
        assert answer.probabilities == pytest.approx(expected)
        assert answer.applying == [label for label, share in expected.items() if share >= 0.5]
    bank.save(tmp_path / "bank")
    loaded = AdapterBank.load(tiny("bert"), tmp_path / "bank")
    assert loaded.answers(asked(loaded, names), names)[0].thresholds == (0.5,) * labels


def test_a_single_label_with_a_threshold_applies_or_not_and_is_not_a_number(tmp_path):
    write(save_lora(tmp_path / "one", labels=1) / "task.json", {"labels": ["toxic"], "thresholds": [0.25]})
    bank = AdapterBank(tiny("bert"))
    bank.add("one", tmp_path / "one")
    (answer,) = bank.answers(torch.tensor([[-1.0]]), ["one"])
    assert answer.probabilities == pytest.approx({"toxic": 1 / (1 + math.e)})
    assert (answer.applying, answer.labels) == (["toxic"], ("toxic",))


def test_an_adapter_takes_the_memory_of_its_own_directions(tmp_path):
    bank = AdapterBank(tiny("bert"))
    bank.add("large", save_lora(tmp_path / "large", r=8))
    directions = bank.layers["bert.encoder.layer.0.attention.self.query"].pools["directions"]
    assert len(directions.values) == 9  # one of zeros
    for number in range(8):
        bank.add(str(number), save_lora(tmp_path / str(number), r=1))
    assert len(directions.values) == 17  # not 8 more for each
    for number in range(8):
        bank.remove(str(number))
    assert len(directions.values) == 9
    bank.add("again", tmp_path / "large")
    assert len(directions.values) == 17
    assert torch.equal(asked(bank, ["again", "again"]), asked(bank, ["large", "large"]))


def test_beams_and_answers_of_a_prompt_share_its_adapter(folders):
    folder = folders("no head")
    bank = filled(folder, "gpt2-causal")
    ids = tokens(2)["input_ids"][:, :5]
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mixed = bank.generate(ids, adapter_names=["a", "b"], **options)
    for row, name in enumerate("ab"):
        alone = PeftModel.from_pretrained(tiny("gpt2-causal"), str(folder / name)).generate(ids, **options)
        assert torch.equal(mixed[2 * row : 2 * row + 2], alone[2 * row : 2 * row + 2])


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}],
)
def test_an_encoder_decoder_generates_with_each_adapter_what_peft_does(options, tmp_path):
    sizes = {"d_model": 24, "d_kv": 12, "d_ff": 40, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, vocab_size=64, eos_token_id=2, decoder_start_token_id=0, pad_token_id=0)
    base = T5ForConditionalGeneration(config).eval()
    ids = tokens(2)["input_ids"]
    bank = AdapterBank(copy.deepcopy(base))
    alone = {}
    for seed, name in enumerate("ab"):
        lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "v"])
        alone[name] = stir(get_peft_model(copy.deepcopy(base), lora), seed).eval()
        alone[name].save_pretrained(tmp_path / name)
        bank.add(name, tmp_path / name)
    mixed = bank.generate(ids, adapter_names=["a", "b"], max_new_tokens=4, **options)
    count = len(mixed) // 2
    for row, name in enumerate("ab"):
        expected = alone[name].generate(input_ids=ids, max_new_tokens=4, **options)
        own = slice(count * row, count * (row + 1))
        assert torch.equal(mixed[own], expected[own])


@pytest.mark.parametrize("place", ["model", "option", "argument"])
def test_beams_of_a_generation_config_share_the_adapter_of_their_prompt(place, folders):
    folder = folders("no head")
    bank = filled(folder, "gpt2-causal")
    ids = tokens(2)["input_ids"][:, :5]
    lengths = {"max_new_tokens": 4, "pad_token_id": 0}
    beams = {"num_beams": 3, "num_return_sequences": 2}
    config = GenerationConfig(**lengths, **beams)
    arguments = [ids]
    options = {}
    if place == "model":
        bank.model.generation_config.update(**beams)
        options = lengths
    elif place == "option":
        options = {"generation_config": config}
    else:
        arguments.append(config)
    mixed = bank.generate(*arguments, adapter_names=["a", "b"], **options)
    for row, name in enumerate("ab"):
        alone = PeftModel.from_pretrained(tiny("gpt2-causal"), str(folder / name)).generate(ids, **lengths, **beams)
        assert torch.equal(mixed[2 * row : 2 * row + 2], alone[2 * row : 2 * row + 2])


def test_while_one_thread_replaces_an_adapter_the_others_say_what_one_of_the_two_says(bank, folders):
    expected = {name: asked(bank, [name] * 4) for name in "abc"}

    def act(turn):
        if turn % 5 == 0:
            bank.add("b", folders("cores") / "bc"[turn // 5 % 2], replace=True)
            return True
        said = asked(bank, ["a", "b", "a", "b"])
        of_b = [torch.equal(said[1::2], expected[name][1::2]) for name in "bc"]
        return torch.equal(said[::2], expected["a"][::2]) and any(of_b)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(act, range(60)))


def test_adding_replacing_and_removing_compile_nothing_again(folders):
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
        for number in range(9):
            bank.add(f"more {number}", folder / "abc"[number % 3])
        more = asked(bank, ["more 0", "more 1", "more 2", "__base__"])
        for number in range(9):
            bank.remove(f"more {number}")
        assert torch.equal(asked(bank, ["new", "b", "c", "__base__"]), again)
    torch.compiler.reset()
    assert_close(more, asked(filled(folder), ["a", "b", "c", "__base__"]))
    assert_close(replaced[:3:2], first[:3:2])
    assert_close(replaced[1], asked(filled(folder), ["c"] * 4)[1])
    assert_close(again[:3], replaced[:3])


@pytest.mark.parametrize("method", ["LORA", "LSR"])
def test_what_is_written_says_what_the_bank_says(method, tmp_path):
    bank = AdapterBank(tiny("bert"))
    for name, kind, fields in (("a", save_lora, {"r": 2}), ("b", save, BASES)):
        kind(tmp_path / name, seed=1, labels=3, **fields)
        bank.add(name, tmp_path / name)
        bank.write(name, tmp_path / method / name, method=method)
        written = says("bert", tmp_path / method / name, 2, labels=3).float()
        assert_close(written, asked(bank, [name] * 2)[:, :3], rtol=1e-5, atol=1e-6)
    updates = read_contents(tmp_path / method / "b").updates.values()
    assert all((update.core is None) == (method == "LORA") for update in updates)


def test_a_name_that_is_not_there_or_taken_is_refused(bank, folders):
    bank.add("alpha", folders("cores") / "a")
    refused(asked, bank, ["a", "alhpa"], says="no adapter is named 'alhpa', of 4 in the bank; did you mean alpha?")
    refused(bank.remove, "x", says="no adapter is named 'x', of 4 in the bank")
    refused(bank.add, "a", folders("cores") / "b", says="an adapter named 'a' is in the bank")
    refused(bank.add, "__base__", folders("cores") / "b", says="must be non-empty, not '__base__', and have no path")
    refused(bank.add, "new", folders("cores") / "nothing", says="no such folder")
    refused(bank, **tokens(), says="adapter_names: needed: one name per row, 4, '__base__' for none, got 0")
    refused(asked, bank, ["a", "b", "c"], 4, says="one name per row, 4, '__base__' for none, got 3")
    refused(bank, adapter_names=["a"], says="needed: inputs of the model as tensors with one row per text")
    refused(bank.generate, adapter_names=["a"], says="needed: inputs of the model as tensors with one row per text")
    refused(AdapterBank, tiny("bert"), precision="5bit", says="precision must be one of float32")


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (save, {"bias": "all"}, "trains biases of the base model (bias='all'), which is not supported"),
        (save_lora, {"bias": "lora_only"}, "trains biases of the base model (bias='lora_only'), which is not"),
        (save_lora, {"base": "huge"}, "base_model_name_or_path is 'huge', but 'tiny' for the adapters in"),
        (save_lora, {"labels": 10_001}, "its head has 10,001 outputs; at most 10,000 are allowed"),
        (save_lora, {"model": "bert-padded"}, "the adapter is for a layer of 62 x 62, this one is 24 x 24"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(kind, fields, message, bank, tmp_path):
    before = asked(bank, ["a", "b", "c"])
    refused(bank.add, "new", kind(tmp_path / "new", **fields), says=message)
    assert torch.equal(asked(bank, ["a", "b", "c"]), before)
    assert bank.names == ["a", "b", "c"]


def test_a_head_without_rows_is_refused_and_replaces_nothing(bank, folders):
    before = asked(bank, ["a", "b", "c"])
    contents = read_contents(folders("cores") / "a")
    empty = {name: value[:0] for name, value in contents.heads.items()}
    for name, replace in (("new", False), ("a", True)):
        says = "its head has no outputs; at least one is needed"
        refused(bank.add, name, changed(contents, heads=empty), replace=replace, says=says)
    assert torch.equal(asked(bank, ["a", "b", "c"]), before)


def test_a_bank_has_bases_of_its_own_once_for_all_layers_that_share_them(tmp_path):
    save(tmp_path / "a", **SHARED)
    bank = AdapterBank(tiny("bert"))
    bank.add("a", tmp_path / "a")
    contents = bank.contents("a")
    other = AdapterBank(tiny("bert"))
    other.add("a", contents)
    expected = asked(other, ["a", "__base__"])
    layers = list(other.layers.values())
    assert len({layer.bases for layer in layers}) == len({update.bases for update in contents.updates.values()}) == 2
    for update in contents.updates.values():
        update.bases.a.zero_()
    assert torch.equal(asked(other, ["a", "__base__"]), expected)
    read = read_contents(tmp_path / "a")
    assert all(torch.equal(other.layers[name].bases.a, update.bases.a) for name, update in read.updates.items())


@pytest.mark.parametrize("precision", ["float32", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_bank_is_converted_with_its_base_model_and_saved_as_before(dtype, precision, tmp_path):
    save(tmp_path / "core", "bert-wide", **BASES)
    save_lora(tmp_path / "lora", "bert-wide", seed=2)
    bank = AdapterBank(tiny("bert-wide"), precision=precision)
    for name in ("core", "lora"):
        bank.add(name, tmp_path / name)
    bank.save(tmp_path / "before")
    size = bank.nbytes
    bank.to(dtype)
    names = ["core", "lora", "__base__"]
    rounding = 1e-5 if dtype is torch.float64 else 0.05
    for row, name in enumerate(names):
        written = None
        if name != "__base__":
            AdapterBank.load(tiny("bert-wide"), tmp_path / "before").write(name, tmp_path / "plain" / name)
            written = tmp_path / "plain" / name
        expected = says("bert-wide", written, len(names))[row]
        answer = asked(bank, names)[row]
        assert answer.dtype is dtype
        assert_close(answer.double(), expected, rtol=rounding, atol=rounding)
    assert bank.nbytes == size
    bank.save(tmp_path / "after")
    files = [tmp_path / folder / FILE for folder in ("before", "after")]
    assert files[0].read_bytes() == files[1].read_bytes()
    bank.add("more", tmp_path / "lora")
    answers = asked(bank, ["lora", "more"], 2)
    more = asked(bank, ["more", "lora"], 2)
    assert torch.equal(answers, more)


def test_factors_of_wider_layers_are_refused_before_a_and_b_are_computed_of_them(bank, tmp_path, monkeypatch):
    config = save(tmp_path / "new") / "adapter_config.json"
    edit(config, lambda fields: fields["resolved"]["usual"].update(out_features=10**6, out_shape=[1000, 1000]))
    factors = load_file(tmp_path / "new" / WEIGHTS)
    wide = {key: value[:, :1].expand(-1, 1000, -1) for key, value in factors.items() if "factor_B" in key}
    edit(tmp_path / "new" / WEIGHTS, **{key: value.contiguous() for key, value in wide.items()})
    monkeypatch.setattr(updates, "build_matrices", None)
    refused(bank.add, "new", tmp_path / "new", says="the adapter is for a layer of 1000000 x 24, this one is 24 x 24")


def test_a_layer_of_a_head_and_the_whole_head_are_refused_in_both_orders(tmp_path):
    save_lora(tmp_path / "whole")
    save_lora(tmp_path / "inside", task_type=None, target_modules=["query", "classifier"])
    for first, second in (("whole", "inside"), ("inside", "whole")):
        bank = AdapterBank(tiny("bert"))
        bank.add(first, tmp_path / first)
        before = asked(bank, [first] * 4)
        message = refused(bank.add, second, tmp_path / second)
        assert "'classifier' is adapted or trained, and 'classifier' trained in full" in message
        assert torch.equal(asked(bank, [first] * 4), before)


@pytest.mark.parametrize(
    "module", ["dropout", "intermediate_act_fn", "position_embeddings", "LayerNorm", "attention.output", "pooler"]
)
def test_what_is_no_head_is_refused_so_that_no_row_meets_those_of_others(module, bank, tmp_path):
    before = asked(bank, NAMES)
    has_weights = module not in ("dropout", "intermediate_act_fn")  # PEFT itself would not save the others
    folder = save_lora(tmp_path / "new", modules_to_save=["classifier", *[module] * has_weights])
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"classifier"', f'"classifier", "{module}"'))
    message = refused(bank.add, "new", folder)
    assert f"{module}' in full; a bank supports only heads and adapted linear layers; the heads of this" in message
    assert torch.equal(asked(bank, NAMES), before)
    assert bank.names == ["a", "b", "c"]
    bank.heads[module] = BankHead(nn.Dropout(), bank.shared)
    bank.save(tmp_path / "bank")
    says = f"trains '{module}' in full; a bank supports only heads"
    refused(AdapterBank.load, tiny("bert"), tmp_path / "bank", says=says)


@pytest.mark.parametrize("layer", ["lora_B", "classifier"])
def test_weights_that_overflow_are_refused_and_replace_nothing(layer, bank, tmp_path):
    before = asked(bank, NAMES)
    folder = save_lora(tmp_path / "new")
    says = "its outputs are not finite: its weights overflow"
    tensors = load_file(folder / WEIGHTS)
    edit(folder / WEIGHTS, **{key: 3e38 * value.sign() for key, value in tensors.items() if layer in key})
    for name, replace in (("new", False), ("a", True)):
        refused(bank.add, name, folder, replace=replace, says=says)
    assert torch.equal(asked(bank, NAMES), before)


@pytest.mark.parametrize("core", ["full", "diagonal"])
def test_rows_without_a_core_are_those_of_the_base_model_though_its_bases_overflow_for_them(core):
    base = tiny("bert-wide").half()
    layer = "bert.encoder.layer.0.attention.self.value"
    inputs = []
    hook = base.get_submodule(layer).register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        expected = base(**tokens(3)).logits
    hook.remove()
    entries = inputs[0][2, 5].float()  # a token of the last text
    largest = torch.finfo(torch.float16).max
    a = 1.2 * largest / entries.abs().sum() * entries.sign().repeat(2, 1)
    assert (a @ entries > largest).all()
    bases = Bases(a=a, b=torch.ones(len(entries), 2))
    own = 1e-7 * torch.ones(2)
    bank = AdapterBank(base)
    update = Update(bases, 1, own.diag() if core == "full" else own)
    bank.add("core", Contents("core", {}, {layer: update}, {}, (), None))
    assert bank.layers[layer].bases is not None
    logits = asked(bank, ["core", "__base__", "__base__"])
    assert torch.equal(logits[1:], expected[1:])
    assert logits[0].isfinite().all()


def test_a_head_alone_answers_as_peft_does_and_is_no_lora(tmp_path):
    config = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=DUMMY_TARGET_MODULES,
        modules_to_save=["classifier"],
    )
    model = stir(get_peft_model(tiny("bert"), config), seed=4).eval()
    model.save_pretrained(str(tmp_path / "head"), save_embedding_layers=False)
    with torch.no_grad():
        expected = model(**tokens(2)).logits
    bank = AdapterBank(tiny("bert"))
    bank.add("head", tmp_path / "head")
    assert_close(asked(bank, ["head", "head"]), expected)
    refused(bank.write, "head", tmp_path / "out", says="head: is a head alone, which adapts no layer")
    assert not (tmp_path / "out").exists()
