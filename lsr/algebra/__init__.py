"""Separable sums and their fits: tensors to tensors, without modules, configurations or files."""
