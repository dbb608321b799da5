"""Guidance: a model made of others, which every sampler and likelihood takes as it takes them."""

from sfumato.guide.measured import Measured
from sfumato.guide.steer import Steered
from sfumato.guide.threshold import Thresholded
from sfumato.guide.toward import Guidance, Guided

__all__ = ["Guidance", "Guided", "Measured", "Steered", "Thresholded"]
