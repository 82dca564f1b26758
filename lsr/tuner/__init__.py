"""The PEFT method: its configuration, the adapter of a single layer, the adapted layer, and the model."""
