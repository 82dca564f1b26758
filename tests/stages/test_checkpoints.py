"""Checkpoints of any architecture and dtype through the stages, compared with plain transformers and PEFT."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank, export_merged
from lsr.tuner.files import PREFIX, WEIGHTS
from pipeline import params
from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.methods import adapters
from pipeline.predict.__main__ import main as predict
from pipeline.tasks.completion import CompletionScoring
from pipeline.training.run import Progress
from stages import train as stage
from tests import architectures, workspace, writers
from tests.kit import said, table
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run, trained

BASE = "models/base"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # as BERT has it
KINDS = ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "modernbert"]
CLOSE = {"abs": 2e-5}  # of probabilities that are printed with six digits


@pytest.fixture
def go(tmp_path, monkeypatch):
    """A function that saves a tiny model in a workspace, with changes to params.yaml."""

    def make(kind, dtype=torch.float32, config=(), **changes):
        monkeypatch.chdir(workspace.make(tmp_path, model=BASE, **changes))
        architectures.save(Path(BASE), kind, dtype, **dict(config))

    return make


def plain():
    """The base model as plain transformers loads it in float32, with a head of two labels, and its tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


@torch.no_grad()
def probabilities(model, tokenizer):  # (texts, 2), of the test split, each text alone
    rows = table(artifacts.EVALUATE_PREDICTIONS)
    texts = [[row["text"], row["text_pair"]] for row in rows]
    alone = [tokenizer(*pair, truncation=True, max_length=24, return_tensors="pt") for pair in texts]
    return torch.cat([model(**inputs).logits for inputs in alone]).double().softmax(dim=1)


def predicted():
    """What the command says of the test split."""
    options = ("--file", artifacts.EVALUATE_PREDICTIONS.as_posix(), "--column", "text", "text_pair")
    rows = table(said(predict, *options))
    return torch.tensor([[float(row[f"p({name})"]) for name in ("not_equivalent", "equivalent")] for row in rows])


def loss_of(shares):
    """The loss of probabilities of the test split."""
    labels = torch.tensor(tokens.load_tokens("test")["label"][:])
    return cross_entropy(shares.double().log(), labels).item()


@pytest.mark.parametrize("kind", KINDS)
def test_full_fine_tuning_is_what_plain_transformers_makes_of_the_weights_that_it_saves(kind, go):
    go(kind, adapter="full", train={"epochs": 1})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    model, tokenizer = plain()
    saved = {name.removeprefix(PREFIX): value for name, value in load_file(artifacts.ADAPTER / WEIGHTS).items()}
    assert saved.keys() == model.state_dict().keys()
    model.load_state_dict(saved)
    expected = probabilities(model, tokenizer)
    assert predicted().numpy() == pytest.approx(expected.numpy(), **CLOSE)
    found = report(artifacts.EVALUATE_METRICS)
    assert found["loss"] == pytest.approx(loss_of(expected), rel=1e-4)
    whole = sum(map(torch.Tensor.numel, model.parameters()))
    assert found["adapter_trained"] + found["head_parameters"] == found["base_parameters"] + found["head_parameters"]
    assert found["adapter_trained"] + found["head_parameters"] == whole


@pytest.mark.parametrize(("kind", "adapter"), [("bart", "lora"), ("bart", "lsr"), ("t5", "lora")])
def test_an_encoder_decoder_answers_as_plain_transformers_and_peft_do_to_each_text_alone(kind, adapter, go):
    go(kind, adapter=adapter, lsr=LSR, train={"epochs": 1})
    end_each_text()
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    base, tokenizer = plain()
    expected = probabilities(PeftModel.from_pretrained(base, str(artifacts.ADAPTER)).eval(), tokenizer)
    assert predicted().numpy() == pytest.approx(expected.numpy(), **CLOSE)
    assert report(artifacts.EVALUATE_METRICS)["loss"] == pytest.approx(loss_of(expected), rel=1e-4)


