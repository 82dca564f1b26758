"""Adapters written to files: exports, imports, quantization and compression."""
