"""`python -m pipeline.add`: describe files of your own in a row of data/datasets.yaml."""
