"""What the user asks of a run, and what is chosen for the rest, said with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from sfumato.engine.optimizer import Rule
from sfumato.errors import UserError

__all__ = ["Asked", "Choices", "Size", "length", "seconds_of"]

Size = Literal["tiny", "small", "base"]
"""Of networks."""


@dataclass(frozen=True)
class Asked:
    """The arguments of ``sfumato.verbs.train``, with its defaults; None where the choice is ours."""

    data: str
    model: str = "diffusion"
    time: str | None = None
    steps: int | None = None
    size: Size | None = None
    network: Literal["unet", "dit"] | None = None
    classes: bool = False
    text: bool = False
    encoder: str | None = None
    facts: tuple[str, ...] = ()
    masks: bool = False
    latent: bool = False
    codec: str | None = None
    out: str | None = None
    seed: int = 0
    batch: int | None = None
    accumulate: int = 1
    lr: float | None = None
    optimizer: Rule | None = None
    coupling: str = "independent"
    mirror: bool = False
    resolution: int | None = None
    skip_bad: bool = False
    stream: bool = False
    schedule: str = "cosine"
    parameterisation: str = "edm"
    weighting: str | None = None
    likelihood: bool = False
    learn_variance: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    compile: bool = False
    device: str | None = None
    shard: bool = False
    save_every: float = 30.0
    resume: bool = False
    tensorboard: bool = False


class Choices:
    """Collects what was chosen, and says it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def take(self, name: str, asked: Any, chosen: Any, reason: str) -> Any:
        """Note a choice and return it.

        Args:
            name: of what is chosen.
            asked: what the user wants, or None.
            chosen: what is taken if the user does not say.
            reason: for that.
        """
        value = chosen if asked is None else asked
        self.lines.append(f"  {name:<10} {value!s:<10} {reason if asked is None else 'as asked'}")
        return value


def length(time: str | None, steps: int | None, chosen: str, why: str, choices: Choices) -> tuple[int, float]:
    """Return the steps and seconds of a run; one of them is 0.

    Args:
        time: asked for.
        steps: asked for.
        chosen: the time if neither is.
        why: that.
        choices: collects what is chosen.

    Raises:
        UserError: both are asked for, or no step.
    """
    if time is not None and steps is not None:
        raise UserError("give either --time or --steps, not both")
    if steps is not None:
        if steps < 1:
            raise UserError(f"--steps must be at least 1, got {steps}")
        return int(choices.take("steps", steps, 0, "")), 0.0
    return 0, seconds_of(choices.take("time", time, chosen, why))


def seconds_of(text: str) -> float:
    """Read a time such as 90s, 2m, 1h30m or 45 (seconds).

    Raises:
        UserError: it is none, or not above 0.
    """
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", text.strip())
    parts = match.groups() if match else (0, 0, 0)
    seconds = sum(float(part or 0) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True))
    if seconds <= 0:
        raise UserError(f"'{text}' is no time; write 90s, 2m or 1h30m")
    return seconds
