"""From a row of pipeline/datasets.yaml to tokenized splits."""
