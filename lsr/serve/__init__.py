"""Many adapters of one base model at once: a bank of them, from which each row of a batch takes its own."""
