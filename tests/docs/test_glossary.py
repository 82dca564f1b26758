"""README, pages and `--help` texts use the terms of the field: those of glossary.yaml are not written."""

import re

import pytest

from tests.workspace import ROOT, read_yaml

GLOSSARY = read_yaml(ROOT / "tests/docs/glossary.yaml")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "params.yaml")),
    ROOT / "reports/arena/lost.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("dvc.yaml", "pipeline/arena.yaml", "pipeline/datasets.yaml", "pipeline/models.yaml")),
]
OF_YAML = re.compile(r"#.*|\b(?:desc|title): .*")  # comments, and what DVC shows
CODE_OR_ADDRESS = re.compile(r"`[^`\n]*`|\]\([^)\n]*\)|https?://\S+|<!--.*?-->")


def uses(path, entry):
    """File, line and replacement for each use of a term, without its exceptions."""
    found = []
    parts = [exception["part"] for exception in entry.get("except", [])]
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        prose = CODE_OR_ADDRESS.sub("`", line)
        if path.suffix == ".yaml" and path.name != "params.yaml":
            prose = " ".join(OF_YAML.findall(prose))
        for part in parts:
            prose = prose.replace(part, "")
        for word in re.findall(entry["pattern"], prose, re.IGNORECASE):
            found.append(f"{path.relative_to(ROOT)}:{number}: {word!r}: write {entry['write']}")
    return found


@pytest.mark.parametrize("entry", GLOSSARY, ids=lambda entry: entry["write"])
def test_pages_and_help_use_the_terms_of_the_field(entry):
    found = [use for path in PAGES for use in uses(path, entry)]
    assert not found, "\n" + "\n".join(found)


def test_every_exception_is_on_a_page():
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    parts = [exception["part"] for entry in GLOSSARY for exception in entry.get("except", [])]
    assert not [part for part in parts if part not in text]


def test_a_word_is_reported_with_file_line_and_replacement(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.test_glossary.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("`beside` is code.\nScores beside others.\n", encoding="utf-8")
    (entry,) = [entry for entry in GLOSSARY if "beside" in entry["pattern"]]
    assert uses(page, entry) == [f"page.md:2: 'beside': write {entry['write']}"]
