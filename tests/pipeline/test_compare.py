"""The comparison of methods says what is true of records with a known truth; its page opens without a network.

The records are committed ones, whose keys fit their settings; all scores in them are replaced by made-up ones.
"""

import json
import os
import shutil

import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from scipy import stats

from tests.helpers import ROOT, edit, merge, printed, read_json, read_yaml, refused, write

METHODS = {
    "base": "LoRA r=1",
    "better": "LSR shared r=6",
    "worse": "IA3",
    "noisy": "LSR shared r=16",
}
TASKS = ("movie-reviews", "tweets")  # the labels of the second one are not there
EXAMPLES = 200
SEEDS = range(5)
RIGHT = {"base": 0.7, "better": 0.9, "worse": 0.5, "noisy": 0.7}
SPREAD = {"base": 0.01, "better": 0.02, "worse": 0.02, "noisy": 0.1}  # over seeds
EXPECTED = {"expected": "better", "versus": "base", "on": TASKS[1]}
HYPOTHESES = [EXPECTED | {"method": method} for method in ("better", "worse", "noisy")]
RECORDS = "reports/arena/made-up/records.jsonl"
REPORT = "reports/compare/made-up"
HOSTILE = "<img src=x onerror=alert(1)> </script><b>no"


def make_truth():
    """Return the scores of each method by task and seed; on the first task, only those of noisy differ."""
    random = np.random.default_rng(0)
    truth = {}
    for task in TASKS:
        for method, share in RIGHT.items():
            shares = np.full(len(SEEDS), share)
            if method == "noisy" or task == TASKS[1]:
                shares += SPREAD[method] * random.normal(size=len(SEEDS))
            truth[task, method] = np.round(EXAMPLES * shares) / EXAMPLES
    return truth


TRUTH = make_truth()
ACTUAL = np.arange(EXAMPLES) % 2


def read_records():
    """Return the committed records of METHODS on TASKS, with made-up scores."""
    names = {known: name for name, known in METHODS.items()}
    lines = (ROOT / "reports/arena/offline/records.jsonl").read_text(encoding="utf-8").splitlines()
    records = []
    seeds = {}
    for record in map(json.loads, lines):
        if record["method"] in names and record["task"] in TASKS:
            record["method"] = names[record["method"]]
            records.append(record)
            seeds.setdefault(setting_of(record), set()).add(record["seed"])
    for record in records:
        set_scores(record, len(seeds[setting_of(record)]) == len(SEEDS))
    return records


def setting_of(record):
    return tuple(record[key] for key in ("task", "method", "rate", "head_rate"))


def set_scores(record, is_best):
    """Give a record made-up scores: what validates best, a rate and its second epoch, is the worst on test."""
    score = TRUTH[record["task"], record["method"]][record["seed"]]
    is_right = np.arange(EXAMPLES) < round(EXAMPLES * score)
    predicted = np.where(is_right, ACTUAL, 1 - ACTUAL) if is_best else ACTUAL
    scores = [1.0, score, 1.0] if is_best else [1.0, 1.0, 1.0]
    record["metrics"] = ["accuracy"]
    record["validation"] = [0.5, 0.8, 0.6] if is_best else [0.5, 0.6, 0.7]
    record["test"] = [{"accuracy": value} for value in scores]
    record["predicted"] = predicted.astype(float).tolist()
    record["quantized"] = {}


def make_preset():
    """Return a preset whose settings are those of the committed records."""
    offline = read_yaml(ROOT / "pipeline/arena.yaml")["offline"]
    methods = {}
    for name, known in METHODS.items():
        methods[name] = {key: offline["methods"][known][key] for key in ("adapter", "params")}
    read = ("tokenize", "train", "lora", "lsr")
    return {
        "model": offline["model"],
        "tasks": {task: {} for task in TASKS},
        "seeds": list(SEEDS),
        "baseline": "base",
        "tuning": {"rates": [0.3, 1.0, 3.0], "extra_rates": 0, "head_rates": []},
        "sample_sizes": offline["sample_sizes"],
        "params": {key: value for key, value in offline["params"].items() if key.startswith(read)},
        "methods": methods,
        "hypotheses": HYPOTHESES,
    }


def make_folder(folder):
    """Write a preset, records, and the labels of the first task; return the folder."""
    write(folder / "pipeline/arena.yaml", {"made-up": make_preset()})
    for name in ("params.yaml", "pipeline/datasets.yaml", "pipeline/models.yaml"):
        shutil.copy(ROOT / name, folder / name)
    write_records(folder, read_records())
    labels = [{"label": float(label)} for label in ACTUAL]
    write(folder / f"reports/arena/made-up/labels/{TASKS[0]}.csv", labels)
    return folder


def write_records(folder, records):
    lines = [f"{json.dumps(record)}\n" for record in records]
    write(folder / RECORDS, "".join(lines))


