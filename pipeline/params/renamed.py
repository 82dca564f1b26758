"""Names that earlier versions had for keys and values of YAML files, so that messages can say the present ones."""

KEYS = {
    "common": "shared_adapter",
    "says": "text",
    "several": "multi_label",
    "warmup_share": "warmup_ratio",
}
VALUES = {  # present value by key and former value
    ("init", "warm"): "warm_start",
    ("kind", "several"): "multi_label",
}
