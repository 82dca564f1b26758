"""Every command that README, tutorial and how-tos show, as a reader types it: one shell a page, in a clone of its own.

Commands are the lines of indented blocks and of blocks of sh, and the code in the last column of a table that is called
`type`. A comment may precede a block or end a row: `<!-- nightly -->`, as it takes long, or `<!-- not run: REASON -->`.
After `<!-- into: FILE -->`, a block is appended to that file.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from textwrap import dedent

import pandas as pd
import pytest

from tests import forked, workspace
from tests.kit import NIGHTLY, write
from tests.workspace import ROOT

HOW_TO = sorted(f"docs/how-to/{path.name}" for path in ROOT.glob("docs/how-to/*.md"))
PAGES = ("README.md", "docs/tutorial.md", "docs/tenants.md", "docs/generate.md", *HOW_TO)
TO_RUN = ("", "nightly") if NIGHTLY else ("",)
BLOCK = re.compile(
    r"^<!-- (?P<mark>nightly|not run|into)(?:: (?P<words>[^\n]+))? -->$|^```(?P<language>\w*)\n(?P<fenced>.*?)^```$"
    r"|(?P<indented>(?:^ {4}[^\n]*\n)+)|(?P<table>(?:^\|[^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
# In place of the one that makes an environment: a package index is out of reach, and all packages are there.
PYTHON3 = Path(__file__).with_name("python3.sh").read_text(encoding="utf-8")
ACTIVE = "make --silent setup\n. .venv/bin/activate\n"
COMMITTED = "make undo\n"  # where each row of a table of commands begins
AFTER_A_RUN = ("README.md", "docs/how-to/convert.md")  # pages whose commands need a finished run: nightly
GIVEN = Path(__file__).with_name("given")  # what pages expect their reader to have, beside an active environment


def commands(page):
    """Yield what a page has its reader type, block by block, and how the page marks it."""
    mark = ""
    words = None
    for block in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        if block["mark"]:
            mark = block["mark"]
            words = block["words"]
            continue
        if mark == "into":
            yield "", f"cat >> {words} << 'END'\n{block['fenced']}END\n"
        elif block["indented"] or block["language"] == "sh":
            yield mark, block["fenced"] or dedent(block["indented"])
        elif block["table"] and re.match(r"[^\n]* type \|\n", block["table"]):
            for row in block["table"].splitlines():
                cell = row.rpartition(" | ")[2]
                own = re.search("<!-- (nightly|not run)", cell)
                row_commands = "".join(f"{command}\n" for command in re.findall("`([^`]+)`", cell))
                if row_commands:
                    yield own[1] if own else mark, f"{COMMITTED}{row_commands}"
        mark = ""


SCRIPTS = {page: "".join(text for mark, text in commands(page) if mark in TO_RUN) for page in PAGES}


def type_in(folder, script, home):
    """Have a shell that stops at the first failure read a script, as a stranger with little but Git's configuration."""
    environment = {"PATH": f"{home}:/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment |= {"DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    (home / "script").write_text(f"trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}")
    run = subprocess.run(
        ["bash", "-e", home / "script"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    (folder / ".gitconfig").write_text("[user]\nname = tests\nemail = tests\n")
    places = {"scripts": sysconfig.get_path("scripts"), "packages": sysconfig.get_path("purelib")}
    (folder / "python3").write_text(PYTHON3.format(python=sys.executable, forked=forked.scripts(), **places))
    (folder / "python3").chmod(0o700)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory, home):
    """The repository with few texts in place of those of packages; in a nightly run after `make repro`."""
    folder = tmp_path_factory.mktemp("clone") / "lsr-adapt"
    ours = ["git", "ls-files", "-zco", "--exclude-standard"]
    listed = subprocess.run(ours, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    rows = workspace.read_yaml(folder / "pipeline/datasets.yaml")
    texts = [(4 * label - 2, text) for text, _, label in workspace.sentences(200)]
    for name, row in rows.items():
        if row["source"]["kind"] == "package":
            row["source"] = {"kind": "files", "files": {"train": f"data/{name}.csv"}}
            pd.DataFrame(texts, columns=["rating", "text"]).to_csv(folder / f"data/{name}.csv", index=False)
    write(folder / "pipeline/datasets.yaml", rows)
    begin = "git init --quiet\ngit add --all --force\ngit commit --quiet --message Begin\n"
    run = "make repro\ngit commit --quiet --all --message 'First run'\n"
    type_in(folder, f"{begin}{run}" if NIGHTLY else begin, home)
    return folder


def pages():
    """The pages with commands; those that need a finished run are nightly."""
    for page in PAGES:
        if SCRIPTS[page]:
            yield pytest.param(page, marks=[pytest.mark.nightly] if page in AFTER_A_RUN else [])


@pytest.mark.slow
@pytest.mark.parametrize("page", [*pages()])
def test_every_command_of_a_page_runs_as_printed(page, clone, home, tmp_path):
    folder = tmp_path / "lsr-adapt"
    shutil.copytree(clone, folder, symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    given = (GIVEN / page).with_suffix(".sh")
    before = given.read_text(encoding="utf-8") if given.is_file() else ""
    type_in(folder, f"{ACTIVE}{before}set -v\n{SCRIPTS[page]}", home)
