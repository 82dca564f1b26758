"""Base models, and the adapters that go on them."""
