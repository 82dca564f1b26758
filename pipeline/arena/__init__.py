"""The arena: methods side by side on many data sets, with the same budgets, several seeds and tuned rates."""
