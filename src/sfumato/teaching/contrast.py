"""Samples that differ as much as the data do: by one number with which all that a student says is multiplied.

(1)  V = E |x - E x|^2,   of samples and of data
(2)  g <- g (V of the data / V of samples)^(1/2)

A rival hardly sees how strong the contrast is, and leaves samples duller than the data: of Fashion-MNIST 4% of V was
missing, in the weights of a step as in their average, and with it a fifth of the Frechet distance and a recall of 0.02
(measured). Where V of both is the same within twice the error that so many examples have, nothing is changed. Training
does not see the gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.condition import Condition
from sfumato.denoise import Denoiser
from sfumato.teaching.rivalry import drawn_by

__all__ = ["set_gain", "total_variance"]

ROUNDS = 2  # of (2): exact after the first for one call, and nearly for several
SURE = 2.0  # standard errors
MOST = 1.1  # a student that is farther off lacks more than contrast


def total_variance(x: Tensor) -> tuple[float, float]:
    """Return V of equation (1), and the standard error of it.

    Args:
        x: (n, ...) examples, n >= 2.
    """
    off = (x - x.mean(0)).flatten(1).double().square().sum(1)
    return float(off.mean()), float(off.std()) / len(x) ** 0.5


@torch.no_grad()
def set_gain(
    student: Denoiser, stops: Sequence[float], examples: Sequence[tuple[Tensor, Condition | None]], rng: torch.Generator
) -> float:
    """Measure and set the student's gain, and return it; equation (2).

    Args:
        student: in evaluation, that gives the end.
        stops: times of its way back, falling to 0.
        examples: of the data, batch by batch; the student is asked for what each of them is.
        rng: for the noise.
    """
    wanted, unsure = total_variance(torch.cat([x_0 for x_0, _ in examples]))
    state = rng.get_state()
    student.gain.fill_(1.0)
    for k in range(ROUNDS):
        rng.set_state(state)  # the same noise
        found, error = total_variance(torch.cat([drawn_by(student, stops, x_0, cond, rng) for x_0, cond in examples]))
        if k == 0 and abs(found - wanted) <= SURE * math.hypot(unsure, error):
            break
        student.gain.mul_(math.sqrt(wanted / found)).clamp_(1 / MOST, MOST)
    return float(student.gain)
