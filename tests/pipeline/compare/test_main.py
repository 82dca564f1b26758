"""The command: what it writes, the same again, what it says of a mistake, and its page in a browser offline."""

import json
from contextlib import chdir

import pytest

from pipeline.arena import plan
from pipeline.arena import record as arena_record
from pipeline.arena.preset import load
from pipeline.compare import __main__ as command
from pipeline.compare.comparison import compare
from tests.browser import NARROW, WIDE, chromium, tab
from tests.kit import refused
from tests.pipeline.compare.records import prepare, preset, record, trainings, went
from tests.workspace import ROOT, copy_committed

METHODS = ("head alone", "LSR r=3", "LoRA r=1", "LoRA r=8")
WORDS = ["small", "--baseline", "LoRA r=1"]
WRITTEN = {"comparison.json", "index.html"}
HOSTILE = "<img src=x onerror=alert(1)> </script><b>no"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the command has run."""
    folder = tmp_path_factory.mktemp("made")
    copy_committed(folder)
    with chdir(folder):
        prepare(folder, preset(("rte", "stsb"), METHODS, seeds=[0, 1, 2]))
        command.main(WORDS)
    return folder


def test_the_same_records_give_the_same_bytes(made, capsys):
    with chdir(made):
        command.main([*WORDS, "--output", "again"])
    again = contents(made / "again/small")
    assert set(again) == WRITTEN
    assert again == contents(made / "reports/compare/small")
    said = capsys.readouterr().out
    assert "reports/arena/small: 40 records" in said
    assert "small: average, percent: method | score | difference" in said
    results = json.loads(again["comparison.json"])["results"]
    lines = again["comparison.json"].decode().splitlines()
    for result in results:
        assert any(line.strip().rstrip(",") == json.dumps(result, ensure_ascii=False) for line in lines)
    (best,) = [row for row in results if (row["task"], row["method"]) == ("average", "LoRA r=8")]
    assert f"LoRA r=8 | {best['score']:.2f} ± {best['score_high'] - best['score']:.2f} | " in said
    assert said.endswith("written: again/small/index.html, and comparison.json in the same folder\n")


def test_texts_of_others_are_shown_as_they_are(made):
    chosen = preset(["rte"], METHODS)
    with chdir(made):
        records = trainings(chosen, lambda one: went(one, status="failed" if one.seed else "finished", reason=HOSTILE))
        html = command.page(compare("small", records, chosen, 100))
    assert HOSTILE not in html
    assert "\\u003cimg src=x" in html
    assert html.count("</script>") == 2


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy_committed(tmp_path)
    prepare(tmp_path, preset(), [record()])
    refused(command.main, ["smal"], says="no preset 'smal'; did you mean small?; presets: small")
    refused(command.main, ["small"], says="none of the 1 records is of the settings and texts of the preset")
    (path,) = (tmp_path / arena_record.FOLDER / "small").glob("*.jsonl")
    known = trainings(preset(methods=["LoRA r=1", "head alone"], tasks=["rte"]))
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in known.values()))
    refused(command.main, ["small", "--baseline", "VeRA"], says="--baseline: small has no method 'VeRA'")
    path.write_text('{"key": ')
    refused(command.main, ["small"], says="reports/arena/small: no records; run python -m pipeline.arena small")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / arena_record.FOLDER).glob("*/*.jsonl")))
def test_the_committed_comparison_is_that_of_the_committed_records(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    records, preset = arena_record.read(arena_record.FOLDER / name), load(name)
    committed = json.loads((command.OUTPUT / name / "comparison.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(compare(name, records, preset)))
    if not all(its.labels.is_file() for its in plan.cells(name, preset) if its.task in found["metrics"]):
        found, committed = without_errors(found), without_errors(committed)
    assert found == committed, f"run: python -m pipeline.compare {name}"


def without_errors(comparison):
    """Leave out what depends on the labels of test examples: those of a user's own files are not in the repository."""
    unknown = {"these", "new", "error_seeds", "error_examples", "held", "notes"}
    lists = {
        key: [{k: one[k] for k in one.keys() - unknown} for one in comparison[key]] for key in ("results", "hypotheses")
    }
    return {key: comparison[key] for key in comparison.keys() - unknown} | lists


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")

    def said(one):
        return went(one, status="failed", reason=HOSTILE) if one.method == "VeRA" else went(one)

    with chdir(folder):
        prepare(folder)
        found = compare("small", trainings(preset(seeds=[0, 1, 2]), said), preset(seeds=[0, 1, 2]), 300)
    (folder / "index.html").write_text(command.page(found), encoding="utf-8")
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser, address):
    """A function that opens the page at a hash and a width; at the end, there was no complaint and no request."""
    said = []

    def at(hash_="", width=WIDE):
        shown = tab(browser, address + hash_, said, width)
        shown.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        return shown

    yield at
    assert not said


def names(page):
    return page.locator("#table tbody .name").all_inner_texts()


def state(page):
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


@pytest.mark.nightly
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_it_opens_without_a_network_and_fits_the_window(width, opened):
    page = opened(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("trained", "bytes", "differences"):
        assert page.locator(f"#{name}").bounding_box()["width"] <= width, name  # on a narrow screen it scrolls
        assert page.locator(f"#{name} svg").bounding_box()["width"] > 400, name


@pytest.mark.nightly
def test_a_header_sorts_and_a_link_shows_what_its_sender_saw(opened):
    page = opened("#task=rte&filter=lsr")
    assert sorted(names(page)) == ["LSR 200", "LSR r=3", "LoRA r=1"]
    assert page.locator("#counted").inner_text() == "3 of 8 methods"
    page.locator("#table thead th", has_text="trained").click()
    assert state(page) == {"task": "rte", "filter": "lsr", "sort": "trained:asc"}
    assert names(page)[0] == "LSR 200"
    assert page.locator("#trained circle").count() == 3
    page.locator("#kB").fill("20")
    assert names(page) == ["LSR 200"]  # in float32 LSR r=3 has 22.4 kB, LoRA 40.4
    assert page.locator("#best").inner_text().startswith("Highest score here: LSR 200, ")
    page.locator("#s").fill("1")
    assert (names(page), page.locator("#counted").inner_text()) == ([], "0 of 8 methods")
    page.get_by_role("button", name="Reset").click()
    assert (len(names(page)), state(page)) == (8, {})
    page.evaluate("location.hash = '#task=nothing'")
    page.wait_for_function("document.getElementById('task').value === 'average'")
