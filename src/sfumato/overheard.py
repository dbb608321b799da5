"""What the parts of a denoising network make of a state: features of it that no other network is needed for.

(1)  f_k(x_t, t)     output of part k, (B, places, C): channels divided by their root mean square; points are one place

They know what the data are made of, at every level of noise (Sauer et al. 2403.12015, section 3; as a distance Lin and
Yang 2401.00110).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.denoise import Denoiser
from sfumato.schedule import Instant

__all__ = ["heard", "overheard"]


@contextmanager
def overheard(network: Any) -> Iterator[list[Tensor]]:
    """Collect equation (1) of what a network is called with inside, of every part in order.

    Args:
        network: of ``sfumato.nn``, which tells its parts.
    """
    features: list[Tensor] = []

    def listen(_: nn.Module, __: Any, made: Tensor) -> None:
        channels = made.reshape(*made.shape[:2], -1).mT.to(torch.promote_types(made.dtype, torch.float32))
        features.append(F.rms_norm(channels, channels.shape[-1:]))

    hooks = [part.register_forward_hook(listen) for part, _ in network.parts]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def heard(denoiser: Denoiser, x_t: Tensor, now: Instant, cond: Condition | None) -> list[Tensor]:
    """Return equation (1) of every part, in order.

    Args:
        denoiser: whose network listens.
        x_t: (B, ...) states.
        now: their time.
        cond: of each example.
    """
    with overheard(denoiser.network) as features:
        denoiser(x_t, now, cond)
    return features
