"""A language model that writes: what it learns of a text, what is refused, and what the stages make of it."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lsr import AdapterBank
from lsr.loading import adapters
from lsr.serve.passes import BatchRunner
from lsr_onnx.task import NO_TEMPLATE
from pipeline import evaluation, params, score
from pipeline.core import artifacts
from pipeline.data import datasets, tokens
from pipeline.predict.__main__ import main as predict
from pipeline.tasks import Facts, completion
from pipeline.tasks.prompts import Prompts
from tests import architectures, kit, workspace, writers
from tests.kit import refused, said, table
from tests.lsr.serve.asking import ask_passes, generate, posted
from tests.pipeline.data.rows import frames
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, killed_training, report, run, run_in

ASKED = [{"role": "user", "content": "Where is the cat?"}]
TALK = [
    {"role": "system", "content": "in short"},
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "in the barn"},
    {"role": "user", "content": "Where is the dog?"},
]
SPACED = (
    "{% for message in messages %}{% if message.role == 'user' %}[{{ message.content }}]{% else %} "
    "{{ message.content }}<|end|>{% endif %}{% endfor %}"
)
CHANGED = "{% for message in messages %}{{ message.content | upper }}<|end|>{% endfor %}"


def learned(tokenizer, example):
    """The text, with what is learned of it in braces; every learned token is the token itself."""
    text, inside = "", False
    for token, label in zip(*example, strict=True):
        assert label in (-100, token)
        if (label == token) != inside:
            text, inside = text + "}{"[not inside], not inside
        text += tokenizer.decode([token])
    return text + "}" * inside


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (writers.TEMPLATE, ASKED, "<|start|>user\nWhere is the cat?<|end|>\n<|start|>assistant\n{in the wood<|end|>}"),
        (
            writers.TEMPLATE,
            TALK,
            "<|start|>system\nin short<|end|>\n<|start|>user\nWhere is the cat?<|end|>\n<|start|>assistant\n"
            "{in the barn<|end|>}\n<|start|>user\nWhere is the dog?<|end|>\n<|start|>assistant\n{in the wood<|end|>}",
        ),
        (SPACED, TALK[1:], "[Where is the cat?]{in the barn<|end|>}[Where is the dog?]{in the wood<|end|>}"),
        (NO_TEMPLATE, ASKED, "Where is the cat?{in the wood<|end|>}"),
    ],
    ids=["prompt", "conversation", "a space before answers", "no template"],
)
def test_the_answers_and_their_end_token_are_learned_and_nothing_else(template, messages, text):
    tokenizer = writers.tokenizer()
    prompts = Prompts(tokenizer, template)
    example = prompts.example(messages, "in the wood")
    assert learned(tokenizer, example) == text
    assert example.answer == len(tokenizer("in the wood").input_ids) + 1
    if messages == ASKED:  # what is learned is what is asked
        assert prompts.prompt(messages) == example.ids[: -example.answer]


def test_an_answer_ends_with_the_token_of_the_template_or_else_of_the_tokenizer():
    own = writers.tokenizer(eos_token=writers.PAD, additional_special_tokens=[writers.START, writers.END])
    assert own.decode(Prompts(own).end) == writers.END
    assert own.decode(Prompts(own, NO_TEMPLATE).end) == writers.PAD
    assert Prompts(own).text([*own("in the barn").input_ids, Prompts(own).end, 7]) == "in the barn"
    assert Prompts(writers.tokenizer(template=None)).template == NO_TEMPLATE
    refused(Prompts, writers.tokenizer(template=None, eos_token=None), says="the tokenizer has no end token")
    refused(Prompts(own, CHANGED).example, TALK, "x", kind=ValueError, says="the chat template changes an answer")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A function that makes a workspace and goes there."""

    def make(**changes):
        writers.make(tmp_path, **changes)
        monkeypatch.chdir(tmp_path)
        return params.load(params.TrainView)

    return make


def talk(*roles, content="hm"):
    return {"talk": [{"role": role, "content": content} for role in roles]}


OVER = {"names": ["few", "many"], "threshold": 60.0, "margin": 5.0}
IN_WORDS = {**writers.ROW, "text": ["{animal}: how many?"], "label": {"completion": "at", **OVER}}
TALKS = {**writers.ROW, "label": {"messages": "talk"}}
del TALKS["text"]
RATED = workspace.ROWS["ratings"] | {"source": writers.ROW["source"]}


