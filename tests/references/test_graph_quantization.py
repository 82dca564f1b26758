"""A graph in 8 bits rounds each token by its own scale; the reference is numpy in float64."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from lsr.convert.graph_quantization import quantize_graph, scale_tokens

WIDTH = 48
MAGNITUDES = np.array([1.0, 1e3, 1e-3, 0.0, 30.0, -7.0])


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(0)
    return [random.standard_normal((WIDTH, outputs)).astype(np.float32) for outputs in (32, 64)]


@pytest.fixture
def model(weights):
    """A graph of two products of one input with weights, and one of their outputs with each other."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="a"),
        helper.make_node("MatMul", ["x", "second"], ["b"], name="b"),
        helper.make_node("Transpose", ["a"], ["t"], name="t", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "b"], ["c"], name="c"),
    ]
    constants = [
        numpy_helper.from_array(matrix, name) for matrix, name in zip(weights, ("first", "second"), strict=True)
    ]
    takes = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["texts", "length", WIDTH])]
    returns = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in "abc"]
    graph = helper.make_graph(nodes, "products", takes, returns, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def tokens():
    """Two texts (2, 6, WIDTH) whose tokens differ in magnitude by a factor of a million; one is zero."""
    values = np.random.default_rng(1).standard_normal((2, len(MAGNITUDES), WIDTH))
    return (values * MAGNITUDES[:, None]).astype(np.float32)


def run(graph, tokens):
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    return session.run(["a", "b", "c"], {"x": tokens})


def errors_by_token(actual, tokens, matrix):
    """Return the largest error of each token that is not zero, relative to its largest output."""
    expected = tokens.astype(np.float64) @ matrix
    assert np.isfinite(actual).all()
    assert not actual[:, MAGNITUDES == 0].any()
    largest = np.abs(expected).max(axis=2)[:, MAGNITUDES != 0]
    return np.abs(actual - expected).max(axis=2)[:, MAGNITUDES != 0] / largest


def test_scaling_of_tokens_changes_outputs_by_rounding_only(model, tokens, weights):
    scale_tokens(model)
    onnx.checker.check_model(model, full_check=True)
    first, second, product = run(model.SerializeToString(), tokens)
    assert errors_by_token(first, tokens, weights[0]).max() < 1e-6
    assert errors_by_token(second, tokens, weights[1]).max() < 1e-6
    expected = first.astype(np.float64).transpose(0, 2, 1) @ second
    np.testing.assert_allclose(product, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


def test_each_token_keeps_its_precision_in_8_bits_whatever_the_others_are(model, tokens, weights, tmp_path):
    onnx.save(model, tmp_path / "float32.onnx")
    quantize_graph(tmp_path / "float32.onnx", tmp_path / "int8.onnx")
    first, second, _ = run(tmp_path / "int8.onnx", tokens)
    assert errors_by_token(first, tokens, weights[0]).max() < 0.02
    assert errors_by_token(second, tokens, weights[1]).max() < 0.02
    # The control: by one scale for all, the small tokens are lost.
    quantize_dynamic(model, tmp_path / "one-scale.onnx", weight_type=QuantType.QInt8, per_channel=True)
    assert errors_by_token(run(tmp_path / "one-scale.onnx", tokens)[0], tokens, weights[0]).max() > 0.9


def test_a_graph_without_products_of_weights_stays_the_same(model):
    del model.graph.node[:2]
    before = model.SerializeToString(deterministic=True)
    scale_tokens(model)
    assert model.SerializeToString(deterministic=True) == before
