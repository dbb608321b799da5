"""Sfumato: data turn to noise step by step, and a network learns the way back.

Everything here is imported on first use, so ``import sfumato`` and ``sfumato --help`` do not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.denoise import Denoiser as Denoiser
    from sfumato.density import flow_logp as flow_logp
    from sfumato.density import vlb as vlb
    from sfumato.dist import Categorical as Categorical
    from sfumato.dist import Joint as Joint
    from sfumato.dist import Normal as Normal
    from sfumato.mixing import Mixing as Mixing
    from sfumato.mixing import Parts as Parts
    from sfumato.predict import JointDenoiser as JointDenoiser
    from sfumato.predict import TokenDenoiser as TokenDenoiser
    from sfumato.process import Gaussian as Gaussian
    from sfumato.sampler import encode as encode
    from sfumato.sampler import generate as generate
    from sfumato.sampler import trajectory as trajectory
    from sfumato.schedule import EDM as EDM
    from sfumato.schedule import VE as VE
    from sfumato.schedule import VP as VP
    from sfumato.schedule import Cosine as Cosine
    from sfumato.schedule import Flow as Flow
    from sfumato.schedule import SubVP as SubVP
    from sfumato.schedule import Table as Table
    from sfumato.verbs import compare as compare
    from sfumato.verbs import distill as distill
    from sfumato.verbs import edit as edit
    from sfumato.verbs import evaluate as evaluate
    from sfumato.verbs import inspect as inspect
    from sfumato.verbs import interpolate as interpolate
    from sfumato.verbs import likelihood as likelihood
    from sfumato.verbs import load as load
    from sfumato.verbs import plan as plan
    from sfumato.verbs import polish as polish
    from sfumato.verbs import report as report
    from sfumato.verbs import restore as restore
    from sfumato.verbs import resume as resume
    from sfumato.verbs import sample as sample
    from sfumato.verbs import samplers as samplers
    from sfumato.verbs import show as show
    from sfumato.verbs import train as train
    from sfumato.verbs import tune_sampler as tune_sampler

__version__ = version("sfumato")

_HOME = {
    **dict.fromkeys(("Normal", "Categorical", "Joint"), "dist"),
    **dict.fromkeys(("VP", "Cosine", "SubVP", "VE", "EDM", "Flow", "Table"), "schedule"),
    "Gaussian": "process",
    **dict.fromkeys(("Mixing", "Parts"), "mixing"),
    "Denoiser": "denoise",
    **dict.fromkeys(("TokenDenoiser", "JointDenoiser"), "predict"),
    **dict.fromkeys(("generate", "trajectory", "encode"), "sampler"),
    **dict.fromkeys(("vlb", "flow_logp"), "density"),
    **dict.fromkeys(
        (
            "compare",
            "plan",
            "polish",
            "train",
            "resume",
            "sample",
            "samplers",
            "edit",
            "interpolate",
            "restore",
            "distill",
            "tune_sampler",
            "evaluate",
            "likelihood",
            "show",
            "report",
            "inspect",
            "load",
        ),
        "verbs",
    ),
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sfumato' has no attribute '{name}'")
    return getattr(import_module(f"sfumato.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
