"""A diffusion model of somebody's data: a denoiser, the codec of the data, and the names of the classes.

Samples are functions: sample i of a model depends on its weights, the seed and i, not on how many are drawn with it.
Its noise comes from a stream of its own, and batches have one size whatever n is, because the last bits of a matrix
product depend on the batch's size. So ``sample(1, first=100)`` remakes sample 100 of a thousand, bit by bit, on the
same machine with the same number of threads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.data.codec import Codec
from sfumato.defaults import GRID, SAMPLER, STEPS
from sfumato.denoise import Denoiser, Given
from sfumato.dist import stream
from sfumato.errors import UserError, choose, nearest
from sfumato.grid import times
from sfumato.nn import MLP, UNet
from sfumato.process import Gaussian
from sfumato.sampler import State, Tuned, sampler, trajectory
from sfumato.schedule import SCHEDULES
from sfumato.weighting import Likelihood, LogNormal

__all__ = ["Diffusion", "Spec"]

BATCH_VALUES = 64 * 28 * 28
"""Values in a batch of samples: enough to keep two cores busy, few enough that one sample alone does not wait long."""


@dataclass(frozen=True)
class Spec:
    """All that is needed to build an untrained model for data of known shape; saved in config.toml.

    Attributes:
        network: "unet" for images, "mlp" for points.
        widths: hidden channels of each level of a U-Net; (width,) of an MLP.
        blocks: residual blocks a level of a U-Net; depth of an MLP.
        attention: for each level of a U-Net, whether it has self-attention.
        dropout: probability of dropping a hidden activation in training, U-Net only.
        classes: number of classes, 0 for none.
        schedule: a key of ``sfumato.schedule.SCHEDULES``.
        parameterisation: a key of ``sfumato.rows.ROWS``.
        weighting: a key of ``sfumato.weighting.WEIGHTINGS`` or of ``ROWS``, or "learned".
        sigma_data: the data's standard deviation.
        law: how often each noise level is drawn in training, "lognormal" or "likelihood".
        noise_mean: of the log-normal law, against sigma_data.
        noise_std: its standard deviation.
        coupling: a key of ``sfumato.coupling.COUPLINGS``.
        variance: of the reverse step: "learned" by the network, for the sampler "ancestral-learned", or "fixed".
        dequantise: train on data of finitely many levels spread evenly over the levels' bins.
        gives: what the estimate stands for, a key of ``sfumato.denoise.GIVES``.
        sampler: that draws from it unless another is asked for.
        stops: times of its usual way back, which fall to 0; () for the usual grid and number of steps.
        precision: "fp32" or "bf16" inside the network.
    """

    network: Literal["unet", "mlp"]
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...] = ()
    dropout: float = 0.0
    classes: int = 0
    schedule: str = "cosine"
    parameterisation: str = "edm"
    weighting: str = "edm"
    sigma_data: float = 0.5
    law: Literal["lognormal", "likelihood"] = "lognormal"
    noise_mean: float = -0.5
    noise_std: float = 1.2
    coupling: str = "independent"
    variance: Literal["fixed", "learned"] = "fixed"
    dequantise: bool = False
    gives: str = "mean"
    sampler: str = SAMPLER
    stops: tuple[float, ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"

    def build(self, codec: Codec, classes: Sequence[str] = ()) -> Diffusion:
        """Return an untrained model; its weights come from PyTorch's global random state.

        Args:
            codec: of the data.
            classes: names of the classes, ``self.classes`` of them.

        Raises:
            UserError: an unknown name or an impossible combination.
        """
        network: nn.Module
        heads = 2 if self.variance == "learned" else 1
        if self.network == "unet":
            network = UNet(
                codec.dims[0],
                widths=self.widths,
                blocks=self.blocks,
                attention=self.attention,
                classes=self.classes,
                dropout=self.dropout,
                out=heads * codec.dims[0],
                ends=self.gives == "map",
                precision=self.precision,
            )
        else:
            dim = math.prod(codec.dims)
            network = MLP(
                dim,
                width=self.widths[0],
                depth=self.blocks,
                classes=self.classes,
                out=heads * dim,
                ends=self.gives == "map",
            )
        denoiser = Denoiser(
            network,
            Gaussian(choose("schedule", self.schedule, SCHEDULES)()),
            parameterisation=self.parameterisation,
            weighting=self.weighting,
            sigma_data=self.sigma_data,
            law=Likelihood() if self.law == "likelihood" else LogNormal(self.noise_mean, self.noise_std),
            variance=self.variance,
            gives=self.gives,
            coupling=self.coupling,
        )
        return Diffusion(denoiser, codec, tuple(classes), self.sampler, self.stops)


class Diffusion(nn.Module):
    """A denoiser with the codec of its data.

    Args:
        denoiser: trained or not.
        codec: between the user's items and states.
        classes: names of the classes; () if the denoiser takes no labels.
        sampler: that draws from it unless another is asked for.
        stops: times of its usual way back, which fall to 0; () for the usual grid and number of steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        codec: Codec,
        classes: tuple[str, ...] = (),
        sampler: str = SAMPLER,
        stops: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.codec = codec
        self.classes = classes
        self.sampler = sampler
        self.stops = stops
        self.tuned: dict[int, Tuned] = {}

    @property
    def batch(self) -> int:
        """Samples made at a time, a function of the data's shape alone."""
        return max(1, min(256, BATCH_VALUES // math.prod(self.codec.dims)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def label(self, name: str | int) -> int:
        """Return the index of a class given by name or index.

        Raises:
            UserError: the model has no classes, or not this one.
        """
        if not self.classes:
            raise UserError("this model was trained without classes: train with --classes to ask for one")
        if str(name) in self.classes:
            return self.classes.index(str(name))
        if str(name).isdecimal() and int(name) < len(self.classes):
            return int(name)
        raise UserError(f"no class '{name}'{nearest(str(name), self.classes)}")

    def labels(self, indices: Sequence[int], label: int | None = None) -> Tensor | None:
        """Return the labels of samples by index: ``label``, or every class in turn; None without classes."""
        if not self.classes:
            return None
        return torch.tensor([i % len(self.classes) if label is None else label for i in indices])

    def way(self, steps: int | None = None, method: str | None = None, grid: str | None = None) -> tuple[int, str, str]:
        """Return steps, sampler and grid, with this model's usual ones where None is given.

        A way that was tuned for a number of steps is the usual one for that number; a student's is its own.

        Args:
            steps: steps of the sampler.
            method: a key of ``sfumato.sampler.SAMPLERS``, or "tuned".
            grid: a key of ``sfumato.grid.GRIDS``, times as text, or "tuned".
        """
        own = len(self.stops) - 1 if self.stops else STEPS
        steps = own if steps is None else steps
        if method in (None, "tuned") and grid in (None, "tuned") and steps in self.tuned:
            return steps, "tuned", "tuned"
        if grid is None:
            grid = ",".join(f"{t:.6g}" for t in self.stops) if self.stops and steps == own else GRID
        return steps, self.sampler if method is None else method, grid

    def states(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        method: str | None = None,
        grid: str | None = None,
        label: int | None = None,
        first: int = 0,
    ) -> Iterator[Tensor]:
        """Yield the states at t = 0 of samples first .. first + n - 1, batch by batch, (b, *dims) float32.

        Args:
            n: how many, at least 1.
            seed: any whole number.
            steps: as for :meth:`way`.
            method: as for :meth:`way`.
            grid: as for :meth:`way`.
            label: class index; by default every class in turn.
            first: index of the first sample.

        Raises:
            UserError: n < 1, first < 0 or an unknown name.
        """
        if n < 1 or first < 0:
            raise UserError(f"ask for at least one sample, from index 0 on, got n = {n} from {first}")
        for start in range(first - first % self.batch, first + n, self.batch):
            for state in self.trajectory(
                range(start, start + self.batch), seed=seed, steps=steps, method=method, grid=grid, label=label
            ):
                last = state.x
            yield last[max(first - start, 0) : first + n - start].cpu()

    def sample(self, n: int = 64, **how: object) -> Tensor:
        """Return ``n`` samples as the user's items, (n, ...); keywords as for :meth:`states`."""
        return self.codec.decode(torch.cat(list(self.states(n, **how))))  # type: ignore[arg-type]

    def trajectory(
        self,
        indices: Sequence[int],
        *,
        seed: int = 0,
        steps: int | None = None,
        method: str | None = None,
        grid: str | None = None,
        label: int | None = None,
    ) -> Iterator[State]:
        """Yield every stop of the way back of the samples with these indices, in one batch; see :meth:`states`."""
        steps, method, grid = self.way(steps, method, grid)
        tuned = self._tuned(steps) if "tuned" in (method, grid) else None
        stops = tuned.stops if tuned is not None else times(grid, steps, self.denoiser.process.schedule)
        rng = [stream(seed, i) for i in indices]
        blank = torch.zeros(len(indices), *self.codec.dims, device=self.device)
        labels = self.labels(indices, label)
        model = Given(self.denoiser, None if labels is None else labels.to(self.device))
        start = model.process.prior(blank, float(stops[0])).sample(rng)
        training = self.training
        self.eval()  # no dropout on the way back
        try:
            yield from (
                trajectory(model, sampler(method), start, grid, steps, rng)
                if tuned is None
                else trajectory(model, tuned, start, stops)
            )
        finally:
            self.train(training)

    def _tuned(self, steps: int) -> Tuned:
        if steps not in self.tuned:
            known = f"for {', '.join(map(str, sorted(self.tuned)))} steps" if self.tuned else "for no number of steps"
            raise UserError(f"this model's way back was tuned {known}, not for {steps}: sfumato tune-sampler does it")
        return self.tuned[steps]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that name the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]
