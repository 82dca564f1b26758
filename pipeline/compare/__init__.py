"""Comparison of methods: the results of the arena in tables, plots and one page."""
