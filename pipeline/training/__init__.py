"""Training of an adapter: the Trainer, its checkpoints, and the processes that it runs on."""
