"""`python -m pipeline.predict`: predictions of a trained adapter for new texts."""
