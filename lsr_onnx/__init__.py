"""Run the graphs that `lsr export --to onnx` writes, with onnxruntime and numpy alone.

`import lsr` loads torch, which takes seconds; so what `pipeline.predict` and `lsr serve` share of graphs is here.
"""
