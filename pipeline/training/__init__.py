"""Train an adapter: the Trainer, its checkpoints, and its processes."""
