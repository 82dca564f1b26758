"""Every task type, from the rows of a file to its scores, held to numpy, scikit-learn, scipy and plain transformers."""

import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from scipy import special
from transformers import AutoModelForCausalLM, AutoTokenizer, RobertaForSequenceClassification

from pipeline import evaluation, params, tasks
from pipeline.data import base_models, datasets
from pipeline.methods.adapter_task import AdapterTask
from pipeline.methods.batches import tokenizer_of
from pipeline.tasks.prompts import Prompts
from tests import workspace, writers
from tests.kit import write
from tests.pipeline.data.rows import frames
from tests.pipeline.tasks import references
from tests.pipeline.tasks.references import RESAMPLES

ANIMALS = ("cat", "dog", "owl", "fox")
PLACES = ("garden", "barn", "river")
LEVELS = ("bad", "fair", "good")
TAGS = ("awake", "cat", "wet")
SHOPS = {"acme": ("no", "yes"), "bolt": ("x", "y", "z"), "cast": ("no", "yes")}
THRESHOLDS = (0.4, 0.5, 0.6)
LENGTH = 24
NEW_TOKENS = 6
CUT = {"validation": 0.2, "test": 0.4}
ENTRIES = workspace.read_yaml(Path(__file__).with_name("types.yaml"))
CLOSE = 1e-4  # of correlations of outputs in float32
CORRELATIONS = ("pearson", "spearman", "matthews_correlation")


def sentence(number):
    return f"the {ANIMALS[number % 4]} number {number} sleeps in the {PLACES[number % 3]}"


class Classes:
    """One of three classes."""

    columns = ("text",)  # in task.json
    names = LEVELS
    width = 3

    @property
    def names_of_parts(self):
        return [self.names]

    def rows(self):
        return [{"text": sentence(number), "label": LEVELS[number * number % 7 % 3]} for number in range(120)]

    def actual(self, examples):
        by_text = {row["text"]: LEVELS.index(row["label"]) for row in self.rows()}
        return np.array([by_text[text] for text in examples["text"]])

    def parts(self, examples, outputs):
        return [references.of_classes(self.actual(examples), outputs)]

    def table(self, examples, parts):
        names = np.array(self.names)
        return {"actual": names[self.actual(examples)], "predicted": names[parts[0].predicted]}

    def printed(self, part, names):
        shares = special.softmax(part.outputs.astype(float), axis=1)
        likeliest = np.array(names)[shares.argmax(axis=1)]
        return {"label": likeliest, **probabilities(names, shares)}


class Pairs(Classes):
    """Which of two texts has the larger number."""

    columns = ("text", "text_pair")
    names = ("first", "second")
    width = 2

    def rows(self):
        return [{"text": sentence(number), "rating": number * number % 41 / 10} for number in range(200)]

    def actual(self, examples):
        by_text = {row["text"]: row["rating"] for row in self.rows()}
        both = zip(examples["text"], examples["text_pair"], strict=True)
        return np.array([int(by_text[first] < by_text[second]) for first, second in both])


class Choices(Classes):
    """One of two texts to choose from."""

    columns = ("question", "{choice}")
    names = ("wrong", "right")
    width = 2

    def rows(self):
        rows = []
        for number in range(120):
            answer = ("left", "right")[number * number % 7 % 2]
            rows.append(
                {
                    "question": f"where does number {number} sleep?",
                    "left": sentence(number),
                    "right": sentence(number + 1),
                    "answer": answer,
                }
            )
        return rows

    def actual(self, examples):
        chosen = {row["question"]: row[row["answer"]] for row in self.rows()}
        both = zip(examples["text"], examples["text_pair"], strict=True)
        return np.array([int(chosen[question] == text) for question, text in both])

    def groups(self, examples):
        """The places of the two examples of each question."""
        places = examples.groupby("text", sort=False).indices
        return list(places.values())

    def parts(self, examples, outputs):
        return [references.of_choices(self.actual(examples), outputs, self.groups(examples))]

    def table(self, examples, parts):
        predicted = np.zeros(len(examples), int)
        for places, chosen in zip(self.groups(examples), parts[0].predicted, strict=True):
            predicted[places[chosen]] = 1
        names = np.array(self.names)
        return {"actual": names[self.actual(examples)], "predicted": names[predicted]}


