"""The rows of one file with labels of every kind, entries that read it, and workspaces in which the stages run."""

from pathlib import Path
from typing import Any

from tests import tiny
from tests.helpers import ROOT, merge, read_yaml, write

FILE = "data/animals.csv"
COUNT = 100
ENDINGS = ("", " at night", " and nobody saw it", " while the owl sleeps in the barn and the fox rests")
SHOPS = ("harbor", "market")
USUAL: dict[str, Any] = {
    "source": {"kind": "files", "files": {"train": FILE}},
    "text": ["text"],
    "split": {"validation": 0.2, "test": 0.2},
}
WEATHER = {"column": "weather", "names": ["wet", "dry"]}  # the names of classes are in no alphabetical order
ENTRIES: dict[str, dict[str, Any]] = {
    "two": USUAL | {"label": WEATHER | {"positive": "wet"}, "metrics": ["accuracy", "f1"]},
    "three": USUAL
    | {"label": {"column": "size", "names": ["mid", "low", "high"]}, "metrics": ["accuracy", "macro_f1"]},
    "pairs": USUAL
    | {"text": ["text", "other"], "label": WEATHER, "metrics": ["accuracy", "f1", "matthews_correlation"]},
    "multi_label": USUAL
    | {
        "label": {"multi_label": "tags", "separator": "|", "names": ["wet", "awake", "cat"]},
        "metrics": ["micro_f1", "macro_f1"],
    },
    "number": USUAL | {"label": {"column": "rating", "low": 0.0, "high": 4.0}, "metrics": ["pearson", "spearman"]},
    "tenants": USUAL | {"tenant": "shop", "label": {"column": "answer"}, "metrics": ["accuracy", "macro_f1"]},
    "completion": USUAL
    | {
        "text": ["Where is the {animal} number {at}?"],
        "label": {"completion": "place"},
        "metrics": ["exact_match", "rouge_l"],
    },
}
SMALL: dict[str, Any] = {  # of params.yaml, what a tiny model and few texts need
    "tokenize": {"max_length": 24},
    "train": {"epochs": 1, "batch_size": 8, "head_learning_rate": 0.05},
    "evaluate": {"batch_size": 5, "resamples": 200},
    "lsr": {
        "rank_shape": [2, 2],
        "separation_rank": 2,
        "share": "none",
        "train": "factors",
        "init": "random",
        "alpha": 16,
        "learning_rate": 0.02,
    },
    "lora": {"r": 4, "learning_rate": 0.02},
    "directions": {"total_directions": 12, "init": "lora_update", "init_examples": 32, "init_head_steps": 4},
    "vera": {"r": 16},
    "unilora": {"theta_d_length": 50},
    "peft": {"r": 2},
}


def examples(count: int = COUNT) -> list[dict[str, Any]]:
    """Return rows with two texts and labels of every kind; what is true of a row can be read in its first text."""
    return [example(number) for number in range(count)]


def example(number: int) -> dict[str, Any]:
    """Return one row."""
    is_cat, is_awake, is_wet = (number >> place & 1 for place in range(3))
    animal = ("dog", "cat")[is_cat]
    does = ("rests", "runs")[is_awake]
    place = ("garden", "river")[is_wet]
    weather = ("dry", "wet")[is_wet]
    tags = [name for name, applies in (("wet", is_wet), ("awake", is_awake), ("cat", is_cat)) if applies]
    shop = SHOPS[number // 8 % 2]
    return {
        "text": f"the {animal} number {number} {does} in the {place}{ENDINGS[number % 4]}",
        "other": f"nobody saw {number}{ENDINGS[number % 3]}",
        "at": number,
        "animal": animal,
        "place": f"in the {place}",
        "weather": weather,
        "size": ("low", "mid", "high")[is_wet + is_awake],
        "tags": "|".join(tags),
        "rating": is_wet + 2 * is_awake + number % 5 / 5,
        "shop": shop,
        "answer": weather if shop == "harbor" else does,  # each shop has labels of its own
    }


def make_workspace(
    folder: Path,
    data: str = "two",
    architecture: str = "bert",
    *,
    rows: list[dict[str, Any]] | None = None,
    entries: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
    **params: Any,
) -> Path:
    """Fill a folder with params.yaml, the registries, a base model and FILE, so that the stages can run; return it.

    `data` is a name of ENTRIES or of `entries`, which are added to them; `rows` replace those of FILE; `base` are
    options of `tiny.save_base`; `params` are merged into params.yaml.
    """
    committed = read_yaml(ROOT / "params.yaml")
    targets = {"target_modules": tiny.ARCHITECTURES[architecture].targets}
    chosen = {"data": data, "model": f"models/{architecture}", "lsr": targets, "lora": targets}
    is_causal = data == "completion"
    if is_causal:  # a language model has no head to train
        chosen["train"] = {"head_learning_rate": committed["train"]["head_learning_rate"]}
    write(folder / "params.yaml", merge(merge(merge(committed, SMALL), chosen), params))
    write(folder / "pipeline/datasets.yaml", read_yaml(ROOT / "pipeline/datasets.yaml") | ENTRIES | (entries or {}))
    write(folder / "pipeline/models.yaml", read_yaml(ROOT / "pipeline/models.yaml"))
    write(folder / FILE, examples() if rows is None else rows)
    tiny.save_base(folder / f"models/{architecture}", architecture, **{"causal": is_causal} | (base or {}))
    return folder
