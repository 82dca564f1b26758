"""Names that earlier versions had for keys and values of YAML files, so that messages can say the present ones."""

KEYS = {
    "common": "shared_adapter",
    "warmup_share": "warmup_ratio",
}
VALUES = {("init", "warm"): "warm_start"}  # by key and value