class MultiLabel(Classes):
    """Any number of three labels."""

    names = TAGS

    def tags(self, number):
        return [tag for place, tag in enumerate(TAGS) if number * number % 11 >> place & 1]

    def rows(self):
        return [{"text": sentence(number), "tags": "|".join(self.tags(number))} for number in range(120)]

    def actual(self, examples):
        by_text = {row["text"]: row["tags"].split("|") for row in self.rows()}
        return np.array([[int(tag in by_text[text]) for tag in TAGS] for text in examples["text"]])

    def parts(self, examples, outputs):
        return [references.of_labels(self.actual(examples), outputs, THRESHOLDS)]

    def joined(self, applies):
        return ["; ".join(np.array(TAGS)[row == 1]) for row in applies]

    def table(self, examples, parts):
        return {"actual": self.joined(self.actual(examples)), "predicted": self.joined(parts[0].predicted)}

    def printed(self, part, names):
        shares = special.expit(part.outputs.astype(float))
        return {"label": self.joined(part.predicted), **probabilities(names, shares)}


class Numbers(Classes):
    """A number."""

    names = None
    width = 1

    def rows(self):
        return [{"text": sentence(number), "rating": number * number % 41 / 10} for number in range(120)]

    def actual(self, examples):
        by_text = {row["text"]: row["rating"] for row in self.rows()}
        return np.array([by_text[text] for text in examples["text"]])

    def parts(self, examples, outputs):
        return [references.of_numbers(self.actual(examples), outputs)]

    def table(self, examples, parts):
        return {"actual": self.actual(examples), "predicted": parts[0].predicted}

    def printed(self, part, names):
        return {"number": part.predicted}