@pytest.mark.parametrize(
    ("row", "written", "says"),
    [
        (writers.ROW, [*writers.rows(), writers.rows()[0] | {"place": " "}], "line 121: the completion is empty"),
        (writers.ROW, [writers.rows()[0] | {"place": ["a"]}], "line 1: expected a string, got ['a']"),
        (TALKS, [talk("user", "assistant"), talk("user")], "line 2: no conversation; needed: a list of at least two"),
        (TALKS, [talk("user", "assistant", "user")], "line 1: the conversation must end with the assistant, got user"),
        (TALKS, [talk("user", "asistant")], "message 2: no role 'asistant'; did you mean assistant?; system, user"),
        (TALKS, [talk("user", "assistant", content="")], "message 1: content must be a text that is not empty, got ''"),
        ({**writers.ROW, "label": {"messages": "talk"}}, None, "messages hold the whole example: leave out text"),
        ({**writers.ROW, "text": ["a", "b"]}, None, "a completion has one text, its prompt"),
        ({**writers.ROW, "label": {"completion": "at", "threshold": 1.0}}, None, "threshold: requires two names: one"),
        (IN_WORDS, [{"at": "x", "animal": "cat"}], "line 1: label 'x' is not a finite number"),
        (RATED | {"template": "none"}, None, "needs a label of compl"),
        (RATED | {"select": "exact_match"}, None, "select: needs a lab"),
        ({**writers.ROW, "select": "exact_match:0"}, None, "writing.select: string should match"),
    ],
)
def test_a_mistake_is_refused_in_one_line_that_says_where(here, row, written, says):
    def load():
        view = here(row=row, written=written)
        return datasets.load(view.dataset, "writing")

    refused(load, says=says)


def test_what_is_said_in_words_is_in_the_splits_of_what_is_classified(here):
    """Whatever a template adds; so the accuracies of an encoder and of what a model writes are of the same texts."""
    written = [{"at": str(at), "animal": f"animal {at}"} for at in range(120)]
    classified = {**IN_WORDS, "text": ["animal"], "label": {"column": "at", **OVER}, "metrics": ["accuracy"]}
    words, classes = (datasets.load(here(row=row, written=written).dataset, "it") for row in (IN_WORDS, classified))
    assert words.dropped == classes.dropped == {"missing": 0, "within_margin": 9, "duplicate": 0}
    in_words, in_classes = frames(words), frames(classes)
    for split, its in in_classes.items():
        assert in_words[split]["text"].tolist() == [f"{one}: how many?" for one in its["text"]]
        assert in_words[split]["expected"].tolist() == [OVER["names"][one] for one in its["label"]]
    rows = workspace.read_yaml(workspace.ROOT / "pipeline/datasets.yaml")
    both = [rows[name] for name in ("movie-reviews", "movie-reviews-in-words")]
    assert both[1]["label"].pop("completion") == both[0]["label"].pop("column")
    assert all(both[0][key] == both[1][key] for key in ("source", "label", "split", "select_on"))


def test_an_encoder_a_head_and_a_length_that_nothing_fits_are_refused(here):
    here(written=[row | {"place": f"far {row['place']}, very far"} for row in writers.rows()])
    run(TOKENIZE)
    for changes, stage, says in (
        ({"adapter": "full"}, FACTORIZE, "params.yaml: adapter: full: a language model has no head"),
        ({"tokenize": {"max_length": 8}}, TOKENIZE, "tokenize.max_length: no completion of train fits 8 tokens"),
        ({"model": "tiny"}, TOKENIZE, "tiny-roberta: no AutoModelForCausalLM, which must read from left to right, is"),
    ):
        workspace.change(**changes)
        refused(run, stage, says=says)


def test_prompts_are_cut_from_the_left_and_answers_that_do_not_fit_are_left_out(here):
    rows = writers.rows()
    rows[3]["place"] = "far " * 40
    view = here(written=rows, row={**writers.ROW, "template": "none"}, evaluate={"max_new_tokens": 4})
    workspace.change(tokenize={"max_length": 14})
    run(TOKENIZE)
    splits = {line["part"]: line for line in table(artifacts.TOKENIZE_SPLITS)}
    assert splits["left out: too long"]["rows"] == "1"
    assert splits["train"]["truncated_share"] == "1"
    prompts = writers.tokenizer()
    train = tokens.load_tokens("train")
    texts = tokens.load_texts("train")
    columns = (train["input_ids"], train["label"], texts["prompt"], texts["expected"])
    for ids, labels, prompt, expected in zip(*columns, strict=True):
        whole = [*prompts(prompt).input_ids, *prompts(expected).input_ids, 2]
        assert (ids, len(ids)) == (whole[-14:], 14)
        assert [label for label in labels if label != -100] == [*prompts(expected).input_ids, 2]
    assert view.dataset.template == "none"


