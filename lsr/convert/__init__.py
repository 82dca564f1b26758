"""Adapters written to files: exports, imports, rounding and squeezing."""
