"""The verbs of sfumato: the functions of the Python API and, by the same names and defaults, of the command line.

The command line is made from their signatures and docstrings, so the two cannot differ. Heavy imports stay inside the
functions: ``sfumato --help`` must not wait for PyTorch.
"""

from sfumato.verbs.drawing import load, sample, samplers, show
from sfumato.verbs.editing import edit, interpolate, restore
from sfumato.verbs.judging import compare, evaluate, inspect, likelihood, report
from sfumato.verbs.training import distill, plan, polish, resume, train, tune_sampler

__all__ = [
    "compare",
    "distill",
    "edit",
    "evaluate",
    "inspect",
    "interpolate",
    "likelihood",
    "load",
    "plan",
    "polish",
    "report",
    "restore",
    "resume",
    "sample",
    "samplers",
    "show",
    "train",
    "tune_sampler",
]
