"""The autoencoder of a run of latents: trained before it, or there already; a copy lies in the run's folder codec/."""

from __future__ import annotations

from pathlib import Path

from sfumato.engine.asked import Asked, seconds_of

__all__ = ["PART", "autoencoder"]

PART = 0.5
"""Of the time of the diffusion model, for its autoencoder before it."""
USUAL = "5m"
"""Time of an autoencoder if none was asked for."""


def autoencoder(asked: Asked, out: Path) -> Asked:
    """Return what to ask of an autoencoder for a run of latents.

    Args:
        asked: of that run.
        out: folder of the autoencoder's run.

    Raises:
        UserError: a time that is none.
    """
    time = None if asked.steps else f"{PART * seconds_of(asked.time):g}s" if asked.time else USUAL
    return Asked(
        asked.data,
        model="autoencoder",
        time=time,
        steps=asked.steps,
        out=str(out),
        resume=True,
        seed=asked.seed,
        size=asked.size,
        precision=asked.precision,
        batch=asked.batch,
        resolution=asked.resolution,
        skip_bad=asked.skip_bad,
        stream=asked.stream,
        device=asked.device,
        save_every=asked.save_every,
    )
