"""Generative models: where networks, a process and a codec meet. One contract for all stands in base.py."""

from sfumato.models.base import Spec
from sfumato.models.diffusion import DiffusionSpec
from sfumato.models.gan import GANSpec
from sfumato.models.vae import GridSpec, LadderSpec, VAESpec

__all__ = ["FAMILIES"]

FAMILIES: dict[str, type[Spec]] = {
    spec.family: spec for spec in (DiffusionSpec, GANSpec, VAESpec, LadderSpec, GridSpec)
}
"""What can be trained, by name."""
