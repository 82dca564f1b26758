"""What users of PEFT expect of a method, on tiny models of several architectures.

References: the plain model, its dense merged weights, each adapter alone, and PEFT's LoRA.
"""

import re
import warnings
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub import ModelCard
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig, initialize_from_data, parameter_groups
from tests import reference, tiny
from tests.helpers import digests, edit
from tests.tiny import logits

SUMS = {"rank_shape": (2, 2), "separation_rank": 3}
DENSE = {"rank_shape": (4,), "separation_rank": None}
CORE = DENSE | {"train": "core"}
SHARED = CORE | {"share": "layers", "init_weights": "principal"}
FIRST = {"layers_to_transform": 0, "target_modules": ["c_attn"]}
LINEAR = {"target_modules": "all-linear"}
SECOND = {"rank_shape": (2, 1), "separation_rank": 2, "alpha": 5, "seed": 1}  # of a second adapter
HEADLESS = {"task_type": None}  # no module is trained whole
FILE = "adapter_model.safetensors"


class Case(NamedTuple):
    """An architecture and fields of the configurations of a first and a second adapter; by default, PEFT's targets."""

    architecture: str
    fields: dict[str, Any] = SUMS
    second: dict[str, Any] = SECOND
    causal: bool = False

    def config(self, **fields):
        """Return a configuration of the first adapter, or with its fields of another one."""
        usual = {"task_type": "CAUSAL_LM" if self.causal else "SEQ_CLS", "alpha": 7, "seed": 0}
        return LsrConfig(**usual | SUMS | self.fields | fields)

    def base(self):
        """Return the base model."""
        return tiny.base_model(self.architecture, causal=self.causal)

    def model(self, seed=0, **fields):
        """Return the model with a perturbed adapter; without a seed, with a fresh one."""
        return tiny.adapted(self.architecture, self.config(**fields), causal=self.causal, seed=seed)

    def pair(self, **fields):
        """Return the model with two perturbed adapters, the first one active."""
        model = self.model(**fields)
        model.add_adapter("second", self.config(**self.second | fields))
        model.set_adapter("second")
        tiny.stir(model, seed=1)
        model.set_adapter("default")
        return model.eval()

    def load(self, folder, **options):
        """Return the base model with a saved adapter."""
        return PeftModel.from_pretrained(self.base(), str(folder), **options).eval()


BERT = Case("bert")
CASES = {  # each option meets most of the others
    "sums": BERT,
    "sums, all linear layers": Case("t5", LINEAR | {"rank_shape": (3, 2)}),
    "no seed, biases of the adapted": Case("bert", {"seed": None, "bias": "lsr_only"}),
    "dense, principal, transposed": Case("gpt2", DENSE | LINEAR | {"init_weights": "principal"}),
    "core, all biases": Case("roberta", CORE | {"bias": "all"}),
    "diagonal core, more saved whole": Case("bert", CORE | {"core": "diagonal", "modules_to_save": ["pooler"]}),
    "shared": Case("distilbert", SHARED),
    "shared, diagonal, transposed": Case("gpt2", SHARED | {"train": "all", "core": "diagonal"}),
    "shared in a language model": Case("llama", SHARED | {"train": "all"}, causal=True),
    "one layer of a language model": Case("gpt2", FIRST, causal=True),
}
FEW = {name: CASES[name] for name in ("sums", "dense, principal, transposed", "shared in a language model")}
PLAIN = {name: case for name, case in CASES.items() if "bias" not in case.fields}
PAIRS = {
    "sums": BERT,
    "dense of the weight beside a core": Case("gpt2", DENSE | {"init_weights": "principal"}, CORE),
    "shared ones": Case("distilbert", SHARED, SHARED | {"train": "all", "rank_shape": (2,)}),
    "one beside a shared one": Case("llama", {"init_weights": False}, SHARED, causal=True),
    "one on other layers": Case("qwen2", {}, SECOND | {"target_modules": ["o_proj"]}),
}


def parametrize(cases):
    """Run a test for cases by name."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


def trainable(model):
    """Return the trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def loss_of(model, causal=False):
    """Return the loss for fixed labels."""
    batch = tiny.batch()
    labels = batch["input_ids"] if causal else torch.arange(4) % tiny.LABELS
    return model(**batch, labels=labels).loss


