"""What is written is what plain `generate` of transformers writes for each prompt alone, greedily and without padding.

That holds for the stage evaluate, predict, and a bank that is asked over HTTP, whose batches are padded on the left and
hold prompts of very different lengths, with other numbers of new tokens and other end tokens than each other.
"""

import itertools
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lsr import AdapterBank
from lsr.__main__ import main as lsr
from lsr.serve.passes import BatchRunner
from pipeline.core import artifacts
from pipeline.predict.__main__ import main as predict
from tests import architectures, kit, workspace, writers
from tests.kit import said, table
from tests.lsr.serve.asking import ask_passes, generate, posted
from tests.references import models, plain
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run_in

NEW_TOKENS = 9
MOST = 14
CLAUSES = ("so ", "at night ", "nobody saw it, so again ", "in the barn or garden or ")
ROW = writers.ROW | {"text": ["{more}Where is the {animal} number {at}?"]}
LSR = {"rank_shape": [6], "separation_rank": 1, "share": "layers", "train": "all", "target_modules": "all-linear"}
LORA = {"target_modules": "all-linear", "learning_rate": 0.02, "lora_dropout": 0.1}
CASES = {  # the architecture, its dtype, whether it has a chat template, and the adapter
    "llama": (torch.float32, True, {"adapter": "lsr", "lsr": LSR | {"learning_rate": 0.02}}),
    "gpt2": (torch.bfloat16, False, {"adapter": "lora", "lora": LORA}),
    "qwen2": (torch.bfloat16, True, {"adapter": "lora", "lora": LORA}),
}
AT_NIGHT = ("qwen2",)


