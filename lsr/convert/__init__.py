"""Adapters written to files: exports, imports, rounding and squeezing, and the commands that do it."""
