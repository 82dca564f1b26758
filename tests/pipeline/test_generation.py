"""What a language model learns and writes is what plain transformers computes and generates for each prompt alone.

The model is loaded from its checkpoint in float32, the adapter from artifacts/adapter, and the prompts from the user's
files.
"""

import shutil
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import reference, rows, tiny
from tests.helpers import change_params, edit, printed, read_json, read_table, refused, run_stages, write

ADAPTER = Path("artifacts/adapter")
LENGTH = 48  # tokens
SHORT = 25  # tokens, which most examples exceed
NEW_TOKENS = 9
MOST = 14  # new tokens
CLAUSES = ("now ", "so ", "at night ", "nobody saw it: ")
PROMPT = "{more}Where is the {animal} number {at}?"
END = "<|im_end|>"
SIZES = {"train": 40, "validation": 8, "test": 14}
ENTRY = {
    "source": {"kind": "files", "files": {split: f"data/{split}.jsonl" for split in SIZES}},
    "text": [PROMPT],
    "label": {"completion": "place"},
    "metrics": ["exact_match", "rouge_l"],
}
WRITING = {"evaluate": {"max_new_tokens": 4}}
ALL_LAYERS = {"target_modules": "all-linear", "learning_rate": 0.02}
SHARED = {"rank_shape": [6], "separation_rank": 1, "share": "layers", "train": "all"}
CASES = {  # the architecture, whether its tokenizer has a chat template, and the adapter
    "llama": (True, {"adapter": "lsr", "lsr": ALL_LAYERS | SHARED}),
    "gpt2": (False, {"adapter": "lora", "lora": ALL_LAYERS | {"lora_dropout": 0.1}}),
}


def split_rows():
    """Return the rows of each split, whose prompts and completions have many lengths."""
    made = [vary(number, row) for number, row in enumerate(rows.examples(sum(SIZES.values())))]
    splits = {}
    for split, count in SIZES.items():
        splits[split] = made[:count]
        made = made[count:]
    return splits


def vary(number, row):
    more = CLAUSES[number // 4 % 4]
    place = row["place"] + " by the wood" * (number % 2)
    return row | {"at": str(row["at"]), "more": more, "place": place}


def make(folder, architecture, has_template=True, entry=ENTRY, splits=None, **params):
    """Make a workspace in which a language model learns the rows of files."""
    sizes = {"tokenize": {"max_length": LENGTH}, "evaluate": {"max_new_tokens": NEW_TOKENS}}
    rows.make_workspace(folder, "completion", architecture, entries={"completion": entry}, **sizes | params)
    for split, its in (splits or split_rows()).items():
        write(folder / f"data/{split}.jsonl", its)
    base = folder / f"models/{architecture}"
    if has_template:  # another end token than that of the template
        edit(base / "tokenizer_config.json", eos_token="<unk>", additional_special_tokens=[END])
    else:
        (base / "chat_template.jinja").unlink()
    return folder


class Known(NamedTuple):
    """A trained workspace, its task.json and test split, and plain transformers with and without the adapter."""

    folder: Path
    base: Path
    task: dict
    rows: list[dict]  # of predictions.csv
    tokenizer: object
    model: object
    without: object


@pytest.fixture(scope="module", params=CASES)
def known(request, tmp_path_factory):
    has_template, adapter = CASES[request.param]
    training = {"epochs": 4, "head_learning_rate": 0.002}
    folder = tmp_path_factory.mktemp(request.param) / "workspace"
    run_stages(make(folder, request.param, has_template, train=training, **adapter))
    base = folder / f"models/{request.param}"
    task = read_json(folder / ADAPTER / "task.json")
    scored = read_table(folder / "reports/evaluate/predictions.csv")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = reference.load_alone(base, folder / ADAPTER)
    return Known(folder, base, task, scored, tokenizer, model, reference.load_alone(base))


def writes(known, prompts, max_new_tokens, model=None):
    """Return what plain `generate` writes after each prompt alone."""
    end = {"eos_token_id": known.task["stop_token_ids"], "pad_token_id": 1}
    return reference.generate_alone(model or known.model, known.tokenizer, prompts, max_new_tokens, **end)


def prompts_of(known):
    return [row["prompt"] for row in known.rows]


def loss_of(model, examples):
    """Return the mean loss per token of answers, each given as token ids after those of its prompt."""
    losses = []
    for prompt, answer in examples:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].double()
        predicted = logits[len(prompt) - 1 : -1]
        losses += cross_entropy(predicted, torch.tensor(answer), reduction="none").tolist()
    return np.mean(losses)


