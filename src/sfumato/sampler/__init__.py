"""Samplers: ways back from noise to data, one file for each family, by the names used on the command line."""

from __future__ import annotations

from collections.abc import Callable

from sfumato.errors import choose
from sfumato.sampler.adams import EVERY, IPNDM, Adams, Halved, Midpoint
from sfumato.sampler.adaptive import Adaptive
from sfumato.sampler.ancestral import Ancestral
from sfumato.sampler.base import Sampler, State, encode, generate, trajectory
from sfumato.sampler.climbing import RePaint, Restart
from sfumato.sampler.ddim import DDIM
from sfumato.sampler.flowmap import Consistency, FlowMap
from sfumato.sampler.langevin import AnnealedLangevin, PredictorCorrector, langevin
from sfumato.sampler.rungekutta import DPM2, Euler, Heun
from sfumato.sampler.sde import EulerMaruyama, ReverseDiffusion
from sfumato.sampler.singlestep import DPMpp2S, DPMpp3S
from sfumato.sampler.tuned import Tuned
from sfumato.sampler.unmask import Unmask

__all__ = [
    "DDIM",
    "DPM2",
    "IPNDM",
    "SAMPLERS",
    "Adams",
    "Adaptive",
    "Ancestral",
    "AnnealedLangevin",
    "Consistency",
    "DPMpp2S",
    "DPMpp3S",
    "Euler",
    "EulerMaruyama",
    "FlowMap",
    "Halved",
    "Heun",
    "Midpoint",
    "PredictorCorrector",
    "RePaint",
    "Restart",
    "ReverseDiffusion",
    "Sampler",
    "State",
    "Tuned",
    "Unmask",
    "encode",
    "generate",
    "langevin",
    "sampler",
    "trajectory",
]

DEIS = "Zhang and Chen 2204.13902, sec. 3.3"
UNIPC = "Zhao et al. 2302.04867, alg. 1 and 2"
LMS = "Karras et al. 2206.00364, eq. 3, by Adams-Bashforth"
MANY = "Lu et al. 2211.01095, alg. 2"

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ancestral": Ancestral,
    "ancestral-large": lambda: Ancestral("large"),
    "ancestral-optimal": lambda: Ancestral("optimal"),
    "ancestral-learned": lambda: Ancestral("learned"),
    "ddim": DDIM,
    "euler": Euler,
    "euler-churn": lambda: Euler(churn=2.0),
    "heun": Heun,
    "heun-churn": lambda: Heun(churn=2.0),
    "dpm2": DPM2,
    "dpm2-churn": lambda: DPM2(churn=2.0),
    "ab2": lambda: Adams(2, of="eps", along="linear", source=LMS),
    "ab3": lambda: Adams(3, 1, of="eps", along="linear", source=LMS),
    "lms": lambda: Adams(4, of="eps", along="linear", source=LMS),
    "deis2": lambda: Adams(2, of="eps", source=DEIS),
    "deis3": lambda: Adams(3, 1, of="eps", source=DEIS),
    "ipndm": lambda: IPNDM(4, of="eps", source="Zhang and Chen 2204.13902, app. H.2; Liu et al. 2202.09778"),
    "dpm++2s": DPMpp2S,
    "dpm++3s": DPMpp3S,
    "dpm++2m": lambda: Midpoint(2, source=MANY),
    "dpm++3m": lambda: Adams(3, 1, source=MANY),
    "dpm++3m-shipped": lambda: Halved(3, source="Lu et al., the code of DPM-Solver++"),
    "unipc2": lambda: Midpoint(2, EVERY, source=UNIPC),
    "unipc3": lambda: Midpoint(3, EVERY, source=UNIPC),
    "dpm++2m-sde": lambda: Midpoint(2, tau=1.0, source="Lu et al. 2211.01095, app. D"),
    "sa": lambda: Adams(3, EVERY, tau=1.0, source="Xue et al. 2309.05019, alg. 1"),
    "reverse-diffusion": ReverseDiffusion,
    "euler-maruyama": EulerMaruyama,
    "langevin": AnnealedLangevin,
    "predictor-corrector": lambda: PredictorCorrector(predictor=ReverseDiffusion()),
    "restart": lambda: Restart(Heun()),
    "adaptive": Adaptive,
    "flowmap": FlowMap,
    "consistency": Consistency,
    "unmask": Unmask,
    "unmask-confidence": lambda: Unmask("confidence"),
}
"""Every sampler by name; the order tests run over this table."""


def sampler(name: str) -> Sampler:
    """Return a sampler by name.

    Raises:
        UserError: an unknown name; the nearest known one is offered.
    """
    return choose("sampler", name, SAMPLERS)()
