"""The page in a real browser without a network: it sorts, filters, hovers, and says nothing to the console."""

import re
from contextlib import chdir

import pytest

from pipeline.compare.comparison import compare
from pipeline.compare.page import page as html_of
from tests.browser import LOCAL, chromium
from tests.pipeline.compare.records import cells, record, save

NARROW, WIDE = 400, 1280  # pixels
HOSTILE = "LSR <img src=x onerror=alert(1)> </script><b>r=5"
EXPERIMENTS = [
    {
        "data": "rte", "model": "minilm", "adapter": "lora", "differs": "<i>lora.r=1", "score": 71.0, "score_low": None,
        "score_high": None, "seeds": "0", "adapter_trained": 9216, "adapter_stored": 9216, "adapter_effective": 9216,
        "head_parameters": 770, "adapter_bytes": 40444, "experiments": "hasty-fox",
    }
]  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    records = [*cells(seeds=(0, 1, 2)), *(record(HOSTILE, "rte", seed=seed) for seed in (0, 1, 2))]
    with chdir(folder):
        save(records)
        found = compare("small", records, "LoRA r=1", 300)
    (folder / "index.html").write_text(html_of(found, EXPERIMENTS), encoding="utf-8")
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser, address):
    """Open the page at a hash and a width; at the end, nothing was complained of and nothing asked for."""
    complaints = []
    contexts = []

    def at(hash_="", width=WIDE):
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("a script of a text has run"))
        page.on("request", lambda asked: asked.url.startswith(LOCAL) or complaints.append(asked.url))
        page.goto(address + hash_)
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        return page

    yield at
    for context in contexts:
        context.close()
    assert not complaints


def names(page):
    return page.locator("#table tbody .name").all_inner_texts()


def state(page):
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_it_opens_without_a_network_and_fits_the_window(width, opened, tmp_path):
    page = opened(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("pareto-trained", "pareto-file_bytes", "differences", "ranks", "rates", "curves"):
        box = page.locator(f"#{name} svg").first.bounding_box()
        assert box["width"] > 250, name
        assert box["x"] + box["width"] <= width, name
    picture = page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert len(picture) > 50_000


def test_every_method_is_a_row_and_what_failed_says_why(opened):
    page = opened("#task=cola")
    assert len(names(page)) == 9
    row = page.locator("#table tbody tr", has_text="VeRA")
    assert row.locator(".badge").first.inner_text() == "diverged"
    assert "the loss is no finite number" in row.inner_text()
    assert page.locator("#failures tbody tr", has_text="LSR 200").inner_text().split("\t")[-1] == "not enough memory"


def test_a_header_sorts_and_the_hash_keeps_it(opened):
    page = opened("#task=rte")
    header = page.locator("#table thead th", has_text="trained").first
    header.click()
    page.wait_for_function("location.hash.includes('sort=trained')")
    assert state(page) == {"task": "rte", "sort": "trained:asc"}
    sizes = page.locator("#table tbody tr td:nth-child(5)").all_inner_texts()
    numbers = [int(text.replace(",", "")) for text in sizes]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert names(opened("#task=rte&sort=trained%3Aasc")) == names(page)
    page.locator("#table thead th", has_text="score").first.click()
    page.wait_for_function("location.hash.includes('sort=score')")


def test_a_filter_takes_rows_and_points_away_but_never_lora(opened):
    page = opened("#task=rte")
    before = page.locator("#pareto-trained path[aria-roledescription='point']").count()
    page.locator("#filter").fill("200")
    page.wait_for_function("location.hash.includes('filter=200')")
    assert sorted(names(page)) == ["LSR 200", "LoRA r=1", "LoRA r=2", "LoRA r=8"]
    assert page.locator("#counted").inner_text() == "4 of 9 methods"
    page.wait_for_function(
        "document.querySelectorAll(\"#pareto-trained path[aria-roledescription='point']\").length === 4"
    )
    assert before > 4
    page.locator("#filter").fill("")
    page.locator("#adapter").select_option("vera")
    assert sorted(names(page)) == ["LoRA r=1", "LoRA r=2", "LoRA r=8", "VeRA"]
    page.get_by_role("button", name="Reset").click()
    assert len(names(page)) == 9
    assert state(page) == {}


def test_a_link_shows_what_its_sender_saw(opened):
    page = opened("#task=stsb&filter=lsr&first=LSR+200&second=LoRA+r%3D8&kind=second")
    assert page.locator("#task").input_value() == "stsb"
    assert sorted(names(page)) == ["LSR 200", HOSTILE, "LSR r=3", "LoRA r=1", "LoRA r=2", "LoRA r=8"]
    assert page.locator("#second").input_value() == "LoRA r=8"
    page.evaluate("location.hash = '#task=nothing'")
    page.wait_for_function("document.getElementById('task').value === 'average'")


def test_hovering_a_point_says_what_it_is(opened):
    page = opened("#task=rte")
    point = page.locator("#pareto-trained path[aria-roledescription='point']").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible")
    assert re.search(r"method[\s\S]*score[\s\S]*\d\d\.\d\d[\s\S]*trained parameters", tooltip.inner_text())


def test_a_row_opens_and_says_how_it_is_run(opened):
    page = opened("#task=rte")
    page.locator(".name", has_text="LoRA r=8").click()
    detail = page.locator(".detail")
    assert re.match(r"rte: seed 0: \d\d\.\d\d, seed 1: ", detail.inner_text())
    line = detail.locator("pre").first.inner_text()
    assert line.startswith("dvc exp run -S data=rte -S adapter=lora -S lora.r=8 ")
    assert "-S model=minilm " in line
    assert "lora:\n  learning_rate: 0.002\n  lora_alpha: 16\n  r: 8" in detail.locator("pre").nth(1).inner_text()
    page.locator(".name", has_text="LoRA r=8").click()
    assert page.locator(".detail").count() == 0


def test_examples_on_which_two_methods_differ_are_shown_as_they_are(opened):
    page = opened("#task=rte&first=head+alone&second=LoRA+r%3D8")
    row = page.locator("#examples tbody tr").first
    assert re.search(r'rte example \d+: it is <b>said</b> & "done" in \d words ‖ and number', row.inner_text())
    assert page.locator("#examples b").count() == 0
    said = page.locator("#agreement").inner_text()
    wins, losses = re.search(r"not on (\d+) of 200 examples; the other way round on (\d+)", said).groups()
    assert int(losses) > int(wins)
    page.locator("#kind").select_option("first")
    assert "kind=first" in page.evaluate("location.hash")
    page.locator("#task").select_option("stsb")
    assert "error of the seeds' mean" in page.locator("#agreement").inner_text()


def test_texts_are_texts(opened):
    page = opened("#task=rte")
    assert HOSTILE in names(page)
    assert page.locator("img").count() == 0
    assert "<i>lora.r=1" in page.locator("#experiments").inner_text()


def test_where_figures_come_from_is_told(opened):
    text = opened().locator("#provenance").inner_text()
    for word in ("0123456789abcdef", "a processor, 2 cores", "2026-11-26", "5.24.0"):
        assert word in text