def ids_of(tokenizer, prompt, completion):
    """Return the token ids of a prompt, and those of its completion and the end token."""
    answer = tokenizer(completion, add_special_tokens=False).input_ids
    return reference.prompt_ids(tokenizer, prompt)[0].tolist(), [*answer, end_of(tokenizer)]


def end_of(tokenizer):
    """Return the token that ends an answer: that of the chat template if it is a special one, else the tokenizer's."""
    return tokenizer.convert_tokens_to_ids(END) if END in tokenizer.all_special_tokens else tokenizer.eos_token_id


def loss_of_pairs(model, tokenizer, examples):
    return loss_of(model, [ids_of(tokenizer, *example) for example in examples])


def pairs(split):
    """Return prompts and completions."""
    return [(PROMPT.format(**row), row["place"]) for row in split]


def test_the_test_split_is_answered_as_plain_generate_does(known):
    expected = dict(pairs(split_rows()["test"]))
    written = writes(known, prompts_of(known), NEW_TOKENS)
    assert len({len(text) for text in written}) > 3
    assert set(known.task["stop_token_ids"]) == {known.tokenizer.eos_token_id, end_of(known.tokenizer)}
    assert set(prompts_of(known)) == set(expected)
    for row, text in zip(known.rows, written, strict=True):
        is_right = text.strip() == expected[row["prompt"]]
        assert row["said"] == text
        assert row["expected"] == expected[row["prompt"]]
        assert row["right"] == ("yes" if is_right else "no")


def test_scores_and_losses_are_those_of_plain_generate_with_and_without_the_adapter(known):
    expected = dict(pairs(split_rows()["test"]))
    report = read_json(known.folder / "reports/evaluate/metrics.json")
    found = report | report["details"][0]
    answers = [expected[prompt] for prompt in prompts_of(known)]
    for end, model in (("", known.model), ("_baseline", known.without)):
        written = writes(known, prompts_of(known), NEW_TOKENS, model)
        are_right = [text.strip() == answer for text, answer in zip(written, answers, strict=True)]
        overlaps = [reference.rouge_l(text, answer) for text, answer in zip(written, answers, strict=True)]
        assert found[f"exact_match{end}"] == pytest.approx(np.mean(are_right), abs=1e-6)
        assert found[f"rouge_l{end}"] == pytest.approx(np.mean(overlaps), abs=1e-6)
        loss = loss_of_pairs(model, known.tokenizer, zip(prompts_of(known), answers, strict=True))
        assert found[f"loss{end}"] == pytest.approx(loss, rel=1e-4)
    assert found["loss"] < found["loss_baseline"]
    assert found["score"] == found["exact_match"]


@pytest.mark.parametrize(("max_new_tokens", "size"), [(3, 4), (MOST, 64)])
def test_predict_writes_what_plain_generate_writes(known, tmp_path, max_new_tokens, size):
    prompts = prompts_of(known)
    file = write(tmp_path / "prompts.csv", [{"id": number, "text": text} for number, text in enumerate(prompts)])
    limits = ["--max-new-tokens", max_new_tokens, "--batch-size", size]
    with chdir(known.folder):
        of_file = read_table(printed("pipeline.predict", "--file", file, "--column", "text", *limits))
        alone = printed("pipeline.predict", prompts[0], *limits)
    expected = writes(known, prompts, max_new_tokens)
    assert [row["answer"] for row in of_file] == expected
    assert [int(row["id"]) for row in of_file] == list(range(len(prompts)))
    assert alone == expected[0] + "\n"


