"""The arena: methods compared on many data sets, with equal budgets, several seeds and tuned learning rates."""
