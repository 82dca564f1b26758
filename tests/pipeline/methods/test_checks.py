"""What a method cannot do with a model is one line that names the key, before anything is trained."""

from pathlib import Path

import pytest

from pipeline import params
from pipeline.core.errors import UserError
from pipeline.methods import adapters, other
from tests import workspace
from tests.stages.running import base_model

QUERY = "roberta.encoder.layer.0.attention.self.query"
MISTAKES = [
    ("lokr", {"decompose_factor": 7}, f"decompose_factor: 7 does not divide 24, a width of {QUERY}"),
    ("krona", {"factor": 5}, f"factor: 5 does not divide 24, a width of {QUERY}"),
    ("kadaptation", {"n": 5}, f"n: 5 does not divide 24, a width of {QUERY}"),
    ("vblora", {"vector_length": 7}, f"vector_length: 7 does not divide 24, a width of {QUERY}"),
    ("c3a", {"block_size": 5}, f"block_size: 5 does not divide 24, a width of {QUERY}"),
    ("fourierft", {"n_frequency": 577}, f"n_frequency: 577 is above 576, the entries of {QUERY}"),
    ("tinylora", {"r": 25}, f"r: 25 is above 24, the singular vectors of {QUERY}"),
    ("loraxs", {"r": 25}, f"layer '{QUERY}': the rank must be in [1, 24], the smaller side of 24 x 24, got 25"),
    ("lora", {"r": 25}, f"r: 25 is above 24, the smaller side of {QUERY}"),
    (
        "kadaptation",
        {"target_modules": ["word_embeddings"]},
        "target_modules: roberta.embeddings.word_embeddings is of Embedding, but kadaptation adapts Linear",
    ),
    (
        "vera",
        {"target_modules": ["output.LayerNorm"]},
        "target_modules: roberta.encoder.layer.0.attention.output.LayerNorm is of LayerNorm, but vera adapts Linear or",
    ),
    ("vera", {"target_modules": ["qury"]}, "target_modules: no layer is named 'qury'; did you mean 'query'?"),
    ("vera", {"layers": [9]}, "layers_to_transform: no adapted layer has the index 9"),
    ("ia3", {"feedforward_modules": ["dense"]}, "`feedforward_modules` should be a subset of `target_modules`"),
    ("peft", {"type": "LOHAA"}, "type: PEFT 0.21.2 has no method 'LOHAA'; did you mean LOHA?; allowed are LORA, "),
    ("peft", {"type": "LSR"}, "type: LSR is not one of PEFT's own methods"),
    ("peft", {"type": "P_TUNING"}, "type: P_TUNING adapts no layers of a model"),
    ("peft", {"type": "ADALORA"}, "type: ADALORA needs calls that move ranks between layers, which this training"),
    ("peft", {"options": {"rr": 4}}, "options.rr: HRA has no such option; did you mean r?"),
    ("peft", {"options": {"task_type": "CAUSAL_LM"}}, "options.task_type: is set by the pipeline"),
    ("peft", {"options": {"r": 0}}, "HRA: `r` should be a positive integer value but the value passed is 0"),
    ("peft", {"type": "MISS", "options": {"r": 64}}, "MISS: `r` (64) must be less than or equal to in_features (24)"),
    ("peft", {"type": "SHADOW", "options": {}}, "SHADOW: "),  # it builds, and fails when it is asked
]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The values of a workspace, which is the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.make(tmp_path_factory.mktemp("checks")))
        yield workspace.read_yaml(Path("params.yaml"))


@pytest.fixture(scope="module")
def view(content):
    return params.load(params.TrainView)


def refusal(content, view, word, values, base=None):
    section = params.ADAPTERS[word].model_validate(content[word] | values).filled()
    with pytest.raises(UserError) as error:
        adapters.add_adapter(base or base_model(view), section, view.base_model, 0)
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(("word", "values", "message"), MISTAKES)
def test_what_does_not_fit_is_one_line(content, view, word, values, message):
    assert refusal(content, view, word, values).startswith(f"params.yaml: {word}: {message}")


def test_a_model_without_a_bias_has_none_to_shift(content, view):
    base = base_model(view)
    for module in base.roberta.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    assert refusal(content, view, "bitfit", {}, base) == "params.yaml: bitfit: the base model has no bias"


def test_layers_of_ia3_are_named_where_none_are_published(content, view):
    base = base_model(view)
    base.config.model_type = "novel"
    line = refusal(content, view, "ia3", {}, base)
    assert line == "params.yaml: ia3: target_modules: none are published for a novel; name them"


def test_no_method_of_peft_that_needs_a_loop_of_its_own_is_offered():
    assert not set(other.OWN_LOOP) & set(other.kinds())
    assert {"BOFT", "HRA", "LOHA", "OFT", "RANDLORA"} <= set(other.kinds())  # params.yaml names them