def test_a_prompt_that_is_too_long_is_truncated_on_the_left(known):
    prompt = "at night the cat sleeps in the barn and " * 6 + "where is it?"
    with chdir(known.folder):
        answer = printed("pipeline.predict", prompt, "--max-new-tokens", NEW_TOKENS)
    ids = reference.prompt_ids(known.tokenizer, prompt)[:, -LENGTH:]
    mask = torch.ones_like(ids)
    end = known.task["stop_token_ids"]
    tokens = known.model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, eos_token_id=end)
    assert answer == known.tokenizer.decode(tokens[0, LENGTH:], skip_special_tokens=True) + "\n"


def test_the_template_is_that_of_the_training_whatever_becomes_of_the_tokenizer(known, tmp_path):
    prompt = known.rows[0]["prompt"]
    base = shutil.copytree(known.base, tmp_path / "base")
    write(base / "chat_template.jinja", "{{ messages }}")
    with chdir(known.folder):
        answer = printed("pipeline.predict", prompt, "--base", base, "--max-new-tokens", NEW_TOKENS)
    assert answer == known.rows[0]["said"] + "\n"


def test_an_encoder_and_a_head_are_rejected(tmp_path):
    folder = make(tmp_path, "llama", adapter="full")
    tiny.save_base(folder / "models/bert", "bert")
    run_stages(folder, "tokenize")
    with chdir(folder):
        refused("stages.factorize_init", says="full")
        change_params(folder, model="models/bert", adapter="lora")
        refused("stages.tokenize", says="bert")


@pytest.mark.parametrize("form", ["merged", "lora"])
def test_an_export_writes_with_plain_transformers_what_the_adapter_writes(known, tmp_path, form):
    prompts = prompts_of(known)
    with chdir(known.folder):
        printed("lsr", "export", ADAPTER, "--to", form, "-o", tmp_path / form)
    if form == "merged":
        model = AutoModelForCausalLM.from_pretrained(tmp_path / form)
        assert model.dtype == torch.float32
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / form)
        assert tokenizer.chat_template == known.tokenizer.chat_template
    else:
        base = AutoModelForCausalLM.from_pretrained(known.base, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(tmp_path / form))
    assert writes(known, prompts, MOST, model.eval()) == writes(known, prompts, MOST)


# What is learned.

FRESH = {"lsr": ALL_LAYERS, "train": {"epochs": 1, "batch_size": 64, "head_learning_rate": 0.002}}


def learn(folder):
    """Run the stages up to training; return the losses of its one step and of the validation split after it."""
    run_stages(folder, "tokenize", "factorize_init", "train")
    losses = []
    for name in ("loss", "validation_loss"):
        [row] = read_table(folder / f"reports/train/curves/{name}.csv")
        losses.append(float(row[name]))
    return losses


@pytest.mark.parametrize(("architecture", "has_template"), [("llama", True), ("gpt2", False), ("qwen3", True)])
def test_the_completion_and_its_end_token_are_learned_and_nothing_else(tmp_path, architecture, has_template):
    folder = make(tmp_path, architecture, has_template, **FRESH)
    splits = split_rows()
    trained, validated = learn(folder)
    base = folder / f"models/{architecture}"
    tokenizer = AutoTokenizer.from_pretrained(base)
    before = reference.load_alone(base)
    after = reference.load_alone(base, folder / ADAPTER)
    assert trained == pytest.approx(loss_of_pairs(before, tokenizer, pairs(splits["train"])), rel=1e-4)
    assert validated == pytest.approx(loss_of_pairs(after, tokenizer, pairs(splits["validation"])), rel=1e-4)
    assert f" {validated:.4g} " in (folder / ADAPTER / "README.md").read_text()  # with no minus


def test_the_last_answer_of_a_conversation_is_learned_after_the_turns_before_it(tmp_path):
    splits = {split: [talk(row) for row in its] for split, its in split_rows().items()}
    entry = {key: value for key, value in ENTRY.items() if key != "text"} | {"label": {"messages": "talk"}}
    folder = make(tmp_path, "llama", entry=entry, splits=splits, **FRESH | {"tokenize": {"max_length": 64}})
    trained, _ = learn(folder)
    model = reference.load_alone(folder / "models/llama")
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/llama")
    examples = []
    for row in splits["train"]:
        *turns, last = row["talk"]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        _, answer = ids_of(tokenizer, "", last["content"])
        examples.append((prompt, answer))
    assert trained == pytest.approx(loss_of(model, examples), rel=1e-4)


