"""What an adapter answers to a text does not depend on the other texts of a batch, wherever it is asked.

The reference is plain transformers in float32: the base model with the update of a LoRA added to its weights by hand,
and each text alone, without padding.
"""

import json
import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank
from lsr.__main__ import main as lsr
from lsr.loading.base_models import load_tokenizer
from lsr.serve.passes import BatchRunner
from lsr.tuner.files import PREFIX, WEIGHTS
from pipeline.core import artifacts
from pipeline.predict.__main__ import main as predict
from tests import architectures, workspace
from tests.kit import refused, said, table, write
from tests.lsr.serve.asking import ask_passes, generate, posted
from tests.lsr.serve.asking import predict as request
from tests.stages.running import EVALUATE, TOKENIZE, report, run

LENGTH = 24  # tokens
TARGETS = {  # of LoRA, where PEFT's table has none or others
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn"],
    "modernbert": ["Wqkv"],
    "xlnet": ["layer_1"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
}
HEADS = {
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"],
    "xlnet": ["sequence_summary", "logits_proj"],
    "bert": ["classifier"],
    "roberta": ["classifier"],
}
SHOPS = {"acme": ["no", "yes"], "bolt": ["x", "y", "z"], "cast": ["no", "yes"]}
TOKENS_FIRST = {"xlnet"}  # the first axis of its states is that of tokens
LABELS = [f"{shop}-{label}" for shop, labels in SHOPS.items() for label in labels]
ROUNDING = {"float32": 2e-5, "bfloat16": 0.05}  # of probabilities, in models of these dtypes


def texts():
    """Texts of very different lengths, some with special tokens in them or at their end, which a file may hold."""
    short = "the cat"
    long = "the owl number 7 sleeps in the barn and the fox rests in the garden at night"
    marks = [form.format(token) for token in architectures.SPECIAL for form in ("the cat {}", "a {} b")]
    pairs = [text for *pair, _ in workspace.sentences(12) for text in pair]
    return list(dict.fromkeys([short, long, "x", *marks, *(text[: 8 + 5 * at] for at, text in enumerate(pairs))]))


def rows():
    """Examples of a shop each; those of `signs` have a label of all."""
    shops = list(SHOPS)
    found = []
    for at, text in enumerate(dict.fromkeys(f"{text} {number}" for number in range(4) for text in texts())):
        shop = shops[at % 3]
        label = SHOPS[shop][at // 3 % len(SHOPS[shop])]
        found.append({"shop": shop, "text": text, "label": label, "sign": LABELS[at % 7]})
    return found


@pytest.fixture(scope="module", params=architectures.PADDED)
def world(request, tmp_path_factory):
    """The folder of a workspace with a model of an architecture and a LoRA of it, and plain transformers' logits."""
    folder = tmp_path_factory.mktemp(request.param)
    cut = {"validation": 0.2, "test": 0.2}
    signs = {
        "source": {"kind": "files", "files": {"train": "data/shops.csv"}},
        "text": ["text"],
        "label": {"column": "sign", "names": LABELS},
        "metrics": ["accuracy"],
        "split": cut,
    }
    usual = {"model": "base", "data": "signs", "tokenize": {"max_length": LENGTH}, "evaluate": {"batch_size": 16}}
    workspace.make(folder, {"shops": workspace.ROWS["shops"], "signs": signs}, **usual)
    with chdir(folder):
        write("data/shops.csv", rows())
        architectures.save_padded(folder / "base", request.param)
        save_lora(request.param)
        model = plain()
    return folder, model


def float32_base():
    return AutoModelForSequenceClassification.from_pretrained("base", num_labels=len(LABELS), dtype=torch.float32)


def save_lora(kind):
    """Save a LoRA of random values, as it may come from anybody, at `lora`, with a note of its labels."""
    torch.manual_seed(0)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=2,
        lora_alpha=4,
        target_modules=TARGETS.get(kind, ["q_proj", "v_proj"]),
        modules_to_save=HEADS.get(kind, ["score"]),
        init_lora_weights=False,
    )
    model = get_peft_model(float32_base(), config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data = torch.randn_like(parameter)
    model.save_pretrained("lora")
    note = {"kind": "classes", "columns": ["text"], "labels": LABELS, "max_length": LENGTH}
    write("lora/task.json", note)


def plain(folder="base"):
    """Return a function: the logits that plain transformers gives each text alone, (texts, labels).

    Its tokenizer is that in a folder.
    """
    model = float32_base().eval()
    tensors = {name.removeprefix(PREFIX): value for name, value in load_file(f"lora/{WEIGHTS}").items()}
    weights = dict(model.named_parameters())
    for name, value in tensors.items():
        if name.endswith("lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            update = 2.0 * tensors[f"{layer}.lora_B.weight"] @ value  # alpha / r
            weight = weights[f"{layer}.weight"].data
            weight += update if weight.shape == update.shape else update.T
        elif "lora_B" not in name:
            weights[name].data.copy_(value)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @torch.no_grad()
    def logits(asked):
        cut = {"truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        encoded = [tokenizer(text, **cut)["input_ids"] for text in asked]
        return torch.cat([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in encoded])

    return logits


def check(found, expected, dtype="float32"):
    """Check probabilities, (texts, labels), of a model that computes in a dtype."""
    assert_close(torch.tensor(found), expected.softmax(dim=1), atol=ROUNDING[dtype], rtol=0)


def test_predict_answers_to_each_text_as_plain_transformers_does_alone(world):
    folder, logits = world
    with chdir(folder):
        write("asked.csv", [{"text": text} for text in texts()])
        found = table(said(predict, "--adapter", "lora", "--file", "asked.csv", "--batch-size", "64"))
        check([[float(row[f"p({label})"]) for label in LABELS] for row in found], logits(texts()))


@torch.no_grad()
def test_a_bank_answers_to_each_text_as_plain_transformers_does_alone(world):
    folder, logits = world
    with chdir(folder):
        make_bank()
        bank = AdapterBank.load(None, "bank")
        tokenizer = AutoTokenizer.from_pretrained("base")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "left" if bank.model.config.model_type == "xlnet" else "right"
        options = {"padding": True, "truncation": True, "max_length": LENGTH, "return_attention_mask": True}
        batch = tokenizer(texts(), return_tensors="pt", **options)
        answers = bank.answers(bank(**batch, adapter_names=["lora"] * len(texts())).logits, ["lora"] * len(texts()))
        check([list(answer.probabilities.values()) for answer in answers], logits(texts()))


def make_bank():
    """Make a bank of the LoRA; skip the test of an architecture that a bank refuses, which has a test of its own."""
    if base_config()["model_type"] in TOKENS_FIRST:
        pytest.skip("its layers are not called with a row for each text")
    if not Path("bank").exists():
        said(lsr, "bank", "--from", "lora", "-o", "bank")


def base_config():
    return json.loads(Path("base/config.json").read_text())


def test_a_bank_refuses_layers_that_are_not_called_with_a_row_for_each_text(world):
    folder, _ = world
    with chdir(folder):
        if base_config()["model_type"] not in TOKENS_FIRST:
            make_bank()
            return
        line = refused(lsr, ["bank", "--from", "lora", "-o", "bank"])
    assert "lora: 'transformer.layer.0.ff.layer_1' is called with a first axis of " in line
    assert line.endswith(" for 2 texts, so a bank cannot tell the rows of a batch apart")


def test_a_server_answers_to_each_text_as_plain_transformers_does_alone_and_in_any_batch(world):
    folder, logits = world
    with chdir(folder):
        make_bank()
        bank = AdapterBank.load(None, "bank")
        passes = BatchRunner(bank, load_tokenizer(bank.base_fields, Path("bank")), 28, 1)
        asked = texts()
        are_long = {text: len(passes.tokenizer(text)["input_ids"]) > LENGTH for text in asked}
        assert 0 < sum(are_long.values()) < len(asked)
        batches = [asked, *([text] for text in asked[:5]), asked[::-1]]
        responses = ask_passes(passes, posted(*(request("lora", *some) for some in batches)))
        for some, response in zip(batches, responses, strict=True):
            found = [[answer["probabilities"][label] for label in LABELS] for answer in response.json()["answers"]]
            check(found, logits(some))
            assert response.json()["truncated"] == sum(are_long[text] for text in some)


@torch.no_grad()
def test_a_merged_export_answers_to_each_text_as_plain_transformers_does_alone(world):
    folder, logits = world
    with chdir(folder):
        said(lsr, "import", "lora", "-o", "imported", "--force")
        said(lsr, "export", "imported", "--to", "merged", "-o", "merged", "--force")
        tokenizer = AutoTokenizer.from_pretrained("merged")
        model = AutoModelForSequenceClassification.from_pretrained("merged").eval()
        options = {"padding": True, "truncation": True, "max_length": LENGTH}
        batch = tokenizer(texts(), return_tensors="pt", **options)
        check(model(**batch).logits.softmax(dim=1).tolist(), logits(texts()))


def test_the_snippet_of_an_exported_lora_answers_to_each_text_as_plain_transformers_does_alone(world):
    folder, logits = world
    with chdir(folder):
        if "attention_mask" not in AutoTokenizer.from_pretrained("base").model_input_names:
            pytest.skip("plain transformers makes no attention mask with this tokenizer")
        said(lsr, "import", "lora", "-o", "imported", "--force")
        said(lsr, "export", "imported", "--to", "lora", "-o", "exported", "--force")
        code = re.search(r"```python\n(.*?)```", Path("exported/README.md").read_text(), re.DOTALL)[1]
        if not Path("exported/base").exists():
            Path("exported/base").symlink_to(Path("base").resolve())
    with chdir(folder / "exported"):
        names = {}
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102 what the card says is asked for
        asked = [text for text in texts() if len(names["tokenizer"](text)["input_ids"]) <= LENGTH]
        size = 1 if base_config()["model_type"] == "xlnet" else 64  # of whose output transformers' pipeline takes more
        found = names["ask"](asked, batch_size=size, top_k=None)
    scores = [{one["label"]: one["score"] for one in answer} for answer in found]
    with chdir(folder):
        # As its first lines load the base model: in the dtype of its checkpoint.
        check([[its[label] for label in LABELS] for its in scores], logits(asked), base_config()["dtype"])


def test_the_stage_evaluate_scores_what_plain_transformers_answers_to_each_text_alone(world):
    folder, logits = world
    with chdir(folder):
        workspace.change(data="signs")
        evaluate({})
        test = table(artifacts.EVALUATE_PREDICTIONS)
        labels = torch.tensor([LABELS.index(row["actual"]) for row in test])
        expected = float(cross_entropy(logits([row["text"] for row in test]), labels))
        assert report(artifacts.EVALUATE_METRICS)["loss"] == pytest.approx(expected, rel=1e-4)


def test_tenants_are_scored_by_what_plain_transformers_answers_to_each_text_alone(world):
    folder, logits = world
    with chdir(folder):
        workspace.change(data="shops", tenants={"precision": "float32"})
        evaluate({"labels": None, "tenants": SHOPS, "tenant": "shop"})
        test = table(artifacts.EVALUATE_PREDICTIONS)
        means = []
        for shop, labels in SHOPS.items():
            own = [row for row in test if row["tenant"] == shop]
            places = [LABELS.index(f"{shop}-{label}") for label in labels]
            actual = torch.tensor([labels.index(row["actual"]) for row in own])
            means.append(float(cross_entropy(logits([row["text"] for row in own])[:, places], actual)))
        assert report(artifacts.EVALUATE_METRICS)["loss"] == pytest.approx(sum(means) / len(means), rel=1e-4)


def evaluate(note):
    """Score the LoRA as the trained adapter, with changes to its note."""
    run(TOKENIZE)
    artifacts.ADAPTER.mkdir(parents=True, exist_ok=True)
    for file in Path("lora").iterdir():
        (artifacts.ADAPTER / file.name).write_bytes(file.read_bytes())
    task = json.loads(Path("lora/task.json").read_text()) | note
    write(artifacts.ADAPTER / "task.json", task)
    if note:
        AdapterBank.of_tenants(artifacts.ADAPTER).save(artifacts.BANK, force=True)
    run(EVALUATE)


def other_tokenizer(**tokens):
    """Put a tokenizer beside the LoRA at `other` that is the base model's but for some special tokens."""
    other = Path("other")
    if not other.exists():
        shutil.copytree("lora", other)
    tokenizer = AutoTokenizer.from_pretrained("base")
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(other)
    return other


def test_an_adapter_is_asked_with_the_tokenizer_in_its_folder_and_a_bank_takes_that_of_the_base_alone(world):
    folder, _ = world
    with chdir(folder):
        other_tokenizer(pad_token="<s>")
        logits = plain("other")
        write("asked.csv", [{"text": text} for text in texts()])
        found = table(said(predict, "--adapter", "other", "--file", "asked.csv", "--batch-size", "64"))
        check([[float(row[f"p({label})"]) for label in LABELS] for row in found], logits(texts()))
        if base_config()["model_type"] in TOKENS_FIRST:
            return
        line = refused(lsr, ["bank", "--from", "lora", "other", "-o", "two", "--force"])
        assert ", which a bank uses for all adapters: it pads with <s>, not " in line
        tokenizer = AutoTokenizer.from_pretrained("base")
        other_tokenizer(pad_token=tokenizer.pad_token or tokenizer.eos_token)
        said(lsr, "bank", "--from", "lora", "other", "-o", "two", "--force")


def test_a_padding_token_that_the_model_does_not_have_is_refused_before_anything_is_asked(world):
    folder, _ = world
    with chdir(folder):
        other_tokenizer(pad_token="[PAD]")
        line = refused(predict, ["--adapter", "other", "the cat"])
    assert "other: the tokenizer pads with token 320, [PAD]; needed: one of the model's 320 tokens as pad_token" in line


WRITERS = [name for name, described in architectures.PADDED.items() if "ends" in described]
NEW = 8  # tokens


@pytest.fixture(scope="module", params=WRITERS)
def writer(request, tmp_path_factory):
    """The folder of a workspace with a decoder that writes and a LoRA of it, and what plain transformers writes."""
    folder = workspace.make(tmp_path_factory.mktemp(request.param))
    with chdir(folder):
        architectures.save_padded(folder / "base", request.param, AutoModelForCausalLM)
        torch.manual_seed(0)
        targets = TARGETS.get(request.param, ["q_proj", "v_proj"])
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=targets, init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32), config)
        model.save_pretrained("lora")
        tokenizer = AutoTokenizer.from_pretrained("base")
        end = tokenizer.eos_token_id
        note = {"kind": "completion", "columns": ["text"], "labels": None, "max_length": LENGTH}
        write("lora/task.json", note | {"template": "none", "stop_token_ids": [end]})
        merged = model.merge_and_unload().eval()

    def alone(prompt):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
        written = merged.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)

    return folder, alone


def prompts():
    return [text for text in texts() if "<" not in text and len(text) < 60]


def test_predict_writes_after_each_prompt_what_plain_transformers_writes_alone(writer):
    folder, alone = writer
    with chdir(folder):
        write("asked.csv", [{"text": text} for text in prompts()])
        words = "--adapter", "lora", "--file", "asked.csv", "--batch-size", "64", "--max-new-tokens", str(NEW)
        found = table(said(predict, *words))
        assert [row["answer"] for row in found] == [alone(text) for text in prompts()]


def test_a_server_writes_after_each_prompt_what_plain_transformers_writes_alone(writer):
    folder, alone = writer
    with chdir(folder):
        if not Path("bank").exists():
            said(lsr, "bank", "--from", "lora", "-o", "bank")
        bank = AdapterBank.load(None, "bank")
        passes = BatchRunner(bank, load_tokenizer(bank.base_fields, Path("bank")), 28, NEW)
        batches = [prompts(), prompts()[:1], prompts()[::-1]]
        responses = ask_passes(passes, posted(*(generate("lora", NEW, *some) for some in batches)))
        for some, response in zip(batches, responses, strict=True):
            assert [answer["text"] for answer in response.json()["answers"]] == [alone(text) for text in some]
