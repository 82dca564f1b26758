"""Whatever a key of a method of PEFT holds in params.yaml, its stage ends well, or in the line of a refusal alone."""

import random
import shutil
import sys

import pytest

from pipeline.core import artifacts
from pipeline.methods.planning import list_types
from tests import workspace
from tests.kit import LONGEST, MISTAKE, NIGHTLY
from tests.lsr.methods import in_time
from tests.stages.running import FACTORIZE, TOKENIZE, ended_alone, run_in

TRIALS = 20 if NIGHTLY else 1  # of each method
SECONDS = 60  # of a stage that takes a fifth of one and writes files: the machine may be busy
VALUES = [
    *(None, True, False, -1, 0, 1, 3, 0.5, -1e300, 1e300, 2**70, 10**400, "", "x", "(a+)+"),
    *([], ["x"], {"a": 1}),
]


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    return run_in(workspace.make(tmp_path_factory.mktemp("sections") / "made"), TOKENIZE)


@pytest.mark.parametrize("method", list_types())
def test_whatever_a_key_of_any_method_holds_the_stage_ends_well_or_in_one_line(
    tokenized, tmp_path, monkeypatch, trials, method
):
    chance = random.Random(method)
    keys = sorted(list_types()[method].__dataclass_fields__)
    monkeypatch.setattr(sys, "argv", ["stage"])
    stage, view = FACTORIZE
    for turn in range(TRIALS):
        trials["trials"] += 1
        monkeypatch.chdir(shutil.copytree(tokenized, tmp_path / f"{turn}"))
        changed = {chance.choice(keys): chance.choice(VALUES) for _ in range(chance.choice((1, 1, 2)))}
        workspace.change(adapter="mine", mine={"type": method, "learning_rate": 0.001, **changed})
        with in_time(SECONDS):
            status, err = ended_alone(stage, view)
        if status is None:
            assert artifacts.INIT.exists(), changed
        else:
            assert status == MISTAKE, (changed, err)
            assert 1 <= len(err.splitlines()) <= len(changed), (changed, err)
            for line in err.splitlines():
                assert line.startswith("params.yaml: mine"), (changed, err)
                assert len(line) <= LONGEST, (changed, err)