def test_a_model_without_a_template_or_padding_writes_as_far_as_its_positions_reach(here):
    here(lsr={"target_modules": "all-linear", "learning_rate": 0.02}, evaluate={"max_new_tokens": 4})
    architectures.save(Path("plain"), "gpt2")
    workspace.change(model="plain", tokenize={"max_length": 30})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    found = report(artifacts.EVALUATE_METRICS)
    assert found["loss"] < found["loss_baseline"]
    assert report(artifacts.ADAPTER / "task.json")["template"] == "none"
    refused(
        predict, ["Where?", "--max-new-tokens", "60"], says="--max-new-tokens: the model takes at most 64 tokens, got "
    )
    workspace.change(evaluate={"max_new_tokens": 60})
    refused(
        run, EVALUATE, says="tokenize.max_length and evaluate.max_new_tokens: the model takes at most 64 tokens, got "
    )


LEARNS = {"rank_shape": [12], "separation_rank": "auto", "target_modules": "all-linear", "learning_rate": 0.02}


def test_what_is_written_chooses_the_checkpoint_and_a_killed_run_ends_with_the_same_bytes(here, monkeypatch):
    here(row={**writers.ROW, "select": "exact_match:9"}, lsr=LEARNS, train={"epochs": 10, "weight_decay": 0.0})
    run(TOKENIZE, FACTORIZE, TRAIN)
    undisturbed = kit.digests(artifacts.ADAPTER, artifacts.TRAIN_METRICS.parent)
    killed_training(monkeypatch, 8.5)
    run(TRAIN)
    assert kit.digests(artifacts.ADAPTER, artifacts.TRAIN_METRICS.parent) == undisturbed
    model, prompts = adapters.load_adapter(artifacts.ADAPTER, "writer"), Prompts(writers.tokenizer())
    texts = tokens.load_texts("validation")
    step = math.ceil(len(texts["prompt"]) / 9)
    asked = [prompts.prompt(completion.to_user_message(prompt)) for prompt in texts["prompt"][::step]]
    found = [evaluation.write(model, prompts, [one], 12, 1)[0] for one in asked]
    right = [one == other for one, other in zip(found, texts["expected"][::step], strict=True)]
    assert 0 < report(artifacts.TRAIN_METRICS)["best_score"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert len(right) <= 9 < len(texts["prompt"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder after all stages in which an adapter has learned where animals are."""
    changes = {"evaluate": {"max_new_tokens": 12, "batch_size": 7}, "train": {"epochs": 16, "weight_decay": 0.0}}
    folder = writers.make(tmp_path_factory.mktemp("writing"), lsr=LEARNS, **changes)
    return run_in(folder, TOKENIZE, FACTORIZE, TRAIN, EVALUATE)


@pytest.mark.parametrize(
    ("text", "expected", "score"),
    [
        ("the cat sat on the mat", "the cat is on the mat.", 10 / 12),  # five words in this order, of six each
        ("The CAT", "the cat!", 1.0),
        ("mat the on", "on the mat", 2 / 6),
        ("", "word", 0.0),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence_of_words(text, expected, score):
    assert completion.compare("rouge_l", [text, expected], [expected, text]) == pytest.approx(score)


def test_predict_prints_an_answer_as_it_is_or_adds_a_column(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    scored = table(artifacts.EVALUATE_PREDICTIONS)
    few = ["--max-new-tokens", "12"]
    assert said(predict, scored[0]["prompt"], *few) == scored[0]["said"] + "\n"
    kit.write(tmp_path / "in.csv", [{"id": at, "text": row["prompt"]} for at, row in enumerate(scored)])
    out = tmp_path / "out.csv"
    said(predict, "--file", str(tmp_path / "in.csv"), "--column", "text", "--out", str(out), "--batch-size", "3", *few)
    found = table(out)
    assert [row["answer"] for row in found] == [row["said"] for row in scored]
    assert list(found[0]) == ["id", "text", "answer"]
    says = "--strict: row 1: the text has more than 64 tokens; at most that are read"
    refused(predict, ["the cat sat on the mat " * 20, "--strict", *few], says=says)
    # The template is the adapter's own, whatever the tokenizer's has become since.
    monkeypatch.setattr(writers, "TEMPLATE", "{{ messages }}")
    writers.save(tmp_path / "base", "{{ messages }}")
    assert said(predict, "--base", str(tmp_path / "base"), scored[0]["prompt"], *few) == scored[0]["said"] + "\n"
    refused(score.main, ["writing", str(artifacts.ADAPTER)], says="what is written is scored by the stage evaluate")


def test_a_bank_answers_over_http_as_predict_does_by_the_template_and_the_ends_of_each_adapter(trained, monkeypatch):
    monkeypatch.chdir(trained)
    scored, tokenizer = table(artifacts.EVALUATE_PREDICTIONS)[:5], writers.tokenizer()
    asked, texts = [row["prompt"] for row in scored], [row["said"] for row in scored]
    bank = AdapterBank(AutoModelForCausalLM.from_pretrained("writer"))
    bank.add("own", artifacts.ADAPTER)
    short = tokenizer(texts[0]).input_ids[1]
    bank.add("bare", artifacts.ADAPTER, task_info={"template": NO_TEMPLATE, "stop_token_ids": [2]})
    stopping = report(artifacts.ADAPTER / "task.json") | {"stop_token_ids": [short]}
    bank.add("short", artifacts.ADAPTER, task_info=stopping)
    bank.add("shouts", artifacts.ADAPTER, task_info={"template": CHANGED + "{{ raise_exception('no roles') }}"})
    passes = BatchRunner(bank, tokenizer, 128, 12)
    requests = [generate(name, 12, *asked) for name in ("own", "bare", "short")]
    talks = generate("own", 12, *([{"role": "user", "content": one}] for one in asked))
    own, bare, cut, talk, shouts = ask_passes(passes, posted(*requests, talks, generate("shouts", 2, "a")))
    said = [[answer["text"] for answer in response.json()["answers"]] for response in (own, talk, bare, cut)]
    assert said[:2] == [texts, texts]
    model, prompts = adapters.load_adapter(artifacts.ADAPTER, "writer"), Prompts(tokenizer, NO_TEMPLATE)
    alone = [prompts.prompt(completion.to_user_message(one)) for one in asked]
    assert said[2] == evaluation.write(model, prompts, alone, 12, 1) != texts
    assert said[3][0] == tokenizer.decode(tokenizer(texts[0]).input_ids[:2])
    assert shouts.json() == {"error": "prompts[0]: the chat template refuses it: no roles"}
    for task_info in ({"template": 1}, {"stop_token_ids": [True]}, {"stop_token_ids": "x"}):
        says = f"task.json: {next(iter(task_info))} must be a "
        refused(bank.add, "own", artifacts.ADAPTER, task_info=task_info, replace=True, says=says)


@torch.no_grad()
def test_the_validation_score_is_printed_as_the_loss_that_transformers_computes(tmp_path, monkeypatch, capsys):
    writers.make(tmp_path, adapter="lora", train={"epochs": 1})
    monkeypatch.chdir(tmp_path)
    run(TOKENIZE, FACTORIZE)
    capsys.readouterr()
    with torch.enable_grad():
        run(TRAIN)
    printed = capsys.readouterr().out
    folder = params.load(params.TrainView).base_model.source.path
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(artifacts.ADAPTER)).eval()
    total, count = 0.0, 0
    for row in tokens.load_tokens("validation"):
        labels = torch.tensor([row["label"]])
        written = int((labels[:, 1:] != -100).sum())
        total += written * float(model(torch.tensor([row["input_ids"]]), labels=labels).loss)
        count += written
    (line,) = re.findall(r"^train: epoch \| validation loss\n  1 \| (.*)$", printed, re.MULTILINE)
    assert float(line) == pytest.approx(total / count, rel=1e-3)
    assert "validation score" not in printed
    assert f"\nloss {total / count:.4g} on the validation split" in (artifacts.ADAPTER / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        (completion.CompletionDescription, "Where is the dog?"),
        (completion.ConversationDescription, json.dumps(TALK)),
    ],
)
@pytest.mark.parametrize(("said", "shown"), [("in the barn", "in the barn"), (" ", "(nothing)")])
def test_the_screen_shows_what_is_answered_and_not_a_whole_conversation(said, shown, kind, prompt):
    answered = pd.DataFrame([{"prompt": prompt, "said": said, "right": "no", "expected": "in the wood"}])
    description = kind(SimpleNamespace(label=None), Facts())
    lines = list(description.results({"loss": 1.5, "loss_baseline": 2.5}, lambda path: answered))
    assert lines[-1] == ("e.g.", f"Where is the dog? -> {shown} (expected: in the wood)")
