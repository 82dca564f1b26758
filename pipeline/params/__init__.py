"""The schema of params.yaml and the two tables, and the part of them that each stage sees."""

from pipeline.params.methods import FullParams, LsrParams, MethodParams, PeftParams
from pipeline.params.reading import AnyView, load, load_params, load_row
from pipeline.params.schema import PARAMS, TABLES, EvaluateView, FactorizeInitView, Params, TokenizeView, TrainView
from pipeline.params.sections import TokenizeParams, TrainParams

__all__ = [
    "PARAMS",
    "TABLES",
    "AnyView",
    "EvaluateView",
    "FactorizeInitView",
    "FullParams",
    "LsrParams",
    "MethodParams",
    "Params",
    "PeftParams",
    "TokenizeParams",
    "TokenizeView",
    "TrainParams",
    "TrainView",
    "load",
    "load_params",
    "load_row",
]
