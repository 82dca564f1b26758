"""Comparison of methods: the results of the arena in tables and one page."""
