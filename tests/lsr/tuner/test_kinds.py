import pytest

from lsr.algebra.shapes import Form
from lsr.tuner.kinds import Kind, kind_of

FORM = Form((2, 2), (6, 4), (6, 4), 3, 24, 24)
WIDE = Form((2, 2), (6, 4), (8, 5), 3, 24, 40)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("bert.encoder.layer.3.attention.self.query", "bert.encoder.layer.*.attention.self.query"),
        ("h.0.mlp.c_fc", "h.*.mlp.c_fc"),
        ("0", "*"),
        ("0.1", "*.*"),
        ("block1.layer.12.fc2", "block1.layer.*.fc2"),
        ("stage2x.conv1", "stage2x.conv1"),
        ("lm_head", "lm_head"),
    ],
)
def test_an_index_is_a_part_of_the_name_that_is_a_number(name, pattern):
    assert kind_of(name, FORM) == Kind(pattern, FORM)


def test_layers_of_other_shapes_are_of_another_kind():
    assert kind_of("layer.0.fc", FORM) == kind_of("layer.1.fc", FORM)
    assert kind_of("layer.0.fc", FORM) != kind_of("layer.1.fc", WIDE)
    assert str(kind_of("layer.0.fc", WIDE)) == "layer.*.fc (40 x 24)"