def talk(row):
    turns = {"system": "so", "user": PROMPT.format(**row), "assistant": row["place"]}
    return {"talk": [{"role": role, "content": content} for role, content in turns.items()]}


def test_long_prompts_are_truncated_on_the_left_and_examples_whose_completion_does_not_fit_are_left_out(tmp_path):
    splits = split_rows()
    splits["train"][3]["place"] = "in the barn " * 20
    limit = {"tokenize": {"max_length": SHORT}}
    folder = make(tmp_path, "gpt2", has_template=False, splits=splits, **FRESH | limit)
    trained, _ = learn(folder)
    parts = {row["part"]: row for row in read_table(folder / "reports/tokenize/splits.csv")}
    model = reference.load_alone(folder / "models/gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/gpt2")
    kept = splits["train"][:3] + splits["train"][4:]
    examples = [ids_of(tokenizer, *pair) for pair in pairs(kept)]
    lengths = [len(prompt + answer) for prompt, answer in examples]
    are_long = [length > SHORT for length in lengths]
    cut = [((prompt + answer)[-SHORT : -len(answer)], answer) for prompt, answer in examples]
    assert parts["left out: too long"]["rows"] == "1"
    assert parts["train"]["rows"] == str(len(kept))
    assert float(parts["train"]["truncated_share"]) == pytest.approx(np.mean(are_long), abs=1e-5)
    assert any(are_long) > all(are_long)
    assert trained == pytest.approx(loss_of(model, cut), rel=1e-4)


def test_more_tokens_than_the_model_has_positions_are_rejected(copied):
    folder = copied("completion", "gpt2", **WRITING)
    refused("pipeline.predict", "Where?", "--max-new-tokens", 60, says="--max-new-tokens")
    change_params(folder, evaluate={"max_new_tokens": 60})
    refused("stages.evaluate", says="max_new_tokens")


@pytest.mark.xfail(reason="evaluate truncates a prompt to make room for the expected answer", strict=True)
def test_predict_and_evaluate_answer_alike_to_prompts_that_do_not_fit_beside_their_answer(trained):
    folder = trained("completion", "gpt2", **WRITING)
    scored = read_table(folder / "reports/evaluate/predictions.csv")
    prompts = [row["prompt"] for row in scored]
    with chdir(folder):
        answers = read_table(printed("pipeline.predict", *prompts, "--max-new-tokens", 4))
    assert [row["answer"] for row in answers] == [row["said"] for row in scored]


CHANGED = {  # methods that change weights of the base model itself, or have no layers that could be switched off
    "pissa": ("gpt2", {"adapter": "lora", "lora": {"init_lora_weights": "pissa"}}),
    "olora": ("llama", {"adapter": "lora", "lora": {"init_lora_weights": "olora"}}),
    "bitfit": ("gpt2", {"adapter": "bitfit"}),
}


@pytest.mark.parametrize("method", CHANGED)
def test_the_baseline_is_the_loss_of_the_checkpoint_whatever_the_adapter_changes(trained, method):
    architecture, adapter = CHANGED[method]
    folder = trained("completion", architecture, tokenize={"max_length": LENGTH}, **WRITING, **adapter)
    base = folder / f"models/{architecture}"
    tokenizer = AutoTokenizer.from_pretrained(base)
    scored = read_table(folder / "reports/evaluate/predictions.csv")
    examples = [(row["prompt"], row["expected"]) for row in scored]
    expected = loss_of_pairs(reference.load_alone(base), tokenizer, examples)
    report = read_json(folder / "reports/evaluate/metrics.json")
    assert report["details"][0]["loss_baseline"] == pytest.approx(expected, rel=1e-4)
    assert report["loss"] != pytest.approx(expected, rel=1e-4)
