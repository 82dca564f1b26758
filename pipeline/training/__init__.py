"""What fits an adapter: the Trainer, its arguments and its callbacks."""