def end_each_text():
    """Let the tokenizer of the base model put its end token after each text, as that of BART does."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    end = tokenizer.eos_token
    template = TemplateProcessing(single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, 0)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(BASE)


@pytest.mark.parametrize("kind", ["bert", "deberta", "llama", "nemotron"])
def test_weights_decay_in_full_fine_tuning_but_not_biases_and_norms_whatever_their_names(kind, go):
    go(kind, adapter="full")
    run(TOKENIZE, FACTORIZE)
    view = params.load(params.TrainView)
    model = stage.load_initialized(view, tokens.load_task(view.dataset), tokens.load_tokens("train"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = adapters.optimizer(model, view).param_groups
    decaying = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    # Of these architectures, all biases and weights of norms are vectors, and nothing else is one.
    assert decaying == {id(parameter) for parameter in trained if parameter.dim() > 1}
    assert sum(len(group["params"]) for group in groups) == len(trained)


TRAINED = [("bert", "full"), ("llama", "full"), ("llama", "lora"), ("bert", "head_only")]
STEPS = 6  # each of all rows: their order is no matter
RATES = {"full": {"learning_rate": 5e-5}, "lora": {"learning_rate": 0.002}, "head_only": {}}
LSR = {"rank_shape": [3], "separation_rank": 1, "train": "all", "init": "principal", "learning_rate": 0.006}


def fitted(adapter, rate):
    """Fit an adapter, or a model that is one, as PEFT loads it before training: the states after each step."""
    base, tokenizer = plain()
    model = PeftModel.from_pretrained(base, str(artifacts.INIT), is_trainable=True).train()
    heads = ("classifier", "score")
    own = [its for name, its in model.named_parameters() if its.requires_grad and not any(one in name for one in heads)]
    head = [its for name, its in model.named_parameters() if its.requires_grad and any(one in name for one in heads)]
    optimizer = torch.optim.AdamW([{"params": own, "lr": rate}, {"params": head, "lr": 0.002}], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    rows = tokens.load_tokens("train")
    batch = tokenizer.pad({"input_ids": rows["input_ids"][:]}, return_tensors="pt")
    labels, states = torch.tensor(rows["label"][:]), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(model(**batch).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_([*own, *head], 1.0)
        optimizer.step()
        schedule.step()
        states.append({name: its.detach().clone() for name, its in model.named_parameters() if its.requires_grad})
    return states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("kind", "adapter"), [("bert", "full"), ("llama", "full"), ("llama", "lora"), ("bert", "head_only")]
)
def test_a_checkpoint_in_half_precision_trains_as_its_weights_in_float32(kind, adapter, dtype, go, monkeypatch):
    config = NO_DROPOUT if kind == "bert" else {}
    section = {} if adapter == "head_only" else {adapter: RATES[adapter]}
    go(kind, dtype, config, adapter=adapter, train={"epochs": STEPS, "batch_size": 512, "weight_decay": 0.0}, **section)
    states = []

    def note(self, args, state, control, model=None, **_):
        states.append({name: its.detach().clone() for name, its in model.named_parameters() if its.requires_grad})

    monkeypatch.setattr(Progress, "on_step_end", note)
    run(TOKENIZE, FACTORIZE, TRAIN)
    for folder in (artifacts.INIT, artifacts.ADAPTER):
        assert {value.dtype for value in load_file(folder / WEIGHTS).values()} == {torch.float32}
    expected = fitted(adapter, RATES[adapter].get("learning_rate", 0.0))
    assert len(states) == len(expected) == STEPS
    late, before = ({name: value.ravel() for name, value in state.items()} for state in (expected[-1], expected[-2]))
    moved = {name: value != before[name] for name, value in late.items()}
    assert share(states[-1][name].ravel() != states[-2][name].ravel() for name in late) == pytest.approx(
        share(moved.values()), abs=0.001
    )
    near = share((states[-1][name].ravel() - value).abs() < 1e-6 for name, value in late.items())
    assert near > 0.995  # where a gradient is 0 but for rounding, as that of the bias of keys, Adam steps either way


def share(masks):
    return torch.cat([*masks]).double().mean().item()


@pytest.mark.parametrize(
    ("kind", "adapter"), [("llama", "lsr"), ("bert", "lora"), ("gpt2", "full"), ("roberta", "head_only")]
)
def test_a_bf16_checkpoint_is_scored_asked_served_and_exported_alike(kind, adapter, go, tmp_path):
    go(kind, torch.bfloat16, adapter=adapter, lsr=LSR, train={"epochs": 3, "head_learning_rate": 0.02})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    base, tokenizer = plain()
    expected = probabilities(PeftModel.from_pretrained(base, str(artifacts.ADAPTER)).eval(), tokenizer)
    assert report(artifacts.EVALUATE_METRICS)["loss"] == pytest.approx(loss_of(expected), rel=1e-4)
    assert predicted().numpy() == pytest.approx(expected.numpy(), **CLOSE)
    if adapter in ("lsr", "lora"):
        bank = AdapterBank(plain()[0])
        bank.add("own", artifacts.ADAPTER)
        bank.save(tmp_path / "bank")
        loaded = AdapterBank.load(BASE, tmp_path / "bank")
        assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
        asked = probabilities(lambda **inputs: loaded(**inputs, adapter_names=["own"]), tokenizer)
        assert asked.numpy() == pytest.approx(expected.numpy(), **CLOSE)
    if adapter == "lsr":
        export_merged(trained(params.load(params.EvaluateView)), tmp_path / "merged")
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        assert probabilities(merged, tokenizer).numpy() == pytest.approx(expected.numpy(), **CLOSE)
    assert 'dtype="float32"' in (artifacts.ADAPTER / "README.md").read_text()
    assert json.loads(Path(BASE, "config.json").read_text())["dtype"] == "bfloat16"


METHODS = [  # whose adapters change weights of the base model itself, or have no layers that could be disabled
    ("lora", {"init_lora_weights": "pissa"}),
    ("lora", {"init_lora_weights": "olora"}),
    ("lora", {"bias": "all"}),
    ("bitfit", {}),
    ("lsr", {"init": "random"}),
]


@pytest.mark.parametrize(("adapter", "section"), METHODS, ids=["pissa", "olora", "trained biases", "bitfit", "lsr"])
def test_what_is_written_without_the_adapter_is_what_the_checkpoint_writes(adapter, section, tmp_path, monkeypatch):
    changes = {"evaluate": {"max_new_tokens": 5}, "train": {"epochs": 1}, **({adapter: section} if section else {})}
    monkeypatch.chdir(writers.make(tmp_path, adapter=adapter, **changes))
    architectures.save(Path(BASE), "opt")  # whose layers have biases
    workspace.change(model=BASE, tokenize={"max_length": 30})
    outcomes, metrics = [], CompletionScoring.metrics

    def note(self, outcome, resamples):
        outcomes.append(outcome)
        return metrics(self, outcome, resamples)

    monkeypatch.setattr(CompletionScoring, "metrics", note)
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE).eval(), AutoTokenizer.from_pretrained(BASE)
    split, losses, counts = tokens.load_tokens("test"), [], []
    for ids, labels, text in zip(split["input_ids"], split["label"], outcomes[0].base_texts, strict=True):
        silent = labels.count(-100)
        prompt, answer = torch.tensor([ids[:silent]]), torch.tensor(ids[silent:])
        written = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
        assert tokenizer.decode(written[0, silent:], skip_special_tokens=True) == text
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, silent - 1 : -1]
        losses.append(cross_entropy(logits, answer, reduction="sum"))
        counts.append(len(answer))
    found = report(artifacts.EVALUATE_METRICS)
    assert found["loss_baseline"] == pytest.approx(float(sum(losses)) / sum(counts), rel=1e-5)
    assert found["loss"] != pytest.approx(found["loss_baseline"], rel=1e-4)
