"""LSR's configurations on tiny models, on which the tests run the probes of tests/capabilities."""

from typing import Any

from tests.capabilities.subjects import Subject

DENSE: dict[str, Any] = {"rank_shape": (4,), "separation_rank": None}
SHARED: dict[str, Any] = {"share": "layers", "train": "core", "init_weights": "principal"}
FAMILY = {  # one factor a side, cores, and factors that layers share
    "one factor": Subject("bert", DENSE, layers=4),
    "a core": Subject("bert", {**DENSE, "train": "core", "init_weights": "principal"}, layers=4),
    "a core between Kronecker factors": Subject(
        "bert-padded", {"train": "core", "init_weights": "principal"}, layers=4
    ),
    "a core and factors": Subject("distilbert", {"train": "all"}, layers=4),
    "a core, rounded to bfloat16": Subject("roberta", {**DENSE, "train": "core", "frames_dtype": "bfloat16"}, layers=4),
    "a core, rounded to int8": Subject("bert", {"train": "core", "frames_dtype": "int8"}, layers=4),
    "a core, rounded to signs": Subject("bert", {**DENSE, "train": "core", "frames_dtype": "sign"}, layers=4),
    "a diagonal core": Subject(
        "bert", {**DENSE, "train": "core", "core": "diagonal", "init_weights": "principal"}, layers=4
    ),
    "shared, diagonal cores": Subject("gpt2", {**DENSE, **SHARED, "train": "all", "core": "diagonal"}, layers=2),
    "shared": Subject("bert", {**DENSE, **SHARED}, layers=4),
    "shared, six kinds": Subject(
        "bert", {**SHARED, "target_modules": r".*encoder.*\.(query|key|value|dense)"}, layers=12
    ),
    "shared, transposed": Subject("gpt2", {**SHARED, "target_modules": ["c_attn", "c_proj", "c_fc"]}, layers=8),
    "shared, grouped queries": Subject("llama-causal", {**DENSE, **SHARED, "train": "all"}, layers=4),
    "shared, all of it trains": Subject("roberta", {**SHARED, "train": "all", "init_weights": True}, layers=4),
    "shared, rounded to int8": Subject("distilbert", {**DENSE, **SHARED, "frames_dtype": "int8"}, layers=4),
}

CASES = {  # LSR's configurations
    "two factors": Subject("bert", layers=4),
    "three factors": Subject("bert", {"rank_shape": (2, 2, 2)}, layers=4),
    "alpha is the rank": Subject("roberta", {"alpha": 4}, layers=4),
    "dropout": Subject("distilbert", {"dropout": 0.3}, layers=4),
    "principal": Subject("bert", {"init_weights": "principal"}, layers=4),
    "principal, three factors": Subject("bert", {"init_weights": "principal", "rank_shape": (2, 2, 2)}, layers=4),
    "principal, padded": Subject("bert-padded", {"init_weights": "principal"}, layers=4),
    "principal, transposed": Subject("gpt2", {"init_weights": "principal"}, layers=2),
    "only the first trains": Subject("bert", {"train": "first"}, layers=4),
    "only the first trains, folded": Subject("bert", {"init_weights": "principal", "train": "first"}, layers=4),
    "no seed": Subject("bert", {"seed": None}, layers=4),
    "padded width": Subject(
        "bert-padded", {"target_modules": ["query", "intermediate.dense", "attention.output.dense"]}, layers=6
    ),
    "own shapes": Subject("bert", {"in_shape": (5, 5), "out_shape": (2, 13)}, layers=4),
    "patterns": Subject(
        "bert",
        {
            "target_modules": ["query", "key", "value"],
            "rank_pattern": {"query": (1, 2), r"layer\.1\..*value": (2, 1, 1)},
            "separation_rank_pattern": {"key": 1},
            "alpha_pattern": {"0.attention.self.query": 3},
        },
        layers=6,
    ),
    "all linear": Subject("bert", {"target_modules": "all-linear"}, layers=13),
    "regular expression": Subject("roberta", {"target_modules": r".*layer\.1\..*\.(query|value)"}, layers=2),
    "excluded": Subject("bert", {"exclude_modules": ["0.attention.self.value"]}, layers=3),
    "one layer": Subject("bert", {"target_modules": ["query", "value"], "layers_to_transform": [1]}, layers=2),
    "pattern of layers": Subject(
        "gpt2", {"target_modules": ["c_attn"], "layers_to_transform": 0, "layers_pattern": "h"}, layers=1
    ),
    "biases of the adapted": Subject("bert", {"bias": "lsr_only"}, layers=4),
    "all biases": Subject("bert", {"bias": "all"}, layers=4),
    "more saved whole": Subject("bert", {"modules_to_save": ["pooler"]}, ("classifier", "pooler"), layers=4),
    "transposed weights": Subject("gpt2", {"target_modules": "all-linear"}, layers=8),
    "a language model": Subject("gpt2-causal", layers=2),
    "grouped queries": Subject("llama-causal", layers=4),
    "one factor, principal": Subject("gpt2", {**DENSE, "init_weights": "principal"}, layers=2),
    **FAMILY,
}
