"""Separable sums and fits to them: functions from tensors to tensors, with no modules, configurations or files."""
