"""LSR's configurations on tiny models, on which the tests run the probes of tests/capabilities."""

from typing import Any

from tests.capabilities.subjects import Subject

DENSE: dict[str, Any] = {"rank_shape": (4,), "separation_rank": None}
CORE: dict[str, Any] = {**DENSE, "train": "core"}
FRAMES: dict[str, Any] = {**CORE, "init_weights": "principal"}
SHARED: dict[str, Any] = {**FRAMES, "share": "layers"}
CASES = {  # every option meets most of the others, each in one configuration
    "two factors": Subject("bert", layers=4),
    "padded": Subject(
        "bert-padded",
        {"rank_shape": (3, 2), "target_modules": ["query", "intermediate.dense", "attention.output.dense"]},
        layers=6,
    ),
    "principal, dropout": Subject("distilbert", {"init_weights": "principal", "dropout": 0.3}, layers=4),
    "one factor, principal, transposed": Subject(
        "gpt2", {**DENSE, "init_weights": "principal", "target_modules": "all-linear"}, layers=8
    ),
    "no seed, biases of the adapted": Subject(
        "bert", {"seed": None, "bias": "lsr_only", "exclude_modules": ["0.attention.self.value"]}, layers=3
    ),
    "patterns, more saved whole": Subject(
        "bert",
        {
            "target_modules": r".*\.(query|key|value)",
            "rank_pattern": {"query": (1, 2), r"layer\.1\..*value": (2, 1)},
            "alpha_pattern": {"0.attention.self.query": 3},
            "modules_to_save": ["pooler"],
        },
        ("classifier", "pooler"),
        layers=6,
    ),
    "a language model, one of its layers": Subject(
        "gpt2-causal", {"target_modules": ["c_attn"], "layers_to_transform": 0, "layers_pattern": "h"}, layers=1
    ),
    "a core, all biases": Subject("roberta", {**CORE, "bias": "all"}, layers=4),
    "a diagonal core": Subject("bert", {**FRAMES, "core": "diagonal"}, layers=4),
    "shared": Subject("distilbert", SHARED, layers=4),
    "shared, diagonal, transposed": Subject("gpt2", {**SHARED, "train": "all", "core": "diagonal"}, layers=2),
    "shared, grouped queries": Subject("llama-causal", {**SHARED, "train": "all", "init_weights": True}, layers=4),
}
PAIRS = {
    "two plain ones": Subject("roberta"),
    "one of the weight beside a core": Subject("gpt2", {"init_weights": "principal"}, beside=CORE),
    "two shared ones": Subject("distilbert", SHARED, beside={**SHARED, "train": "all"}),
    "one without a start beside a shared one": Subject("llama-causal", {"init_weights": False}, beside=SHARED),
    "one on other layers": Subject("gpt2-causal", beside={"target_modules": ["c_fc"]}),
}
