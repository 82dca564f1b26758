"""The schema of params.yaml and the two tables, and the part of them that each stage sees."""

from pipeline.params.methods import FullParams, HeadParams, LsrParams, MethodParams, PeftParams
from pipeline.params.reading import AnyView, load, load_params, load_row
from pipeline.params.schema import (
    DECLARED,
    PARAMS,
    TABLES,
    EvaluateView,
    FactorizeInitView,
    Params,
    TokenizeView,
    TrainView,
    View,
)
from pipeline.params.sections import Dropout, EvaluateParams, Section, Shape, Targets, TokenizeParams, TrainParams, Word

__all__ = [
    "DECLARED",
    "PARAMS",
    "TABLES",
    "AnyView",
    "Dropout",
    "EvaluateParams",
    "EvaluateView",
    "FactorizeInitView",
    "FullParams",
    "HeadParams",
    "LsrParams",
    "MethodParams",
    "Params",
    "PeftParams",
    "Section",
    "Shape",
    "Targets",
    "TokenizeParams",
    "TokenizeView",
    "TrainParams",
    "TrainView",
    "View",
    "Word",
    "load",
    "load_params",
    "load_row",
]