def rows():
    """Prompts and completions of different lengths."""
    return [
        row | {"more": CLAUSES[at // 4 % 4], "place": row["place"] + " by the wood" * (at % 2)}
        for at, row in enumerate(writers.rows(90))
    ]


def save(folder, architecture, dtype, chat):
    """Save a checkpoint of which one end token is the tokenizer's and another, with a chat template, the template's."""
    if chat:
        writers.save(folder)
        if architecture != "llama":
            save_another(folder, architecture)
        own = {"eos_token": writers.START, "additional_special_tokens": [writers.END]}
        writers.tokenizer(**own).save_pretrained(folder)
    else:
        architectures.save(folder, architecture)
        kit.edit(folder / "tokenizer_config.json", model_max_length=64, padding_side="left")
    kit.edit(
        folder / "model.safetensors", lambda tensors: {key: models.louder(one, dtype) for key, one in tensors.items()}
    )
    kit.edit(folder / "config.json", dtype=str(dtype).removeprefix("torch."))


def save_another(folder, architecture):
    """Save a language model of another architecture in place of the Llama in a folder, with the same tokens."""
    config = AutoConfig.from_pretrained(folder)
    shared = ("vocab_size", "num_key_value_heads", "max_position_embeddings", "pad_token_id", "eos_token_id")
    sizes = workspace.SIZES | {name: getattr(config, name) for name in shared} | {"tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes))
        model.save_pretrained(folder)


def at_night(name):
    return pytest.param(name, marks=[pytest.mark.nightly] if name in AT_NIGHT else [])


@pytest.fixture(scope="module", params=map(at_night, CASES))
def trained(request, tmp_path_factory):
    """A workspace after all stages, the checkpoint's folder in it, and whether it has a chat template."""
    dtype, chat, adapter = CASES[request.param]
    usual = {"data": "writing", "model": "models/base", "tokenize": {"max_length": 80 if chat else 48}}
    own = {"train": {"epochs": 4, "batch_size": 8}, "evaluate": {"max_new_tokens": NEW_TOKENS, "batch_size": 5}}
    folder = workspace.make(tmp_path_factory.mktemp("writing"), {"writing": ROW}, **usual, **own, **adapter)
    save(folder / "models/base", request.param, dtype, chat)
    kit.write(folder / "writing.jsonl", rows())
    return run_in(folder, TOKENIZE, FACTORIZE, TRAIN, EVALUATE), chat


class Plain:
    """A base model in float32, perhaps with the adapter merged by PEFT or dense matrices, and its tokenizer."""

    def __init__(self, chat, *, adapter=True):
        folder = Path("models/base")
        self.chat = chat
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = plain.base_model(folder, "AutoModelForCausalLM")
        if adapter:
            self.model = plain.adapted(self.model, artifacts.ADAPTER)
            self.model = self.model.merge_and_unload() if hasattr(self.model, "merge_and_unload") else self.model
        self.stop_token_ids = [self.tokenizer.eos_token_id]
        if chat:
            self.stop_token_ids.append(self.tokenizer.convert_tokens_to_ids(writers.END))

    def prompt(self, text):
        if not self.chat:
            return self.tokenizer(text)["input_ids"]
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )

    def writes(self, text, max_new_tokens, stop_token_ids=None):
        """Return the tokens that follow a prompt, up to the first end token."""
        ids = torch.tensor([self.prompt(text)])
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": 0}
        options |= {"attention_mask": torch.ones_like(ids), "eos_token_id": stop_token_ids or self.stop_token_ids}
        return self.model.generate(ids, **options)[0, ids.shape[1] :].tolist()

    def text(self, written):
        return self.tokenizer.decode(written, skip_special_tokens=True)

    @torch.no_grad()
    def loss(self, pairs):
        """Return the mean loss per token of completions and the end token after each."""
        losses = []
        for prompt, completion in pairs:
            before = self.prompt(prompt)
            end = self.stop_token_ids[-1]
            answer = [*self.tokenizer(completion, add_special_tokens=False)["input_ids"], end]
            logits = self.model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
            losses.append(F.cross_entropy(logits.double(), torch.tensor(answer), reduction="none"))
        return float(torch.cat(losses).mean())


def test_what_the_stage_scores_is_what_plain_generate_writes_for_each_prompt_alone(trained, monkeypatch):
    folder, chat = trained
    monkeypatch.chdir(folder)
    scored = table(artifacts.EVALUATE_PREDICTIONS)
    actual = report(artifacts.EVALUATE_METRICS)
    reference = Plain(chat)
    written = [reference.writes(row["prompt"], NEW_TOKENS) for row in scored]
    assert len({len(reference.prompt(row["prompt"])) for row in scored}) > 4
    assert [row["said"] for row in scored] == [reference.text(ids) for ids in written]
    expected = {row["more"] + f"Where is the {row['animal']} number {row['at']}?": row["place"] for row in rows()}
    right = [reference.text(ids).strip() == expected[row["prompt"]] for ids, row in zip(written, scored, strict=True)]
    assert actual["exact_match"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    pairs = [(row["prompt"], expected[row["prompt"]]) for row in scored]
    assert actual["loss"] == pytest.approx(reference.loss(pairs), rel=1e-4)
    base = Plain(chat, adapter=False)
    assert actual["loss_baseline"] == pytest.approx(base.loss(pairs), rel=1e-4)
    alone = [base.text(base.writes(row["prompt"], NEW_TOKENS)) == expected[row["prompt"]] for row in scored]
    assert actual["exact_match_baseline"] == pytest.approx(sum(alone) / len(alone), abs=1e-6)


@pytest.mark.parametrize(("max_new_tokens", "size"), [(3, 4), (MOST, 64)])
def test_predict_writes_what_plain_generate_writes_for_each_prompt_alone(
    trained, monkeypatch, tmp_path, max_new_tokens, size
):
    folder, chat = trained
    monkeypatch.chdir(folder)
    reference = Plain(chat)
    prompts = [row["prompt"] for row in table(artifacts.EVALUATE_PREDICTIONS)]
    file = kit.write(tmp_path / "prompts.csv", [{"text": prompt} for prompt in prompts])
    words = [
        "--file",
        str(file),
        "--column",
        "text",
        "--max-new-tokens",
        str(max_new_tokens),
        "--batch-size",
        str(size),
    ]
    actual = [row["answer"] for row in table(said(predict, *words))]
    assert actual == [reference.text(reference.writes(prompt, max_new_tokens)) for prompt in prompts]


def test_a_server_writes_what_plain_generate_writes_for_each_prompt_alone(trained, monkeypatch):
    """Requests with other numbers of new tokens, for adapters with other end tokens, meet in a batch."""
    folder, chat = trained
    monkeypatch.chdir(folder)
    prompts = [row["prompt"] for row in table(artifacts.EVALUATE_PREDICTIONS)][:6]
    reference = Plain(chat)
    task_info = report(artifacts.ADAPTER / "task.json")
    written = [reference.writes(prompt, MOST) for prompt in prompts]
    places = {token: {(*ids, token).index(token) for ids in written} for token in sorted(set().union(*written))}
    token = max(places, key=lambda token: len(places[token]))  # in most places, so that answers have many lengths
    early = [*reference.stop_token_ids, token]
    of_base = [reference.model.generation_config.eos_token_id]
    stop_token_ids = {"usual": reference.stop_token_ids, "early": early, "base's": of_base}
    bank = AdapterBank(AutoModelForCausalLM.from_pretrained("models/base", dtype=torch.float32))
    bank.add("usual", artifacts.ADAPTER)
    bank.add("early", artifacts.ADAPTER, task_info=task_info | {"stop_token_ids": early})
    bank.add("base's", artifacts.ADAPTER, task_info={"template": task_info["template"]})
    passes = BatchRunner(bank, reference.tokenizer, 64, MOST)
    asked = list(itertools.product(("usual", "early", "base's"), (2, MOST)))
    answers = ask_passes(passes, posted(*(generate(name, count, *prompts) for name, count in asked)))
    assert len({len(reference.writes(prompt, MOST, early)) for prompt in prompts}) > 1
    for (name, count), answer in zip(asked, answers, strict=True):
        assert answer.status_code == 200, answer.json()
        actual = [one["text"] for one in answer.json()["answers"]]
        assert actual == [reference.text(reference.writes(prompt, count, stop_token_ids[name])) for prompt in prompts]


def test_an_export_writes_with_plain_transformers_or_peft_what_the_reference_writes(trained, monkeypatch, tmp_path):
    folder, chat = trained
    monkeypatch.chdir(folder)
    prompts = [row["prompt"] for row in table(artifacts.EVALUATE_PREDICTIONS)]
    reference = Plain(chat)
    expected = [reference.writes(prompt, MOST) for prompt in prompts]
    adapter = artifacts.ADAPTER
    if plain.fields_of(adapter)["peft_type"] == "LORA":
        adapter = tmp_path / "imported"
        said(lsr, "import", str(artifacts.ADAPTER), "-o", str(adapter))
    for form, load in (("merged", AutoModelForCausalLM.from_pretrained), ("lora", with_peft)):
        said(lsr, "export", str(adapter), "--to", form, "--base", "models/base", "-o", str(tmp_path / form))
        exported = Plain(chat)
        exported.model = load(tmp_path / form, dtype=torch.float32)
        assert [exported.writes(prompt, MOST) for prompt in prompts] == expected


def with_peft(folder, dtype):
    base = AutoModelForCausalLM.from_pretrained("models/base", dtype=dtype)
    return PeftModel.from_pretrained(base, str(folder)).eval()
