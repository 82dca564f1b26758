"""`python -m pipeline.predict`: what a trained adapter says of new texts."""