class Tenants(Classes):
    """Classes of three tenants, two of whom have labels of the same names."""

    names = None
    names_of_parts = tuple(SHOPS.values())
    width = 7

    def rows(self):
        rows = []
        for place, (shop, labels) in enumerate(SHOPS.items()):
            for number in range(place, 180 + 40 * place, 3):
                rows.append({"shop": shop, "text": sentence(number), "label": labels[number // 3 % len(labels)]})
        return rows

    def of_shops(self, examples):
        """Each shop, the places of its examples, and where its outputs begin and end."""
        by_text = {row["text"]: row["shop"] for row in self.rows()}
        shops = np.array([by_text[text] for text in examples["text"]])
        begin = 0
        for shop, labels in SHOPS.items():
            end = begin + len(labels)
            yield shop, np.flatnonzero(shops == shop), slice(begin, end)
            begin = end

    def parts(self, examples, outputs):
        by_text = {row["text"]: row["label"] for row in self.rows()}
        labels = np.array([by_text[text] for text in examples["text"]])
        parts = []
        for shop, places, columns in self.of_shops(examples):
            actual = np.array([SHOPS[shop].index(label) for label in labels[places]])
            parts.append(references.of_classes(actual, outputs[places, columns]))
        return parts

    def table(self, examples, parts):
        columns = {name: np.empty(len(examples), object) for name in ("tenant", "actual", "predicted")}
        for part, (shop, places, _) in zip(parts, self.of_shops(examples), strict=True):
            names = np.array(SHOPS[shop], object)
            columns["tenant"][places] = shop
            columns["actual"][places] = names[part.actual]
            columns["predicted"][places] = names[part.predicted]
        return columns


class TenantsOfNumbers(Tenants):
    """A number of each tenant."""

    names_of_parts = (None, None, None)
    width = 3

    def rows(self):
        return [row | {"rating": place * place % 41 / 10} for place, row in enumerate(super().rows())]

    def parts(self, examples, outputs):
        by_text = {row["text"]: row["rating"] for row in self.rows()}
        ratings = np.array([by_text[text] for text in examples["text"]])
        parts = []
        for number, (_, places, _) in enumerate(self.of_shops(examples)):
            parts.append(references.of_numbers(ratings[places], outputs[places, number : number + 1]))
        return parts

    def table(self, examples, parts):
        columns = {name: np.empty(len(examples)) for name in ("actual", "predicted")}
        for part, (_, places, _) in zip(parts, self.of_shops(examples), strict=True):
            columns["actual"][places] = part.actual
            columns["predicted"][places] = part.predicted
        return columns

    printed = Numbers.printed


def probabilities(names, shares):
    return {f"p({name})": shares[:, number] for number, name in enumerate(names)}


TYPES = {
    "classes": Classes(),
    "pairs": Pairs(),
    "choices": Choices(),
    "multi-label": MultiLabel(),
    "number": Numbers(),
    "tenants": Tenants(),
    "tenants-of-numbers": TenantsOfNumbers(),
}


class Answered:
    """A task type whose test split a tiny encoder with a random head has answered."""

    def __init__(self, reference, name):
        self.reference = reference
        self.metrics = ENTRIES[name]["metrics"]
        entry = params.load_entry("data", name)
        loaded = datasets.load(entry, name)
        self.task = loaded.task.with_fitted(thresholds=THRESHOLDS if name == "multi-label" else None)
        self.examples = frames(loaded)["test"]
        model_entry = params.load_entry("model", "tiny")
        torch.manual_seed(0)
        self.model = base_models.load_base_model(model_entry, self.task)
        for parameter in self.model.classifier.parameters():
            torch.nn.init.normal_(parameter)
        tokenizer = tokenizer_of(self.model, model_entry)
        split = tokens_of(self.task, loaded, tokenizer, LENGTH)
        head = self.task.head
        outputs = evaluation.outputs(head, self.model, split, head.collator(tokenizer), 7)
        self.outcome = evaluation.outcome(outputs, split)
        plain = RobertaForSequenceClassification(self.model.config).eval()
        plain.load_state_dict(self.model.state_dict())
        columns = [column for column in ("text", "text_pair") if column in self.examples]
        texts = self.examples[columns].itertuples(index=False)
        self.alone = references.logits_alone(plain, AutoTokenizer.from_pretrained("tiny-roberta"), texts, LENGTH)
        self.parts = reference.parts(self.examples, self.alone)


def tokens_of(task, loaded, tokenizer, length):
    batches = loaded.splits["test"].batches(1000)
    return Dataset(pa.concat_tables([table for table, _ in task.preprocessor.tokenize(batches, tokenizer, length)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workspace with a file and an entry of each task type."""
    entries = {}
    files = {}
    for name in TYPES:
        files[name] = f"{name}.jsonl"
        entries[name] = ENTRIES[name] | {"split": CUT, "source": {"kind": "files", "files": {"train": files[name]}}}
    folder = workspace.make(tmp_path_factory.mktemp("types"), entries)
    for name, reference in TYPES.items():
        write(folder / files[name], reference.rows())
    return folder


@pytest.fixture(scope="module", params=TYPES)
def answered(request, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return Answered(TYPES[request.param], request.param)


def test_the_head_is_as_wide_as_the_labels_of_the_file_and_task_json_names_them(answered):
    reference = answered.reference
    assert answered.model.classifier.out_proj.out_features == answered.model.config.num_labels == reference.width
    assert answered.task.head.names == (reference.names or ())
    task_info = AdapterTask.of(answered.task, LENGTH)
    assert (task_info.columns, task_info.labels) == (reference.columns, reference.names)
    if reference.names:
        assert answered.model.config.id2label == dict(enumerate(reference.names))


def test_outputs_are_those_of_plain_transformers_for_each_text_alone(answered):
    outputs = answered.outcome.outputs.numpy()
    if isinstance(answered.reference, Tenants):
        for part, (_, places, _) in zip(answered.parts, answered.reference.of_shops(answered.examples), strict=True):
            width = part.outputs.shape[1]
            np.testing.assert_allclose(outputs[places, :width], part.outputs, atol=1e-5)
            assert (outputs[places, width:] < -1e30).all()  # never the largest
    else:
        np.testing.assert_allclose(outputs, answered.alone, atol=1e-5)


def test_the_table_has_the_labels_of_the_file_and_the_likeliest_answers(answered):
    table = answered.task.scoring.table(answered.outcome)
    for column, values in answered.reference.table(answered.examples, answered.parts).items():
        if np.asarray(values).dtype.kind == "f":
            np.testing.assert_allclose(np.array(table[column], float), values, rtol=1e-2)
        else:
            assert list(table[column]) == list(values)
    assert {"actual_group", "predicted_group"} <= table.keys()


def test_answers_are_printed_with_their_probabilities(answered):
    task_type = tasks.kinds()[answered.task.type.kind]
    for part, names in zip(answered.parts, answered.reference.names_of_parts, strict=True):
        thresholds = answered.task.facts.thresholds or ()
        printed = task_type.description.to_columns(part.outputs, names, thresholds)
        expected = answered.reference.printed(part, names)
        assert list(printed) == list(expected)
        for column, values in expected.items():
            if column == "label":
                assert printed[column] == list(values)
            else:
                np.testing.assert_allclose(printed[column], values, rtol=1e-5)


def test_scores_and_losses_are_those_of_scikit_learn_and_baselines_those_of_the_best_constants(answered):
    parts = answered.parts
    metrics = answered.task.scoring.metrics(answered.outcome, RESAMPLES)
    scores = answered.task.scoring.scores(answered.outcome)
    names = answered.metrics
    assert metrics["score"] == metrics[names[0]]
    assert metrics["examples"] == sum(len(part.actual) for part in parts)
    for name in names:
        expected = np.mean([references.metric_of(name, part) for part in parts])
        assert metrics[name] == pytest.approx(expected, abs=CLOSE) == scores[name]
        baseline = np.mean([references.baseline_of(name, part) for part in parts])
        assert metrics[f"{name}_baseline"] == pytest.approx(baseline, abs=1e-9)
    assert metrics["loss"] == pytest.approx(np.mean([part.loss for part in parts]), rel=1e-4)
    assert metrics["loss_baseline"] == pytest.approx(np.mean([part.constant_loss for part in parts]), rel=1e-6)


def test_intervals_are_exact_or_those_of_resamples_and_of_tenants_that_of_their_mean(answered):
    parts = answered.parts
    metrics, each = answered.task.scoring.parts(answered.outcome, RESAMPLES)
    for name in answered.metrics:
        intervals = [references.interval_of(name, part) for part in parts]
        for scored, interval in zip(each.values(), intervals, strict=True):
            assert (scored[f"{name}_low"], scored[f"{name}_high"]) == pytest.approx(interval, abs=CLOSE)
        expected = intervals[0]
        if len(parts) > 1:
            values = [references.metric_of(name, part) for part in parts]
            expected = references.interval_of_mean(values, intervals, -1.0 if name in CORRELATIONS else 0.0)
        assert (metrics[f"{name}_low"], metrics[f"{name}_high"]) == pytest.approx(expected, abs=CLOSE)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Prompts that two tiny language models have completed; every other text is the expected one."""
    with pytest.MonkeyPatch.context() as patch:
        entry = writers.ROW | {"text": ["text"], "label": {"completion": "answer"}}
        folder = writers.make(tmp_path_factory.mktemp("written"), entry)
        patch.chdir(folder)
        return Completed()


class Completed:
    """A test split that two language models have completed: one in place of a trained one, and the base model."""

    def __init__(self):
        self.base = drawn(AutoModelForCausalLM.from_pretrained("writer"), seed=1)
        self.plain = drawn(AutoModelForCausalLM.from_pretrained("writer"), seed=2)
        self.plain.save_pretrained("writer")
        self.tokenizer = writers.tokenizer()
        rows = []
        for number in range(60):
            text = sentence(number)
            answer = f"in the {PLACES[number % 3]}"
            if number % 2:
                answer = references.written_alone(self.plain, self.tokenizer, text, NEW_TOKENS)
            rows.append({"text": text, "answer": answer if answer.strip() else "nowhere"})
        write("writing.jsonl", rows)
        self.answers = {row["text"]: row["answer"] for row in rows}
        entry = params.load_entry("data", "writing")
        loaded = datasets.load(entry, "writing")
        self.task = loaded.task
        model_entry = params.load_entry("model", "writer")
        model = base_models.load_base_model(model_entry, self.task)
        prompts = Prompts(tokenizer_of(model, model_entry))
        split = tokens_of(self.task, loaded, prompts.tokenizer, 64)
        outcome = evaluation.evaluate_generation(self.task, model, split, prompts, NEW_TOKENS, 7)
        without_adapter = evaluation.evaluate_generation(self.task, self.base, split, prompts, NEW_TOKENS, 7)
        outputs = without_adapter.outputs
        self.outcome = replace(outcome, base_outputs=outputs, base_texts=without_adapter.texts)
        self.prompts = split["prompt"][:]
        self.expected = [self.answers[prompt] for prompt in self.prompts]

    def losses(self, model):
        pairs = zip(self.prompts, self.expected, strict=True)
        return np.array([references.loss_alone(model, self.tokenizer, *pair) for pair in pairs])

    def texts(self, model):
        return [references.written_alone(model, self.tokenizer, prompt, NEW_TOKENS) for prompt in self.prompts]


def test_a_completion_has_no_head_and_outputs_of_plain_transformers_for_each_prompt_alone(written):
    assert (written.task.head.fields(), written.task.head.names) == ({}, ())
    np.testing.assert_allclose(written.outcome.outputs, written.losses(written.plain), rtol=1e-5)
    np.testing.assert_allclose(written.outcome.base_outputs, written.losses(written.base), rtol=1e-5)
    assert list(written.outcome.texts) == written.texts(written.plain)
    assert list(written.outcome.base_texts) == written.texts(written.base)


def test_completions_are_tabled_and_printed_as_plain_transformers_writes_them(written):
    texts = written.texts(written.plain)
    is_right = [text.strip() == answer.strip() for text, answer in zip(texts, written.expected, strict=True)]
    assert 0 < sum(is_right) < len(is_right)
    table = written.task.scoring.table(written.outcome)
    assert (table["said"], table["right"]) == (texts, ["yes" if right else "no" for right in is_right])
    assert written.task.description.to_columns(texts, None) == {"answer": texts}


def test_completions_have_scores_intervals_and_the_base_model_as_baseline(written):
    metrics = written.task.scoring.metrics(written.outcome, RESAMPLES)
    compare = {"exact_match": lambda text, answer: text.strip() == answer.strip(), "rouge_l": references.rouge_l}
    each = {}
    for name, score in compare.items():
        for end, model in (("", written.plain), ("_baseline", written.base)):
            texts = written.texts(model)
            each[name + end] = np.array([score(*pair) for pair in zip(texts, written.expected, strict=True)], float)
            assert metrics[name + end] == pytest.approx(each[name + end].mean())
    assert metrics["score"] == metrics["exact_match"]
    assert interval(metrics, "exact_match") == pytest.approx(references.share(each["exact_match"].sum(), len(texts)))
    ones = np.ones(len(texts))
    means = references.resampled(lambda ones, each: each.mean(), ones, each["rouge_l"])
    assert interval(metrics, "rouge_l") == pytest.approx(means)
    sums, counts = written.losses(written.plain).T
    base_sums, base_counts = written.losses(written.base).T
    assert metrics["loss"] == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
    assert metrics["loss_baseline"] == pytest.approx(base_sums.sum() / base_counts.sum(), rel=1e-5)
    ratios = references.resampled(lambda counts, sums: sums.sum() / counts.sum(), counts, sums)
    assert interval(metrics, "loss") == pytest.approx(ratios, rel=1e-4)
    # Without texts, as of a validation split, the loss alone is the score.
    bare = tasks.Outcome(written.outcome.outputs, written.outcome.labels)
    assert written.task.scoring.scores(bare) == {"negative_loss": pytest.approx(-sums.sum() / counts.sum(), rel=1e-5)}


def drawn(model, seed):
    """A model whose weights are so large that it does not repeat the last token."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def interval(metrics, name):
    return metrics[f"{name}_low"], metrics[f"{name}_high"]


@pytest.mark.parametrize("part", ["preprocessor", "head", "scoring", "description"])
def test_a_part_of_a_task_type_has_at_most_fifteen_methods(part):
    types = {*tasks.TASKS.values(), tasks.CHOICES, tasks.PAIRS, tasks.TENANTS_OF_CLASSES, tasks.TENANTS_OF_NUMBERS}
    for task_type in types:
        of_part = getattr(task_type, part)
        members = {name: value for kind in of_part.__mro__[:-1] for name, value in vars(kind).items()}
        methods = [
            name
            for name, value in members.items()
            if not re.fullmatch(r"__\w+__", name) and (callable(value) or hasattr(value, "__get__"))
        ]
        assert len(methods) <= 15, (of_part, methods)
    assert inspect.isclass(of_part)
