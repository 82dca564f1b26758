"""`python -m pipeline.experiments`: a table of DVC's experiments since the last commit, or the name of the best one.

Failed or unfinished experiments have no score here: DVC would show the scores of the commit from which they started.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from io import StringIO

import pandas as pd

from pipeline.core import console
from pipeline.core.console import Parser
from pipeline.core.dvc import run_dvc
from pipeline.core.errors import FAILED, UserError
from pipeline.params import PARAMS
from pipeline.params.yaml_file import read_yaml
from pipeline.previous import LOCK

# Columns of DVC's table.
NAME = "Experiment"
STATE = "State"
DATA = "params.yaml:data"
SCORE = "best_score"
DONE = ("", "Success")  # states: of an experiment in the workspace, and in the queue
METRICS = ("score", "read", "adapter_trained")  # columns of the table here, in addition to the params that differ
KEPT = f"{NAME}|rev$|{STATE}|{'|'.join(METRICS)}|(adapter|model|seed)$"
ALWAYS = f"^({STATE}|{SCORE})$"  # columns that DVC leaves out if they are empty in all rows, without --keep
DROPPED = r"[^.]*(/|$)|params.yaml$"  # names of params alone have a dot
WORKSPACE = "workspace"
NOT_RUN = "not run"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table or, with --best, the name of the best experiment, with the reason on standard error."""
    parser = Parser(
        "python -m pipeline.experiments",
        "List DVC's experiments since the last commit with scores, sizes and the parameters that differ, or print the "
        "name of the best one. Experiments that failed or are still running have no score.",
    )
    parser.add_argument("--all-commits", action="store_true", help="include the experiments of all commits")
    parser.add_argument(
        "--best",
        action="store_true",
        help="print only the name of the best one, for `dvc exp apply NAME`: it has the best validation score of the "
        f"successful experiments on the data set of {PARAMS}",
    )
    with parser.parse(arguments) as options:
        since = ["--all-commits"] * options.all_commits
        if options.best:
            data = read_yaml(PARAMS).get("data")
            name, reason = best(read_experiments(*since, "--precision", "10", "--keep", ALWAYS), str(data))
            print(name)
            console.note(reason)
        else:
            experiments = read_experiments(*since, "--only-changed", "--drop", DROPPED, "--keep", KEPT)
            rows = tabulate(experiments)
            console.table("experiments", list(rows.columns), rows.itertuples(index=False))
            if not experiments[NAME].ne("").any():
                console.line("no experiments since the last commit; to run one: dvc exp run -S adapter=lora")


def read_experiments(*options: str) -> pd.DataFrame:
    """Return DVC's table of experiments, each cell as text.

    Raises:
        SystemExit: if DVC fails, with its message.
    """
    run = run_dvc("exp", "show", "--csv", *options)
    if run.returncode:
        print(run.stderr.strip(), file=sys.stderr)
        raise SystemExit(FAILED)
    return pd.read_csv(StringIO(run.stdout), dtype=str, keep_default_na=False)


def best(experiments: pd.DataFrame, data: str) -> tuple[str, str]:
    """Return the best experiment on a data set by validation score, and a line with the reason.

    Ties go to the first in DVC's table.

    Raises:
        UserError: if no experiment has succeeded.
    """
    named = experiments[experiments[NAME] != ""]
    is_done = named[STATE].isin(DONE)
    unknown = pd.Series("", named.index)
    is_here = named.get(DATA, unknown) == data
    # There are no scores where only a part of the stages has run, and no such column before the first run.
    scores = pd.to_numeric(named.get(SCORE, unknown), errors="coerce")
    left_out = Counter(named[STATE][~is_done].str.lower())
    left_out["of other data"] = int((is_done & ~is_here).sum())
    left_out["without a score"] = int((is_done & is_here & scores.isna()).sum())
    others = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    of_others = f"; left out: {others}" if others else ""
    candidates = scores[is_done & is_here].dropna()
    if candidates.empty:
        raise UserError(f"no experiment on {data} has succeeded since the last commit{of_others}")
    first = candidates.idxmax()
    count = len(candidates)
    plural = "" if count == 1 else "s"
    reason = f"validation score {candidates[first]:.6g} on {data}: the best of {count} experiment{plural}{of_others}"
    return str(named[NAME][first]), reason


def tabulate(experiments: pd.DataFrame) -> pd.DataFrame:
    """Return a table of experiments and commits; those that have not succeeded have no scores."""
    rows = experiments.copy()
    rows.loc[(rows["rev"] == WORKSPACE) & (not _is_of_last_run()), STATE] = NOT_RUN
    metrics = [name for name in METRICS if name in rows]
    rows.loc[~rows[STATE].isin(DONE), metrics] = ""
    commits = rows.pop("rev")
    rows[NAME] = rows[NAME].where(rows[NAME] != "", commits)
    return rows


def _is_of_last_run() -> bool:
    """Return whether params.yaml has the values of the last run, as dvc.lock records them."""
    params = read_yaml(PARAMS)
    try:
        stages = read_yaml(LOCK)["stages"]
    except UserError:
        return False
    for stage in stages.values():
        recorded = stage.get("params", {}).get(str(PARAMS), {})
        if not recorded.items() <= params.items():
            return False
    return True


if __name__ == "__main__":
    main()