def load_records(folder):
    lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def compare(folder, monkeypatch, *words):
    """Compare the records of a folder; return the comparison."""
    monkeypatch.chdir(folder)
    printed("pipeline.compare", "made-up", *words)
    return read_json(folder / REPORT / "comparison.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the command has run, and what it has printed."""
    folder = make_folder(tmp_path_factory.mktemp("compare"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, printed("pipeline.compare", "made-up")


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the folder, to change."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def row_of(comparison, task, method):
    """Return the row of a method on a task or an average."""
    of_task = [row for row in comparison["results"] if row["task"] == task]
    (row,) = [row for row in of_task if row["method"] == method]
    return row


@pytest.fixture(scope="module")
def found(made):
    return read_json(made[0] / REPORT / "comparison.json")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_score_is_the_mean_over_seeds_at_the_rate_that_validation_prefers(found, task, method):
    scores = 100 * TRUTH[task, method]
    row = row_of(found, task, method)
    half = stats.sem(scores) * stats.t.ppf(0.975, len(SEEDS) - 1)
    assert row["scores"] == pytest.approx({str(seed): scores[seed] for seed in SEEDS})
    assert row["score"] == pytest.approx(scores.mean())
    assert row["score_low"] == pytest.approx(scores.mean() - half)
    assert row["score_high"] == pytest.approx(scores.mean() + half)
    assert (row["status"], row["trainings"]) == ("finished", len(SEEDS))


@pytest.mark.parametrize(("method", "difference"), [("better", 20.0), ("worse", -20.0)])
def test_where_seeds_agree_a_difference_has_the_error_of_the_examples(found, method, difference):
    row = row_of(found, TASKS[0], method)
    error = 100 * np.sqrt(0.2 * 0.8 / EXAMPLES)
    assert row["difference"] == pytest.approx(difference)
    assert row["error_examples"] == pytest.approx(error, rel=0.05)
    half = 1.96 * error
    assert row["these"]["low"] == pytest.approx(difference - half, abs=0.3)
    assert row["these"]["high"] == pytest.approx(difference + half, abs=0.3)
    assert row["new"]["low"] is None


@pytest.mark.parametrize("method", ["better", "worse", "noisy"])
def test_without_labels_a_difference_has_the_paired_test_of_student_over_seeds(found, method):
    ours = 100 * TRUTH[TASKS[1], method]
    theirs = 100 * TRUTH[TASKS[1], "base"]
    row = row_of(found, TASKS[1], method)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval()
    assert row["difference"] == pytest.approx(np.mean(ours - theirs), abs=1e-4)
    assert row["these"]["low"] == pytest.approx(low, abs=1e-4)
    assert row["these"]["high"] == pytest.approx(high, abs=1e-4)
    assert row["error_examples"] is None
    assert any(TASKS[1] in note and "seeds alone" in note for note in found["notes"])


@pytest.mark.parametrize("method", METHODS)
def test_an_average_is_the_mean_over_tasks_and_new_tasks_are_known_no_better(found, method):
    average = row_of(found, "average", method)
    rows = [row_of(found, task, method) for task in TASKS]
    scores = [row["score"] for row in rows]
    assert average["score"] == pytest.approx(np.mean(scores))
    if method == "base":
        assert average["difference"] is None
        return
    differences = [row["difference"] for row in rows]
    assert average["difference"] == pytest.approx(np.mean(differences), abs=1e-4)
    low, high = average["these"]["low"], average["these"]["high"]
    assert average["new"]["low"] <= low < average["difference"] < high <= average["new"]["high"]
    verdicts = {"better": low > 0, "worse": high < 0, "noisy": low < 0 < high}
    assert verdicts[method]


def test_hypotheses_hold_by_the_test_of_student_after_the_correction_of_holm(found):
    tests = []
    for hypothesis in HYPOTHESES:
        ours = TRUTH[TASKS[1], hypothesis["method"]]
        tests.append(stats.ttest_rel(ours, TRUTH[TASKS[1], "base"]).pvalue)
    corrected = np.empty(len(tests))
    highest = 0.0
    for rank, place in enumerate(np.argsort(tests)):
        highest = max(highest, (len(tests) - rank) * tests[place])
        corrected[place] = min(1, highest)
    outcomes = found["hypotheses"]
    found_ones = [outcome["these"]["p_holm"] for outcome in outcomes]
    assert found_ones == pytest.approx(corrected, rel=1e-3)
    assert [bool(outcome["held"]) for outcome in outcomes] == [True, False, False]


def test_the_same_records_in_another_order_give_the_same_bytes(made, copy, monkeypatch):
    folder, out = made
    write_records(copy, load_records(copy)[::-1])
    compare(copy, monkeypatch)
    for name in ("comparison.json", "index.html"):
        assert (copy / REPORT / name).read_bytes() == (folder / REPORT / name).read_bytes()
    assert all(method in out for method in METHODS)


def test_another_baseline_turns_the_differences(copy, monkeypatch, found):
    turned = compare(copy, monkeypatch, "--baseline", "better")
    assert turned["baseline"] == "better"
    for task in TASKS:
        before = row_of(found, task, "better")["difference"]
        assert row_of(turned, task, "base")["difference"] == pytest.approx(-before)


@pytest.mark.parametrize("names", [("harbor", "market"), ("NA", "01")])
def test_a_task_of_tenants_is_compared_over_new_tenants_too(copy, monkeypatch, found, names):
    labels = []
    for number, label in enumerate(ACTUAL):
        labels.append({"label": float(label), "tenant": names[number // 2 % 2]})
    write(copy / f"reports/arena/made-up/labels/{TASKS[0]}.csv", labels)
    comparison = compare(copy, monkeypatch)
    row = row_of(comparison, TASKS[0], "better")
    assert row["difference"] == pytest.approx(20)
    alone = row_of(found, TASKS[0], "better")
    assert row["error_examples"] == pytest.approx(alone["error_examples"], rel=0.2)
    assert row["new"]["low"] <= row["these"]["low"]
    assert comparison["notes"] == found["notes"]


def spoil(record):
    """Return whether to keep a record, some of which are changed into those of runs that did not finish."""
    task, method, _, _ = setting_of(record)
    is_lost = method == "worse" or (method == "better" and record["seed"] == 4)
    if task == TASKS[0] and is_lost:
        record.update(status="diverged", reason=HOSTILE, validation=[], test=[], predicted=[])
    is_try = record["validation"] == [0.5, 0.6, 0.7]
    return not (task == TASKS[1] and method == "noisy" and is_try)


def test_runs_that_did_not_finish_are_told_and_left_out(copy, monkeypatch):
    kept = [record for record in load_records(copy) if spoil(record)]
    stranger = kept[0] | {"key": "f" * 16}
    write_records(copy, [*kept, stranger])
    comparison = compare(copy, monkeypatch)
    partly = row_of(comparison, TASKS[0], "better")
    assert (partly["status"], len(partly["scores"])) == ("partly finished", 4)
    assert "seed 4" in partly["reason"]
    gone = row_of(comparison, TASKS[0], "worse")
    assert (gone["status"], gone["score"], gone["difference"]) == ("diverged", None, None)
    assert row_of(comparison, TASKS[1], "noisy")["status"] == "not tuned yet"
    assert row_of(comparison, "average", "worse")["score"] is None
    assert any("left out" in note for note in comparison["notes"])
    page = (copy / REPORT / "index.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert page.count("</script>") == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["made-down"], "made-up"),
        (["made-up", "--baseline", "bass"], "base"),
        (["empty"], "no records"),
        (["broken"], "line 1"),
        (["strange"], "none of the 1 records"),
        (["changed"], "none of the"),
    ],
)
def test_a_mistake_is_one_line(copy, monkeypatch, words, says):
    preset = read_yaml(copy / "pipeline/arena.yaml")["made-up"]
    others = dict.fromkeys(("empty", "broken", "strange"), preset)
    changed = merge(preset, {"params": {"train.weight_decay": 0.5}})
    edit(copy / "pipeline/arena.yaml", **others, changed=changed)
    write(copy / "reports/arena/changed/records.jsonl", (copy / RECORDS).read_text(encoding="utf-8"))
    write(copy / "reports/arena/broken/records.jsonl", '{"key": 3}\n')
    stranger = load_records(copy)[0] | {"key": "f" * 16}
    write(copy / "reports/arena/strange/records.jsonl", f"{json.dumps(stranger)}\n")
    monkeypatch.chdir(copy)
    refused("pipeline.compare", *words, says=says)


COMMITTED = sorted(path.parent.name for path in (ROOT / "reports/arena").glob("*/records.jsonl"))
OF_EXAMPLES = ("these", "new", "error_seeds", "error_examples")  # need labels, which are not all committed


@pytest.mark.nightly
@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_comparison_is_that_of_the_committed_records(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    printed("pipeline.compare", name, "--output", tmp_path)
    found = read_json(tmp_path / name / "comparison.json")["results"]
    committed = read_json(ROOT / "reports/compare" / name / "comparison.json")["results"]
    for row in (*found, *committed):
        for key in OF_EXAMPLES:
            row.pop(key)
    assert found == committed


@pytest.mark.nightly
def test_the_page_opens_offline_without_a_complaint(made):
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None and "CI" not in os.environ:
        pytest.skip("no chromium is installed")
    said = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if "http" in request.url else None)
        page.goto((made[0] / REPORT / "index.html").as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        text = page.inner_text("body")
        browser.close()
    assert said == []
    assert all(method in text for method in METHODS)
