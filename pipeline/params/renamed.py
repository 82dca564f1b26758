"""Former names of keys and values in YAML files, so that messages can state the present ones."""

KEYS = {
    "above": "threshold",
    "against": "versus",
    "budget": "total_directions",
    "common": "shared_adapter",
    "cut": "split",
    "examples": "init_examples",
    "head_steps": "init_head_steps",
    "longest": "max_tokens",
    "new_tokens": "max_new_tokens",
    "reads": "sample_sizes",
    "rounded": "quantized_seeds",
    "says": "text",
    "several": "multi_label",
    "steps": "extend_epochs",
    "warmup_share": "warmup_ratio",
    "wider": "extra_rates",
}
VALUES = {  # present value by key and former value
    ("init", "update"): "lora_update",
    ("init", "warm"): "warm_start",
    ("kind", "several"): "multi_label",
}
