"""`python -m pipeline.add`: register your own files in data/datasets.yaml."""
