"""Samplers: ways back from noise to data, one file for each family, by the names used on the command line."""

from __future__ import annotations

from collections.abc import Callable

from sfumato.errors import choose
from sfumato.sampler.ancestral import Ancestral
from sfumato.sampler.base import Sampler, State, generate, trajectory
from sfumato.sampler.ddim import DDIM
from sfumato.sampler.heun import Heun
from sfumato.sampler.multistep import DPMpp2M

__all__ = [
    "DDIM",
    "SAMPLERS",
    "Ancestral",
    "DPMpp2M",
    "Heun",
    "Sampler",
    "State",
    "generate",
    "sampler",
    "trajectory",
]

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ancestral": Ancestral,
    "ancestral-large": lambda: Ancestral("large"),
    "ancestral-optimal": lambda: Ancestral("optimal"),
    "ddim": DDIM,
    "heun": Heun,
    "dpm++2m": DPMpp2M,
}
"""Every sampler by name; the order tests run over this table."""


def sampler(name: str) -> Sampler:
    """Return a sampler by name.

    Raises:
        UserError: an unknown name; the nearest known one is offered.
    """
    return choose("sampler", name, SAMPLERS)()
