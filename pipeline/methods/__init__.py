"""Base models, and their adapters."""
