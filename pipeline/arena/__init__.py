"""The arena, our benchmark runner: compare methods on many data sets, with equal budgets, tuning and seeds."""
