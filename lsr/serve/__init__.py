"""Serve many adapters of one base model at once: each row of a batch picks its own from a bank."""
