"""Training of an adapter: the Trainer, its arguments and its callbacks."""
