"""The PEFT method: its configuration, one adapter of one layer, the layer, and the model that holds them."""
