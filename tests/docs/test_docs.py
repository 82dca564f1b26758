"""The commands of README, tutorials and how-tos run as printed, by bash in a clone; the site builds; the notebook runs.

Commands are indented blocks, blocks of sh, and the code in the last column of a table that is called `type`. A comment
before a block or in a row says `<!-- not run: REASON -->`, `<!-- into: FILE -->`, to which the block is appended, or
`<!-- nightly -->`. Every page runs at night, after a run of the default pipeline on few texts.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from nbclient import NotebookClient

import lsr
from tests import rows
from tests.helpers import ROOT, edit, in_new_process, write

BLOCK = re.compile(
    r"^<!-- (?P<mark>nightly|not run|into)(?:: (?P<words>[^\n]+))? -->$"
    r"|^```(?P<language>\w*)\n(?P<fenced>.*?)^```$"
    r"|(?P<indented>(?:^ {4}[^\n]*\n)+)"
    r"|(?P<table>(?:^\|[^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
GIVEN = Path(__file__).with_name("given")  # what pages expect their reader to have
HOW_TO = sorted(ROOT.glob("docs/how-to/*.md"))
PAGES = ["README.md", "docs/tutorial.md", "docs/tenants.md", "docs/generate.md"]
PAGES += [f"docs/how-to/{path.name}" for path in HOW_TO]
QUICK = ["docs/tenants.md", "docs/generate.md"]  # in every run of the tests, without the blocks that are nightly
ACTIVE = "make --silent setup\n. .venv/bin/activate\n"
SETTINGS = {"HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
ACTIVATE = """PATH="$PWD/.venv/bin:$PATH"
deactivate() { PATH="${PATH#*:}"; }
"""
PYTHON3 = """#!/bin/sh
# A package index is out of reach, and all packages are there: a new environment is a copy of one.
[ "$1 $2" = "-m venv" ] && exec cp --archive {environment} "$3"
exec {python} "$@"
"""


def typed_rows(table):
    """Return the commands of each row of a table, which begins where nothing is edited."""
    script = ""
    for row in table.splitlines()[2:]:
        cell = row.rpartition(" | ")[2]
        if "<!-- not run" not in cell:
            commands = "\n".join(re.findall("`([^`]+)`", cell))
            script += f"make undo\n{commands}\n"
    return script


def commands_of(block):
    """Return the commands of a block, if it has any."""
    table = block["table"] or ""
    header = table.partition("\n")[0]
    if block["language"] == "sh":
        return block["fenced"]
    if block["indented"]:
        return dedent(block["indented"])
    return typed_rows(table) if header.endswith(" type |") else ""


def script_of(page, *, with_nightly):
    """Return what a page has its reader type."""
    script = ""
    mark = words = None
    for block in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        if block["mark"]:
            mark = block["mark"]
            words = block["words"]
            continue
        if mark == "into":
            script += f"cat >> {words} << 'END'\n{block['fenced']}END\n"
        elif mark is None or (mark == "nightly" and with_nightly):
            script += commands_of(block)
        mark = None
    return script


WITH_COMMANDS = [page for page in PAGES if script_of(page, with_nightly=True)]


def type_in(folder, script, home):
    """Have a shell that stops at the first failure read a script, as a stranger with little but Git's configuration."""
    variables = SETTINGS | {"PATH": f"{home}:/usr/local/bin:/usr/bin:/bin", "HOME": str(home)}
    path = write(home / "script", f"trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}")
    with (home / "said").open("w+") as said:
        ended = subprocess.run(["bash", "-e", path], cwd=folder, env=variables, stdout=said, stderr=said, check=False)
    assert ended.returncode == 0, (home / "said").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with Git's configuration, and a `python3` whose environments have all packages already."""
    folder = tmp_path_factory.mktemp("home")
    environment = folder / "environment"
    (environment / "bin").mkdir(parents=True)
    for path in Path(sys.prefix, "bin").iterdir():
        if path.name not in ("activate", "pip"):
            (environment / "bin" / path.name).symlink_to(path)
    (environment / "bin/pip").symlink_to("/usr/bin/true")
    for name in ("lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix, name))
    write(environment / "bin/activate", ACTIVATE)
    write(folder / ".gitconfig", "[user]\nname = tests\nemail = tests\n")
    python3 = write(folder / "python3", PYTHON3.format(environment=environment, python=sys.executable))
    python3.chmod(0o700)
    return folder


def use_few_texts(folder):
    """Replace the texts of packages, which are not installed, by a few in files."""
    ratings = {"wet": 2, "dry": -2}
    texts = [{"rating": ratings[row["weather"]], "text": row["text"]} for row in rows.examples(200)]

    def change(entries):
        for name, entry in entries.items():
            if entry["source"]["kind"] == "package":
                file = write(folder / f"data/{name}.csv", texts)
                entry["source"] = {"kind": "files", "files": {"train": file.relative_to(folder).as_posix()}}

    edit(folder / "pipeline/datasets.yaml", change)


@pytest.fixture(scope="module")
def clone(tmp_path_factory, home):
    """The repository with few texts, committed."""
    folder = tmp_path_factory.mktemp("clone") / "lsr-adapt"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    use_few_texts(folder)
    type_in(folder, "git init --quiet\ngit add --all --force\ngit commit --quiet --message Begin\n", home)
    return folder


@pytest.fixture(scope="module")
def trained_clone(clone, home, tmp_path_factory):
    """The same after `make repro`, committed."""
    folder = tmp_path_factory.mktemp("trained") / "lsr-adapt"
    shutil.copytree(clone, folder)
    type_in(folder, "make repro\ngit commit --quiet --all --message 'First run'\n", home)
    return folder


def run_page(page, source, folder, home, *, with_nightly):
    """Type what a page says in a copy of a clone."""
    shutil.copytree(source, folder, symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    given = (GIVEN / page).with_suffix(".sh")
    before = given.read_text(encoding="utf-8") if given.is_file() else ""
    script = script_of(page, with_nightly=with_nightly)
    type_in(folder, f"{ACTIVE}{before}set -v\n{script}", home)


@pytest.mark.parametrize("page", QUICK)
def test_the_quick_commands_of_a_page_run_as_printed(page, clone, home, tmp_path):
    run_page(page, clone, tmp_path / "lsr-adapt", home, with_nightly=False)


@pytest.mark.nightly
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_command_of_a_page_runs_as_printed(page, trained_clone, home, tmp_path):
    run_page(page, trained_clone, tmp_path / "lsr-adapt", home, with_nightly=True)


def test_the_site_builds_and_all_its_links_and_anchors_lead_somewhere(tmp_path):
    in_new_process(ROOT, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path, NO_MKDOCS_2_WARNING="1")
    api = (tmp_path / "reference/api.html").read_text(encoding="utf-8")
    assert not [name for name in lsr.__all__ if f'id="lsr.{name}"' not in api]


def test_the_python_of_the_first_page_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 as a reader does
    assert (tmp_path / "lora/adapter_model.safetensors").is_file()


@pytest.mark.nightly
def test_tables_of_pages_are_those_that_the_committed_reports_give(tmp_path):
    subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "clone"], check=True)
    in_new_process(tmp_path / "clone", "-m", "docs.tables", PYTHONPATH="")
    subprocess.run(["git", "diff", "--exit-code"], cwd=tmp_path / "clone", check=True)


@pytest.mark.nightly
def test_every_cell_of_the_notebook_runs_without_a_warning():
    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}})
    client.execute()
    outputs = []
    for cell in notebook.cells:
        outputs += cell.get("outputs", [])
    streams = {output.get("name") for output in outputs}
    assert "stdout" in streams
    assert "stderr" not in streams