def train(model, steps=2, causal=False):
    """Train for a few steps; return the losses."""
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = loss_of(model, causal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def assert_equal(tensors, expected, but=()):
    """Check that tensors by name are the expected ones to the bit, apart from names that contain one of `but`."""
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        if not any(part in name for part in but):
            assert torch.equal(tensors[name], value), name


def copied_state(model):
    """Return copies of a model's tensors by name."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def outputs(model):
    """Return a model's logits; logits are returned as they are."""
    return model if isinstance(model, torch.Tensor) else logits(model)


def assert_same(actual, expected):
    """Check that models compute the same to the bit."""
    assert torch.equal(outputs(actual), outputs(expected))


def assert_near(actual, expected, tolerance=1e-5):
    """Check that models compute the same up to rounding."""
    assert_close(outputs(actual), outputs(expected), atol=tolerance, rtol=tolerance)


def assert_far(actual, expected):
    """Check that an adapter has an effect: otherwise, equal outputs would prove nothing."""
    assert not torch.allclose(outputs(actual), outputs(expected), atol=1e-3)


# One adapter: what trains, what is saved, what comes back.


@parametrize(CASES)
def test_a_fresh_adapter_changes_no_bit(case):
    assert_same(case.model(seed=None), case.base())


def test_without_a_seed_factors_are_drawn_by_torchs_generator():
    drawn = []
    with torch.random.fork_rng():
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            model = get_peft_model(BERT.base(), BERT.config(seed=None))
            drawn.append([parameter for name, parameter in model.named_parameters() if name.endswith("_A1")])
    first, again, other = drawn
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


BIASES = {None: "no bias", "all": "bias", "lsr_only": "base_layer.bias"}


@parametrize(CASES)
def test_factors_cores_heads_and_chosen_biases_train_and_are_the_file(case, tmp_path):
    model = case.model(seed=None)
    bias = BIASES[case.fields.get("bias")]
    for name, parameter in model.named_parameters():
        is_bias = name.endswith(bias) and "original_module" not in name  # a head that was replaced is out of use
        is_own = ".lsr_adapters." in name or ".modules_to_save." in name
        assert parameter.requires_grad == (is_own or is_bias), name
    grouped = [parameter for group in parameter_groups(model) for parameter in group["params"]]
    assert len(grouped) == len(trainable(model))
    assert set(grouped) == set(trainable(model).values())
    before = copied_state(model)
    train(model, causal=case.causal)
    assert_equal(model.state_dict(), before, but=trainable(model))
    still = [name for name, value in trainable(model).items() if torch.equal(value, before[name])]
    assert all(name.endswith("key.bias") for name in still)  # unseen by the softmax
    model.save_pretrained(str(tmp_path))
    expected = {}
    for name, value in model.state_dict().items():
        if ".lsr_adapters." in name or name in trainable(model):  # frozen bases, too
            short = name.replace(".modules_to_save.default", "")
            expected[short.replace(".lsr_adapters.default", ".lsr_adapters")] = value
    assert_equal(load_file(tmp_path / FILE), expected)


@parametrize(CASES)
def test_a_saved_adapter_comes_back_bit_for_bit_and_is_saved_as_the_same_bytes(case, tmp_path):
    model = case.model()
    expected = logits(model)
    assert_far(expected, case.base())
    model.save_pretrained(str(tmp_path))
    first = digests(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", FILE, "README.md"}
    for is_lean in (False, True):
        loaded = case.load(tmp_path, low_cpu_mem_usage=is_lean)
        assert_same(loaded, expected)
        loaded.save_pretrained(str(tmp_path))
        assert digests(tmp_path) == first


@parametrize(PLAIN)
def test_the_file_alone_states_the_update(case, tmp_path):
    model = case.model()
    model.save_pretrained(str(tmp_path))
    plain = case.base()
    for layer, update in reference.dense_updates(tmp_path, plain).items():
        weight = plain.get_submodule(layer).weight
        weight.data = (weight.data.double() + reference.as_stored(plain, layer, update)).float()
    reference.load_head(plain, tmp_path)
    assert_near(model, plain)


ALPHAS = {"0.attention.self.query": 3}
RANKS = {"query": (1, 2), r"layer\.1\..*value": (2, 1)}
CHOSEN = {"0.query": (1, 2, 3), "0.value": (2, 2, 7), "1.query": (1, 2, 7), "1.value": (2, 1, 7)}  # ranks and alpha


def test_patterns_choose_rank_and_alpha_of_single_layers_also_when_loaded(tmp_path):
    targets = r".*\.(query|value)"
    case = Case("bert", {"target_modules": targets, "rank_pattern": RANKS, "alpha_pattern": ALPHAS})
    model = case.model()
    model.save_pretrained(str(tmp_path))
    loaded = case.load(tmp_path)
    assert_same(loaded, model)
    chosen = {}
    for name, factors in reference.factors_of(tmp_path).items():
        a, b, _ = reference.sides(factors, 24, 24)
        update = loaded.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        ranks = [factors[key].shape[1] for key in ("factor_A1", "factor_A2")]
        alpha = len(a) * update.norm() / (b @ a).norm()
        short = re.sub(r".*layer\.(\d).*\.", r"\1.", name)
        chosen[short] = (*ranks, round(float(alpha), 4))
    assert chosen == CHOSEN


RATES = {"factor_A1": 0.004, "factor_A2": 0.002, "factor_B1": 0.004, "factor_B2": 0.002}


def test_kronecker_factors_that_are_small_learn_more_slowly():
    model = BERT.model(separation_rank=4)
    names = {parameter: name.rpartition(".")[2] for name, parameter in model.named_parameters()}
    rates = {}
    for group in parameter_groups(model, 0.004, 0.001):
        rates |= {names[parameter]: group["lr"] for parameter in group["params"]}
    assert rates == RATES | {"weight": 0.001, "bias": 0.001}


@parametrize(CASES)
def test_on_a_bfloat16_base_the_adapter_is_in_float32_trains_and_comes_back(case, tmp_path):
    model = get_peft_model(case.base().bfloat16(), case.config()).eval()
    assert {value.dtype for name, value in model.named_parameters() if ".lsr_" in name} == {torch.float32}
    assert_same(model, case.base().bfloat16())
    train(model, causal=case.causal)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(case.base().bfloat16(), str(tmp_path))
    assert_same(loaded, model)


def test_on_request_the_adapter_is_in_the_dtype_of_the_base():
    model = get_peft_model(BERT.base().bfloat16(), BERT.config(), autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.bfloat16}
    train(model)


@parametrize(FEW)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(case, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = case.model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        loss_of(model, case.causal).backward()
        gradients.append([parameter.grad for parameter in trainable(model).values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_close(checkpointed, plain)


def test_compiled_it_is_one_graph_also_for_other_weights():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    base = tiny.base_model("bert", num_hidden_layers=1)
    model = tiny.stir(get_peft_model(base, BERT.config()).eval())
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for seed in (1, 2):
        tiny.stir(model, seed)
        assert_near(compiled, model)
    assert len(graphs) == 1
    gradients = []
    for run in (compiled, model):
        model.zero_grad()
        loss_of(run).backward()
        gradients.append([parameter.grad for parameter in trainable(model).values()])
    for ours, plain in zip(*gradients, strict=True):
        assert_near(ours, plain)
    torch.compiler.reset()


def quantized(kind):
    """Return a small BERT whose queries and values have quantized weights."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    make = getattr(bitsandbytes.nn, kind)
    model = tiny.base_model("bert", hidden_size=64)  # on some CPUs, 4-bit layers need a width above 24
    for name, module in list(model.named_modules()):
        if name.endswith((".query", ".value")):
            layer = make(64, 64)
            layer.load_state_dict(module.state_dict())
            model.set_submodule(name, layer.to("cpu"))  # moving it quantizes it
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["Linear8bitLt", "Linear4bit"])
def test_on_quantized_layers_a_fresh_adapter_changes_no_bit_trains_and_comes_back(kind, tmp_path):
    model = get_peft_model(quantized(kind), BERT.config()).eval()
    assert_same(model, quantized(kind))
    losses = train(model, steps=25)
    assert losses[-1] < 0.9 * losses[0]
    with model.disable_adapter():
        assert_same(model, quantized(kind))
    model.save_pretrained(str(tmp_path))
    assert_same(PeftModel.from_pretrained(quantized(kind), str(tmp_path)), model)


# Merging.


@parametrize(CASES)
def test_a_merged_model_computes_the_same_and_unmerging_restores_every_bit(case):
    model = case.model()
    before = copied_state(model)
    expected = logits(model)
    model.merge_adapter()
    assert_near(model, expected)
    model.unmerge_adapter()
    assert_equal(model.state_dict(), before)
    assert_same(model, expected)


@parametrize(CASES)
def test_merged_and_unloaded_it_is_a_plain_model_that_is_saved_as_one(case, tmp_path):
    model = case.model()
    expected = logits(model)
    plain = model.merge_and_unload(progressbar=True, safe_merge=True)
    assert type(plain) is type(case.base())
    assert plain.state_dict().keys() == case.base().state_dict().keys()
    assert_near(plain, expected)
    plain.save_pretrained(str(tmp_path))
    assert_same(type(plain).from_pretrained(str(tmp_path)), plain)


def test_unloaded_after_a_merge_the_base_model_is_back_with_the_trained_head():
    model = Case("roberta").model()
    model.merge_adapter()
    assert_equal(model.unload().state_dict(), Case("roberta").base().state_dict(), but=["classifier"])


@pytest.mark.parametrize("act", ["merge_adapter", "merge_and_unload"])
def test_a_merge_that_is_rejected_leaves_all_as_it_was(act):
    model = BERT.model()
    merge = getattr(model, act)
    with pytest.raises(ValueError, match="typo"):
        merge(adapter_names=["typo"])
    *_, last = (parameter for name, parameter in model.named_parameters() if "lsr_" in name)
    last.data.fill_(torch.inf)
    before = copied_state(model)
    with pytest.raises(ValueError, match="NaN"):
        merge(safe_merge=True)
    assert_equal(model.state_dict(), before)


def test_merging_into_a_tied_head_leaves_the_embeddings_and_unmerging_ties_it_again():
    model = Case("gpt2", {"target_modules": ["lm_head"]}, causal=True).model()
    expected = logits(model)
    embeddings = model.get_input_embeddings().weight.detach().clone()
    model.merge_adapter()
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert_near(model, expected)
    model.unmerge_adapter()
    head = model.get_base_model().lm_head
    assert head.get_base_layer().weight is model.get_input_embeddings().weight


# Several adapters.


@parametrize(PAIRS)
def test_while_disabled_every_adapter_leaves_the_base_to_the_bit(case):
    model = case.pair()
    for name in ("default", "second"):
        model.set_adapter(name)
        before = logits(model)
        with model.disable_adapter():
            assert_same(model, case.base())
        model.merge_adapter()
        with model.disable_adapter():
            assert_same(model, case.base())
        assert_same(model, before)


@parametrize(PAIRS)
def test_adapters_are_added_activated_and_deleted_without_an_effect_on_others(case):
    model = case.model()
    first = logits(model)
    model.add_adapter("second", case.config(**case.second))
    assert_same(model, first)
    assert not any("second" in name for name in trainable(model))
    model.set_adapter("second")
    assert not any(".default" in name for name in trainable(model))
    assert_far(tiny.stir(model, seed=1), first)
    model.set_adapter("default")
    assert_same(model, first)
    model.delete_adapter("second")
    assert_same(model, first)
    assert not any("second" in name for name in model.state_dict())


@parametrize(PAIRS)
@pytest.mark.parametrize("is_lean", [False, True])
def test_adapters_that_are_loaded_beside_each_other_compute_what_each_does_alone(case, is_lean, tmp_path):
    model = case.pair()
    model.save_pretrained(str(tmp_path))
    loaded = case.load(tmp_path)
    loaded.load_adapter(str(tmp_path / "second"), "second", low_cpu_mem_usage=is_lean)
    for name, folder in (("default", tmp_path), ("second", tmp_path / "second")):
        model.set_adapter(name)
        loaded.set_adapter(name)
        assert_same(loaded, model)
        assert_same(loaded, case.load(folder))


def test_only_selected_adapters_are_saved(tmp_path):
    BERT.pair().save_pretrained(str(tmp_path), selected_adapters=["second"])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["second"]
    assert not (tmp_path / FILE).exists()


@parametrize(PAIRS)
def test_active_adapters_add_up_and_are_merged_together_or_one_of_them(case):
    model = case.pair(**HEADLESS)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    plain = case.base()
    for name in model.base_model.targeted_module_names:
        layer = model.get_submodule(f"base_model.model.{name}")
        for adapter in layer.lsr_adapters:
            plain.get_submodule(name).weight.data += layer.get_delta_weight(adapter)
    assert_near(both, logits(plain))
    model.merge_adapter()
    assert_near(model, both)
    model.unmerge_adapter()
    assert_near(model, both)
    model.set_adapter("second")
    expected = logits(model)
    model.set_adapter("default")
    assert_near(model.merge_and_unload(adapter_names=["second"]), expected)


NAMES = ["second", "__base__", "default", "second"]  # of the rows


@parametrize(PAIRS)
def test_rows_of_one_batch_are_those_of_each_adapter_alone(case, tmp_path):
    model = case.pair(**HEADLESS)
    model.save_pretrained(str(tmp_path))
    outputs = {
        "__base__": logits(case.base()),
        "default": logits(case.load(tmp_path)),
        "second": logits(case.load(tmp_path / "second")),
    }
    expected = torch.stack([outputs[name][row] for row, name in enumerate(NAMES)])
    for active in ("default", "second"):
        model.set_adapter(active)
        mixed = logits(model, adapter_names=NAMES)
        assert_close(mixed, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
        assert_same(model, outputs[active])


def test_heads_that_were_trained_whole_go_with_the_adapter_of_the_row():
    model = BERT.pair()
    mixed = logits(model, adapter_names=["__base__", "__base__", "default", "second"])
    assert_close(mixed[2], logits(model)[2], atol=1e-6, rtol=1e-6)
    assert_close(mixed[:2], logits(BERT.base())[:2], atol=1e-6, rtol=1e-6)


def test_beams_share_the_adapter_of_their_prompt():
    model = Case("gpt2", causal=True).pair()
    batch = tiny.batch(2, length=5)
    batch["attention_mask"][:] = 1
    names = ["second", "default"]
    generate = partial(model.generate, **batch, max_new_tokens=4, pad_token_id=0, num_beams=3)
    mixed = generate(adapter_names=names)
    for row, name in enumerate(names):
        model.set_adapter(name)
        assert torch.equal(mixed[row], generate()[row])


WRONG_ROWS = {
    "secnod": (["default", "secnod", "default", "default"], lambda model: model),
    "one name per row": ([], lambda model: model),
    "eval": (NAMES, lambda model: model.train()),
    "unmerge": (NAMES, lambda model: model.merge_adapter()),
}


@pytest.mark.parametrize("key", WRONG_ROWS)
def test_names_of_rows_that_cannot_be_followed_are_rejected_and_the_model_stays_usable(key):
    model = BERT.pair()
    before = logits(model)
    names, prepare = WRONG_ROWS[key]
    prepare(model)
    with pytest.raises(ValueError, match=key):
        model(**tiny.batch(), adapter_names=names)
    if key == "unmerge":
        model.unmerge_adapter()
    assert_same(model, before)


# Trainable parameters with several adapters.


class Small(nn.Module):
    """Three layers, one of them a head."""

    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(12, 12)
        self.lin1 = nn.Linear(12, 12)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.lin1(self.lin0(x).relu()).relu())


FORMS = {
    "sums": {"separation_rank": 1},
    "core": CORE,
    "all, shared": SHARED | {"train": "all"},
    "with a head": DENSE | {"modules_to_save": ["head"]},
    "with biases": DENSE | {"bias": "all"},
    "with biases of layers": DENSE | {"bias": "lsr_only"},
}


def like_lora(fields):
    """Return the configuration of a LoRA that trains what an LSR adapter with these fields does."""
    bias = fields.get("bias", "none").replace("lsr", "lora")
    return LoraConfig(target_modules=fields["target_modules"], bias=bias, modules_to_save=fields.get("modules_to_save"))


def flags(model):
    """Return whether parameters of modules and adapters require gradients, under names that both methods share."""
    found = {}
    for name, parameter in model.named_parameters():
        name = re.sub(r"lora_[AB]\.(\w+)\.weight|lsr_adapters\.(\w+)\.\w+", r"ADAPTER.\1\2", name)
        found.setdefault(name, set()).add(parameter.requires_grad)
    return found


def history(config, fields, layers, trains, folder):
    """Yield the flags of a model with several adapters after each step of its life; `trains` is for the first two."""
    first = fields | {"target_modules": ["lin0"]}
    others = fields | {"target_modules": layers, "bias": "none"}  # PEFT rejects two adapters with biases
    get_peft_model(Small(), config(first)).save_pretrained(folder / "first")
    get_peft_model(Small(), config(others)).save_pretrained(folder / "second")
    model = PeftModel.from_pretrained(Small(), folder / "first", is_trainable=trains[0])
    yield flags(model)
    model.load_adapter(folder / "second", "second", is_trainable=trains[1])
    yield flags(model)
    model.set_adapter("second")
    yield flags(model)
    model.add_adapter("third", config(others))
    yield flags(model)
    model.base_model.set_adapter("third", inference_mode=True)
    yield flags(model)
    model.set_requires_grad("default")
    yield flags(model)
    if "modules_to_save" not in fields:  # PEFT rejects several active heads
        model.base_model.set_adapter(["default", "second"])
        yield flags(model)
    with model.disable_adapter():
        yield flags(model)
    model.merge_adapter()
    model.unmerge_adapter()
    yield flags(model)
    model.set_adapter("second")
    model.delete_adapter("default")
    yield flags(model)
    model.delete_adapter("second")
    yield flags(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layers", [["lin0"], ["lin1"], ["lin0", "lin1"]], ids="-".join)
@pytest.mark.parametrize("trains", list(product([True, False], repeat=2)), ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_parameters_train_as_with_loras(form, trains, layers, tmp_path):
    ours = history(lambda fields: LsrConfig(**fields), FORMS[form], layers, trains, tmp_path / "lsr")
    theirs = history(like_lora, FORMS[form], layers, trains, tmp_path / "lora")
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual == expected


def test_only_biases_of_layers_that_the_adapter_adapts_train():
    config = LsrConfig(target_modules=["lin0"], bias="lsr_only", **DENSE)
    model = get_peft_model(Small(), config)
    model.add_adapter("second", LsrConfig(target_modules=["lin1"], **DENSE))
    for name in ("default", "second", "default"):
        model.set_adapter(name)
        biases = [name for name in trainable(model) if name.endswith("bias")]
        assert biases == ["base_model.model.lin0.base_layer.bias"]


# Configurations that are given, and models that share one.


@pytest.fixture
def trained_once(tmp_path):
    """A configuration of an adapter that a model has been trained and saved with, and the folder."""
    config = BERT.config()
    get_peft_model(BERT.base(), config).save_pretrained(str(tmp_path))
    return config, tmp_path


@pytest.mark.xfail(reason="a configuration that another model has is copied", strict=True)
def test_a_given_configuration_stays_the_object_of_the_loaded_adapter(trained_once):
    config, folder = trained_once
    loaded = BERT.load(folder, config=config)
    assert loaded.peft_config["default"] is config


@pytest.mark.parametrize("is_trainable", [True, False])
def test_a_given_configuration_trains_what_one_of_the_file_does(trained_once, is_trainable):
    config, folder = trained_once
    loaded = BERT.load(folder, config=config, is_trainable=is_trainable)
    assert flags(loaded) == flags(BERT.load(folder, is_trainable=is_trainable))
    assert bool(trainable(loaded)) == is_trainable
    assert loaded.peft_config["default"].inference_mode != is_trainable


def test_models_of_other_widths_that_share_a_configuration_are_each_saved_with_their_own_shapes(tmp_path):
    config = LsrConfig(target_modules=["0"], separation_rank=2)
    models = {width: get_peft_model(nn.Sequential(nn.Linear(width, width)), config) for width in (12, 20)}
    for width, model in models.items():
        model.save_pretrained(str(tmp_path))
        loaded = PeftModel.from_pretrained(nn.Sequential(nn.Linear(width, width)), str(tmp_path))
        assert_equal(get_peft_model_state_dict(loaded), get_peft_model_state_dict(model))


def test_a_second_model_of_a_configuration_is_the_first_again():
    config = BERT.config()
    first, second = (get_peft_model(BERT.base(), config) for _ in range(2))
    assert_equal(first.state_dict(), second.state_dict())


def test_a_model_with_adapters_is_not_wrapped_again():
    with pytest.raises(ValueError, match="add_adapter"):
        get_peft_model(BERT.model(), BERT.config())


def test_training_is_warned_once_per_model_of_examples_that_its_start_lacks():
    fields = DENSE | {"init_weights": "gradient", "target_modules": ["query"]}
    config = BERT.config(**fields)
    batch = tiny.batch() | {"labels": torch.arange(4) % tiny.LABELS}
    first, second, third = (get_peft_model(BERT.base(), config).train() for _ in range(3))
    initialize_from_data(first, [batch], head_steps=1)
    set_peft_model_state_dict(third, get_peft_model_state_dict(first))
    deleted = BERT.model().train()
    deleted.add_adapter("other", config)
    deleted.delete_adapter("other")
    with pytest.warns(UserWarning, match="examples"):
        second(**batch)
    with warnings.catch_warnings(action="error"):
        for model in (first, second, third, deleted):
            model(**batch)


# Loading by other ways, and layers that are chosen.


def test_an_injected_adapter_has_an_effect_and_its_state_can_be_set():
    model, other = (
        inject_adapter_in_model(BERT.config(**HEADLESS), BERT.base(), low_cpu_mem_usage=is_lean)
        for is_lean in (False, True)
    )
    assert_far(tiny.stir(model), BERT.base())
    set_peft_model_state_dict(other, get_peft_model_state_dict(model), low_cpu_mem_usage=True)
    assert_same(other, model)


@parametrize(FEW)
def test_transformers_loads_an_adapter_by_itself(case, tmp_path):
    model = case.model()
    model.save_pretrained(str(tmp_path))
    plain = case.base()
    plain.load_adapter(str(tmp_path))
    assert_same(plain, model)


def adapted_layers(model):
    """Return the names of adapted layers."""
    return {name.removesuffix(".lsr_adapters") for name, _ in model.named_modules() if name.endswith(".lsr_adapters")}


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_all_linear_layers_of_some_indices_are_those_alone_also_when_loaded(architecture, tmp_path):
    case = Case(architecture, DENSE | LINEAR)
    some = case.model(layers_to_transform=[1])
    expected = {name for name in adapted_layers(case.model()) if ".1." in name}
    assert adapted_layers(some) == expected
    some.save_pretrained(str(tmp_path))
    assert adapted_layers(case.load(tmp_path)) == expected


SHARING = {name: case for name, case in CASES.items() if name.startswith("shared")}


@parametrize(SHARING)
def test_layers_of_a_kind_share_factors_which_the_first_one_has_in_the_file(case, tmp_path):
    model = case.model()
    model.save_pretrained(str(tmp_path))
    held = {}
    for name in load_file(tmp_path / FILE):
        layer, _, part = name.partition(".lsr_adapters.")
        held.setdefault(layer, []).append(part)
    for layer in adapted_layers(model):
        factors = ["factor_A1", "factor_B1"] if ".0." in layer else []
        assert sorted(held[layer]) == ["core", *factors]


@pytest.mark.parametrize("is_more", [False, True])
def test_a_file_that_holds_less_or_more_than_the_adapter_is_rejected(is_more, tmp_path):
    case = Case("bert", SHARED)
    case.model().save_pretrained(str(tmp_path))
    first, last = (f"base_model.model.bert.encoder.layer.{at}.attention.self.query.lsr_adapters" for at in (0, 1))

    def change(tensors):
        if is_more:
            tensors[f"{last}.factor_A1"] = tensors[f"{first}.factor_A1"].clone()
        else:
            del tensors[f"{last}.core"]

    edit(tmp_path / FILE, change)
    with pytest.raises(ValueError, match="factor_A1" if is_more else "core"):
        case.load(tmp_path)


def test_a_card_has_the_header_of_the_hub_and_gives_way_to_one_that_somebody_wrote(tmp_path):
    base = tiny.save_base(tmp_path / "base", "bert")
    folder = tiny.save_adapter(tmp_path / "adapter", base, BERT.config(), labels="abc")
    card = folder / "README.md"
    data = ModelCard.load(card).data
    assert (data.library_name, data.base_model) == ("peft", str(base))
    assert "lsr" in data.tags
    own = "---\nlicense: mit\n---\n\nMine.\n"
    card.write_text(own)
    BERT.load(folder).save_pretrained(str(folder))
    saved = ModelCard.load(card)
    assert "Mine." in saved.text
    assert saved.data.license == "mit"
