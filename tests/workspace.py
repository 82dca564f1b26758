"""A folder in which the stages run: params, the two tables, a tiny RoBERTa and a GLUE-shaped data set, all local."""

import atexit
import copy
import shutil
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ruamel.yaml import YAML
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

from tests.kit import write

ROOT = Path(__file__).parents[1]
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


def read_yaml(path: Path) -> Any:
    return copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))


@lru_cache
def _parsed(text: str) -> Any:
    """Parse what many tests read again: a table takes a tenth of a second."""
    return YAML(typ="safe", pure=True).load(text)


ROWS = read_yaml(ROOT / "tests/rows.yaml")


def make(folder: Path, rows: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Fill a folder, which may be a copy of the repository, and return it.

    `rows` are added to those of data, `changes` are merged into params.yaml.
    """
    shutil.copytree(_whole(), folder, dirs_exist_ok=True)
    if rows is not None:
        write(folder / "pipeline/datasets.yaml", read_yaml(folder / "pipeline/datasets.yaml") | rows)
    params = merged(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "tests/small.yaml"))
    write(folder / "params.yaml", merged(params, changes))
    return folder


@cache
def _whole() -> Path:
    """Make all but params.yaml, once a process."""
    folder = Path(tempfile.mkdtemp(prefix="workspace"))
    atexit.register(shutil.rmtree, folder)
    save_tiny_roberta(folder / "tiny-roberta")
    save_glue(folder / "glue")
    save_ratings(folder / "ratings.csv")
    source = {"kind": "hub", "path": "tiny-roberta"}
    tiny = {"source": source, "target_modules": ["query", "value"], "head": ["classifier"]}
    data = {name: ROWS[name] for name in ("glue", "ratings", "comparisons")}
    write(folder / "pipeline/models.yaml", read_yaml(ROOT / "pipeline/models.yaml") | {"tiny": tiny})
    write(folder / "pipeline/datasets.yaml", read_yaml(ROOT / "pipeline/datasets.yaml") | data)
    return folder


def copy_committed(folder: Path = Path()) -> None:
    """Put params.yaml and the two tables, as they are committed, into a folder."""
    for name in ("params.yaml", "pipeline/datasets.yaml", "pipeline/models.yaml"):
        write(folder / name, (ROOT / name).read_bytes())


def change(**changes: Any) -> None:
    """Merge changes into the params.yaml of the working folder."""
    write(Path("params.yaml"), merged(read_yaml(Path("params.yaml")), changes))


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with some of them changed."""
    inner = {key: merged(values.get(key, {}), new) for key, new in changes.items() if isinstance(new, dict)}
    return values | changes | inner


def sentences(count: int) -> list[tuple[str, str, int]]:
    """Pairs that either say the same of an animal or do not: 1 and 0 in turn."""
    animals = ("cat", "dog", "owl", "fox", "hen")
    places = ("garden", "barn", "forest", "river")
    pairs = []
    for number in range(count):
        first = f"the {animals[number % 5]} number {number} sleeps in the {places[number % 4]}"
        same = number % 2
        pairs.append((first, first.replace("sleeps", "rests") if same else f"nobody saw {number} today at all", same))
    return pairs


def save_glue(folder: Path) -> None:
    """A repository as the hub has it: a card that names the config, one Parquet file a split, hidden test labels."""
    table = pd.DataFrame(sentences(200), columns=["sentence1", "sentence2", "label"])
    table["idx"] = range(200)
    (folder / "mrpc").mkdir(parents=True)
    table[:160].to_parquet(folder / "mrpc/train-00000.parquet", index=False)
    table[160:].to_parquet(folder / "mrpc/validation-00000.parquet", index=False)
    table[:5].assign(label=-1).to_parquet(folder / "mrpc/test-00000.parquet", index=False)
    files = "".join(f"  - split: {split}\n    path: mrpc/{split}-*\n" for split in ("train", "validation", "test"))
    card = f"---\nconfigs:\n- config_name: mrpc\n  data_files:\n{files}---\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_ratings(path: Path) -> None:
    rows = [(sentence, abs(4 * label - (i % 5) / 50)) for i, (sentence, _, label) in enumerate(sentences(150))]
    pd.DataFrame(rows, columns=["sentence1", "rating"]).to_csv(path, index=False)


def save_tiny_roberta(folder: Path) -> None:
    """A folder that `from_pretrained` loads like the hub's: random weights, a tokenizer trained on the sentences."""
    bpe = ByteLevelBPETokenizer()
    texts = [text for *pair, _ in sentences(200) for text in pair]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(texts, vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False)
    folder.mkdir(parents=True)
    bpe.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(str(folder), model_max_length=30)
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1, **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        RobertaForSequenceClassification(config).roberta.save_pretrained(folder)
