"""Run the graphs that `lsr export --to onnx` writes, with onnxruntime and numpy alone.

It is not in `lsr`, because `import lsr` loads torch, which takes seconds. `pipeline.predict` and `lsr serve` share it.
"""
