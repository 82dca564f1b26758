"""From a row of datasets.yaml to tokenized splits."""
