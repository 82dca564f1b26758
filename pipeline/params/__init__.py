"""The schema of params.yaml and the two registries, and the view of each stage."""

from pipeline.params.reading import load, load_entry, load_params
from pipeline.params.schema import PARAMS, REGISTRIES, EvaluateView, FactorizeInitView, Params, TokenizeView, TrainView
from pipeline.params.sections import FullParams, LsrParams, MethodParams, PeftParams

__all__ = [
    "PARAMS",
    "REGISTRIES",
    "EvaluateView",
    "FactorizeInitView",
    "FullParams",
    "LsrParams",
    "MethodParams",
    "Params",
    "PeftParams",
    "TokenizeView",
    "TrainView",
    "load",
    "load_entry",
    "load_params",
]
