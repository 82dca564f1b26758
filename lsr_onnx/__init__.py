"""What runs without torch: graphs of `lsr export --to onnx`, and what these and `lsr serve` share with `lsr`.

It is not in `lsr`, because `import lsr` loads torch, which takes seconds. It needs numpy, and onnxruntime for graphs.
"""
