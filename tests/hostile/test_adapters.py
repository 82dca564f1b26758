"""Every reader of an adapter's folder refuses a damaged one in a line, runs none of it, and leaves nothing behind."""

import copy
import random
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import RandLoraConfig, VeraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from lsr import AdapterBank, quantize_adapter
from lsr.__main__ import main as lsr_command
from lsr.loading.adapters import load_adapter, load_onto
from lsr.loading.contents import read_contents
from lsr.tuner.files import CONFIG, WEIGHTS
from pipeline import params, score
from pipeline.data import base_models
from pipeline.predict.__main__ import main as predict
from tests import workspace
from tests.hostile.damaged import DAMAGES
from tests.kit import LONGEST, NIGHTLY, edit, refused
from tests.stages.running import FACTORIZE, run
from tests.old_tiny.models import tiny

IT = "models/it"
FAMILY = {"rank_shape": [3], "separation_rank": 1, "train": "core"}


@cache
def loaded():
    return AutoModelForSequenceClassification.from_pretrained("tiny-roberta")


def base():
    return copy.deepcopy(loaded())


def command(*words):
    return lambda: lsr_command([*words, "-o", "out"])


READERS = {
    "load_adapter": lambda: load_adapter(Path(IT), method=None),
    "load_onto": lambda: load_onto(base(), Path(IT)),
    "read_contents": lambda: read_contents(IT),
    "export": command("export", IT, "--to", "lora"),
    "merged": command("export", IT, "--to", "merged"),
    "import": command("import", IT),
    "quantize": command("quantize", IT, "--to", "3bit"),
    "compress": command("compress", IT, "--to", "rank:1"),
    "bank": command("bank", "--from", IT),
    "bank.add": lambda: AdapterBank(base()).add("it", IT),
    "predict": lambda: predict(["a text", "and another", "--adapter", IT]),
    "score": lambda: score.main(["glue", IT]),
    "init": lambda: run(FACTORIZE),
}
NOT_OF = {
    "lora": {"export", "merged"},
    "sums": {"import"},
    "lsr": {"import"},
    "rounded": {"import"},
}


@pytest.fixture(scope="module")
def whole(done, tmp_path_factory):
    """A workspace that goes on from the adapter in IT, and beside it folders of whole adapters."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(done("lsr", lsr=FAMILY), folder / "workspace")
    shutil.copytree(folder / "workspace/artifacts/adapter", folder / "lsr")
    shutil.copytree(done("lora") / "artifacts/adapter", folder / "lora")
    shutil.copytree(done() / "artifacts/adapter", folder / "sums")
    quantize_adapter(folder / "lsr", folder / "rounded", "3bit")
    (folder / "workspace/models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "workspace")
        workspace.change(lsr={"init": IT})
        texts = score.load(params.load_entry("data", "glue"), "glue")
        patch.setattr(score, "load", lambda *_: texts)
        patch.setattr(base_models, "load_base_model", lambda *_: base())
        yield folder


@pytest.fixture
def place(whole):
    """A function that puts a whole adapter of a kind where it is read."""
    yield lambda of: Path(shutil.copytree(whole / of, IT))
    shutil.rmtree(IT, ignore_errors=True)


@pytest.mark.parametrize(("damage", "of"), [(name, of) for name, damage in DAMAGES.items() for of in damage.of])
def test_every_reader_refuses_it_in_a_line_and_leaves_nothing(damage, of, place, trials):
    change, says, _, unseen = DAMAGES[damage]
    place(of)
    change(Path(IT))
    before = set(Path().rglob("*"))
    for reader in READERS.keys() - NOT_OF[of] - set(unseen):
        trials["trials"] += 1
        line = refused(READERS[reader])
        assert any(words in line for words in ([says] if isinstance(says, str) else says)), f"{reader}: {line}"
        assert set(Path().rglob("*")) == before, reader


@pytest.mark.parametrize("kind", [VeraConfig, RandLoraConfig])
@pytest.mark.usefixtures("trials")
def test_what_a_method_creates_is_bounded_by_the_base_model(kind, tmp_path):
    get_peft_model(tiny("bert"), kind(r=8, target_modules=["query"])).save_pretrained(str(tmp_path))
    load_onto(tiny("bert"), tmp_path)
    edit(tmp_path / CONFIG, r=10**6)
    refused(load_onto, tiny("bert"), tmp_path, says="it creates over 1,0")


COUNT = 200 if NIGHTLY else 20
VALUES = [
    *[None, True, -1, 0, 3, 25, 10**6, 2**63, 10**300, 0.5, 1e300, "", "none", "(", ".*", "\0", "x" * 2000],
    *["([a-z0-9.]+)+X", [], [0], [None, "query"], [10**6, 3], {}, {"query": -1}, {"": [2, 2]}, {"é": None}],
]
TENSORS = (
    lambda value: value[:0],
    lambda value: value.flatten()[0].clone(),
    lambda value: torch.cat([value, value]),
    lambda value: value / 0,
    lambda value: torch.full_like(value, 1e38),
    lambda value: value.to(torch.int64),
    lambda value: value.to(torch.complex64),
)


def harm(folder, chance):
    """Change a field, a tensor or a few bytes of an adapter."""

    def change(content):
        fields = content if path.name == WEIGHTS else chance.choice([content, content["resolved"]["usual"]])
        name = chance.choice(sorted(fields))
        new = chance.choice(TENSORS)(fields[name]).contiguous() if path.name == WEIGHTS else chance.choice(VALUES)
        fields[name] = new

    path = folder / chance.choice((CONFIG, WEIGHTS))
    if chance.random() < 0.7:
        edit(path, change)
        return
    content = bytearray(path.read_bytes())
    at = chance.randrange(min(len(content), 2000))
    content[at : at + chance.choice((1, 2, len(content)))] = chance.randbytes(chance.randrange(3))
    path.write_bytes(content)


def test_whatever_else_is_changed_is_read_or_refused_in_a_line(place, capsys, trials):
    chance = random.Random(0)
    for turn in range(COUNT):
        trials["trials"] += 1
        harm(place("lsr"), chance)
        code = READERS["export"]()
        said = capsys.readouterr().err
        assert code in (0, 2), turn
        assert len(said.splitlines()) == (code != 0), said
        assert len(said) <= LONGEST, said
        assert Path("out").exists() == (code == 0), turn
        for folder in (IT, "out"):
            shutil.rmtree(folder, ignore_errors=True)
