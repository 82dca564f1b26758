"""`python -m pipeline.add`: rows for files of one's own."""
