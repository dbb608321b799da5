"""A diffusion model of somebody's data: a denoiser, the codec of the data, and the names of the classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from sfumato.condition import NULL, Condition, Row, Vocabulary
from sfumato.data.codec import Codec, Dataset
from sfumato.defaults import GRID, SAMPLER, STEPS
from sfumato.denoise import Denoiser, Given, Model, tells_mean
from sfumato.density import vlb
from sfumato.dist import Rng, stream
from sfumato.errors import UserError, choose
from sfumato.grid import times
from sfumato.guide import Guidance, Guided
from sfumato.guide.reader import Reading
from sfumato.language import Pieces
from sfumato.models.base import GenerativeModel, Spec, Way
from sfumato.nn import MLP, DiT, UNet
from sfumato.nn.pictures import PictureNetwork
from sfumato.nn.reader import Reader
from sfumato.ppca import PPCA
from sfumato.process import Gaussian
from sfumato.sampler import State, Tuned, sampler, trajectory
from sfumato.schedule import SCHEDULES
from sfumato.weighting import Likelihood, LogNormal

__all__ = ["Diffusion", "DiffusionSpec", "need_diffusion"]


BOUND_CALLS = 32
"""Network calls for a bound on log p of an example."""
FITTED, FITTED_VALUES = 10_000, 2**26
"""Examples to which principal components are fitted, and their values together, at most."""


@dataclass(frozen=True)
class DiffusionSpec(Spec):
    """All that is needed to build an untrained diffusion model.

    Attributes:
        network: "unet" or "dit" for images, "mlp" for points.
        widths: hidden channels of each level of a U-Net; (width,) of the others.
        blocks: residual blocks a level of a U-Net; depth of the others.
        attention: for each level of a U-Net, whether it has self-attention.
        octaves: of the waves through which an MLP sees points; 0 for none.
        patch: side of the patches of a DiT.
        schedule: a key of ``sfumato.schedule.SCHEDULES``.
        parameterisation: a key of ``sfumato.rows.ROWS``.
        weighting: a key of ``sfumato.weighting.WEIGHTINGS`` or of ``ROWS``, or "learned".
        sigma_data: the data's standard deviation.
        law: how often each noise level is drawn in training, "lognormal" or "likelihood".
        noise_mean: of the log-normal law, against sigma_data.
        noise_std: its standard deviation.
        coupling: a key of ``sfumato.coupling.COUPLINGS``.
        drop: share of the examples whose condition is dropped in training, for guidance.
        masks: whether a U-Net is shown parts of pictures in training, to complete them.
        hint: what a U-Net follows by a branch of its own, a key of ``sfumato.hint.HINTS``; "" for nothing.
        vocabulary: number of words that a U-Net hears, 0 for none.
        meaning: width of what a language model says of a word; 0 if words are learned along.
        tokens: words of a sentence, at most.
        reads: classes that a reader of noisy states tells apart, of a network that hears none; 0 without a reader.
        facts: for each column that a network of pictures hears the number of its values, 0 for a number.
        ppca: directions of the Gaussian whose guess a network of pictures sees; 0 for none.
        variance: of the reverse step: "learned" by the network, for the sampler "ancestral-learned", or "fixed".
        gives: what the estimate stands for, a key of ``sfumato.denoise.GIVES``.
        sampler: that draws from it unless another is asked for.
        stops: times of its usual way back, which fall to 0; () for the usual grid and number of steps.
    """

    family: ClassVar[str] = "diffusion"

    network: Literal["unet", "dit", "mlp"]
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...] = ()
    octaves: int = 0
    patch: int = 0
    schedule: str = "cosine"
    parameterisation: str = "edm"
    weighting: str = "edm"
    sigma_data: float = 0.5
    law: Literal["lognormal", "likelihood"] = "lognormal"
    noise_mean: float = -0.5
    noise_std: float = 1.2
    coupling: str = "independent"
    drop: float = 0.0
    masks: bool = False
    hint: str = ""
    vocabulary: int = 0
    meaning: int = 0
    tokens: int = 0
    reads: int = 0
    facts: tuple[int, ...] = ()
    ppca: int = 0
    variance: Literal["fixed", "learned"] = "fixed"
    gives: str = "mean"
    sampler: str = SAMPLER
    stops: tuple[float, ...] = ()

    def words(self) -> str:
        return f"{self.network} {'-'.join(map(str, self.widths))}, predicts {self.parameterisation} on {self.schedule}"

    def build(self, codec: Codec, classes: Sequence[str] = (), vocabulary: Vocabulary | None = None) -> Diffusion:
        network = self._mlp(math.prod(codec.dims)) if self.network == "mlp" else self._of_pictures(codec.dims[0])
        if isinstance(vocabulary, Pieces) and isinstance(network, PictureNetwork):
            network.read_by(vocabulary.states)
        reader = {"reader": Reader([width for _, width in network.parts], self.reads)} if self.reads else {}
        denoiser = (Reading if self.reads else Denoiser)(
            network,
            Gaussian(choose("schedule", self.schedule, SCHEDULES)()),
            parameterisation=self.parameterisation,
            weighting=self.weighting,
            sigma_data=self.sigma_data,
            law=Likelihood() if self.law == "likelihood" else LogNormal(self.noise_mean, self.noise_std),
            variance=self.variance,
            gives=self.gives,
            coupling=self.coupling,
            drop=self.drop,
            masks=self.masks,
            hint=self.hint,
            ppca=PPCA(codec.dims, self.ppca) if self.ppca else None,
            **reader,
        )
        return Diffusion(denoiser, codec, tuple(classes), self.sampler, self.stops, vocabulary)

    @property
    def _heads(self) -> int:
        return 2 if self.variance == "learned" else 1

    def _mlp(self, dim: int) -> MLP:
        if self.vocabulary:
            raise UserError("a network for points hears no sentences: leave --text out")
        if self.facts:
            raise UserError("a network for points hears no facts: leave --facts out")
        if self.ppca:
            raise UserError("a network for points sees no guess of them: leave ppca at 0")
        if self.masks:
            raise UserError("a mask hides a part of a picture, and these data are points: leave --masks out")
        return MLP(
            dim,
            width=self.widths[0],
            depth=self.blocks,
            classes=self.classes,
            octaves=self.octaves,
            out=self._heads * dim,
            ends=self.gives == "map",
        )

    def _of_pictures(self, channels: int) -> UNet | DiT:
        shared: dict[str, Any] = {
            "classes": self.classes,
            "vocabulary": self.vocabulary,
            "tokens": self.tokens,
            "meaning": self.meaning,
            "facts": self.facts,
            "known": self.masks,
            "guess": bool(self.ppca),
            "dropout": self.dropout,
            "out": self._heads * channels,
            "ends": self.gives == "map",
            "precision": self.precision,
        }
        if self.network == "dit":
            if self.hint:
                raise UserError("a branch that follows outlines stands beside a U-Net: train the run below as one")
            return DiT(channels, width=self.widths[0], depth=self.blocks, patch=self.patch, **shared)
        shared |= {"widths": self.widths, "blocks": self.blocks, "attention": self.attention, "hint": bool(self.hint)}
        return UNet(channels, **shared)


class Diffusion(GenerativeModel):
    """A denoiser with the codec of its data.

    Args:
        denoiser: trained or not.
        codec: between the user's items and states.
        classes: names of the classes; () if the denoiser takes no labels.
        sampler: that draws from it unless another is asked for.
        stops: times of its usual way back, which fall to 0; () for the usual grid and number of steps.
        vocabulary: words that it hears; None if it hears none.

    Attributes:
        tuned: ways back that were learned for it, by their number of steps.
        worse: what it was after shares of its run, for guidance away from that.
    """

    family: ClassVar[str] = "diffusion"

    def __init__(
        self,
        denoiser: Denoiser,
        codec: Codec,
        classes: tuple[str, ...] = (),
        sampler: str = SAMPLER,
        stops: tuple[float, ...] = (),
        vocabulary: Vocabulary | None = None,
    ) -> None:
        super().__init__(codec, classes, vocabulary)
        self.denoiser = denoiser
        self.sampler = sampler
        self.stops = stops
        self.tuned: dict[int, Tuned] = {}
        self.worse: dict[float, Diffusion] = {}

    # ── Learning ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def learner(self) -> Denoiser:
        return self.denoiser

    def noise(self, t: Tensor) -> Tensor:
        return -self.denoiser.process.schedule.logsnr(t) / 2 - math.log(self.denoiser.sigma_data)

    def measure(self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None) -> list[Tensor]:
        if self.denoiser.gives != "mean":
            return []  # a student has no mmse: it makes no mean
        self.denoiser.measure_mmse(x_0, cond, rng)
        return [self.denoiser.mmse]

    @property
    def measured(self) -> bool:
        return self.denoiser.gives != "mean" or not bool(self.denoiser.mmse.isnan().any())

    def prepare(self, dataset: Dataset) -> None:
        ppca = self.denoiser.ppca
        if ppca is not None and not ppca.fitted:
            few = max(ppca.rank + 1, FITTED_VALUES // math.prod(self.codec.dims))
            ppca.fit(dataset.codec.encode(dataset.sample(min(FITTED, few))))

    @property
    def network(self) -> nn.Module:
        return self.denoiser.network

    def compile_networks(self) -> None:
        self.network.compile()

    def call(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:
        return self.denoiser(x_0, 0.5, cond).output

    @property
    def knows_null(self) -> bool:
        return self.hears and (self.denoiser.drop > 0 or isinstance(self.denoiser, Reading))

    @property
    def follows(self) -> bool:
        return self.denoiser.hint is not None

    @property
    def abilities(self) -> tuple[str, ...]:
        filling = ("what a mask hides, by training",) * self.denoiser.masks
        filling += ("an outline that is followed",) * self.follows
        exact = ("log p(x)", "the noise behind x") * tells_mean(self.denoiser)
        more = ("more or less of what is asked for, by guidance",) * (self.knows_null and self.denoiser.gives == "mean")
        return (*super().abilities, *more, *filling, "samples in any number of calls", *exact)

    @torch.no_grad()
    def bound(self, x_0: Tensor, cond: Condition | None = None, rng: Rng = None) -> Tensor | None:
        if not tells_mean(self.denoiser):
            return None
        given, sigma_data = Given(self.denoiser, cond), self.denoiser.sigma_data
        return -vlb(given, x_0, steps=None, calls=BOUND_CALLS, sigma_data=sigma_data, rng=rng).nats.double()

    # ── Drawing ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def usual(
        self, steps: int | None, method: str | None, grid: str | None, guidance: Guidance | None
    ) -> tuple[int, str, str]:
        """Return steps, sampler and grid; what was tuned for a number of steps is usual for it, a student's is its own.

        Args:
            steps: steps of the sampler.
            method: a key of ``sfumato.sampler.SAMPLERS``, or "tuned".
            grid: a key of ``sfumato.grid.GRIDS``, times as text, or "tuned".
            guidance: towards the class; by default the model as it was trained.

        Raises:
            UserError: guidance of a model that was not trained for it.
        """
        if guidance is not None:
            self._refuse(guidance)
        own = len(self.stops) - 1 if self.stops else STEPS
        steps = own if steps is None else steps
        if guidance is None and method in (None, "tuned") and grid in (None, "tuned") and steps in self.tuned:
            method = grid = "tuned"
        if grid is None:
            grid = ",".join(f"{t:.6g}" for t in self.stops) if self.stops and steps == own else GRID
        return steps, self.sampler if method is None else method, grid

    def _refuse(self, guidance: Guidance) -> None:
        """Raise a UserError if this model cannot be guided so."""
        if guidance.worse:
            if guidance.worse not in self.worse:
                raise UserError(f"nothing is known of this model after {guidance.worse:g} of its run")
        elif not self.hears:
            raise UserError(
                "there is nothing to guide to: train with --classes, --text or --facts to ask for something"
            )
        if self.denoiser.gives != "mean":
            raise UserError("a student goes its teacher's way alone and cannot be guided: guide its teacher")
        if guidance.away is None and not guidance.worse and not self.knows_null:
            raise UserError("this run was trained without dropping its classes, so it has no answer to no class: "
                            "train it again, or name a class to go away from (--away)")  # fmt: skip

    def slug(self, way: Way) -> str:
        own = self.stops and way.grid == self.way().grid  # its times would make a long name
        name = f"{way.method}-{'own' if own else way.grid}-{way.steps}"
        return name if way.guidance is None else f"{name}-{way.guidance.words()}"

    def draw(self, indices: Sequence[int], way: Way) -> Tensor:
        for state in self.trajectory(indices, way):
            last = state.x
        return last

    def try_out(self, indices: Sequence[int], way: Way) -> None:
        for _ in islice(self.trajectory(indices, way), 2):
            pass

    def trajectory(self, indices: Sequence[int], way: Way) -> Iterator[State]:
        """Yield every stop of the way back of the samples with these indices, in one batch; see :meth:`states`."""
        tuned, stops = self._tuned(way), self.stops_of(way)
        rng = [stream(way.seed, i) for i in indices]
        blank = torch.zeros(len(indices), *self.codec.dims, device=self.device)
        cond = self.conditions(indices, way.cond)
        if way.hint is not None:
            cond = self.following(way.hint, len(indices), cond)
        model = self.asked(None if cond is None else cond.to(self.device), way.guidance)
        start = model.process.prior(blank, float(stops[0])).sample(rng)
        with self.resting():
            yield from (
                trajectory(model, sampler(way.method), start, way.grid, way.steps, rng)
                if tuned is None
                else trajectory(model, tuned, start, stops)
            )

    def stops_of(self, way: Way) -> Tensor:
        """Return the times at which a way back stops, falling to 0."""
        tuned = self._tuned(way)
        if tuned is not None:
            return torch.tensor(tuned.stops, dtype=torch.float64)
        return times(way.grid, way.steps, self.denoiser.process.schedule)

    def asked(self, cond: Condition | None, guidance: Guidance | None = None) -> Model:
        """Return the model of data under some conditions.

        Args:
            cond: one for each row of the states to come; None of a model that cannot be asked.
            guidance: towards them.
        """
        wanted = Given(self.denoiser, cond)
        if guidance is None or (cond is None and not guidance.worse):
            return wanted
        towards = [(wanted, guidance.weight)]
        towards += [(Given(self.denoiser, _asking(cond, row)), weight) for row, weight in guidance.also]
        return Guided(self._base(cond, guidance), towards, guidance.interval, guidance.rescale)

    def following(self, picture: Tensor, n: int, cond: Condition | None = None) -> Condition:
        """Return conditions of n samples that follow a picture's outline.

        Args:
            picture: (1, *raw) as the codec takes it.
            n: how many.
            cond: what is asked for beside.
        """
        assert self.denoiser.hint is not None
        hint = self.denoiser.hint(self.codec.encode(picture).to(self.device)).expand(n, -1, -1, -1)
        return replace(Condition() if cond is None else cond, hint=hint)

    def _base(self, cond: Condition | None, guidance: Guidance) -> Given:
        """Return what guidance goes away from."""
        if guidance.worse:
            return Given(self.worse[guidance.worse].denoiser, cond)
        return Given(self.denoiser, _asking(cond, NULL if guidance.away is None else guidance.away))

    def _tuned(self, way: Way) -> Tuned | None:
        if "tuned" not in (way.method, way.grid):
            return None
        steps = way.steps
        if steps not in self.tuned:
            known = f"for {', '.join(map(str, sorted(self.tuned)))} steps" if self.tuned else "for no number of steps"
            raise UserError(f"this model's way back was tuned {known}, not for {steps}: sfumato tune-sampler does it")
        return self.tuned[steps]


def _asking(cond: Condition | None, row: Row) -> Condition | None:
    return None if cond is None else cond.asking(row)


@overload
def need_diffusion(found: GenerativeModel, what: str, other: str = "") -> Diffusion: ...
@overload
def need_diffusion(found: Spec, what: str, other: str = "") -> DiffusionSpec: ...
def need_diffusion(found: GenerativeModel | Spec, what: str, other: str = "") -> Diffusion | DiffusionSpec:
    """Return a model, or what a config says of one, if it is a diffusion model, and refuse any other.

    Args:
        found: that is asked.
        what: is wanted of it, for the error.
        other: family that would do too, in words.

    Raises:
        UserError: it is of another family.
    """
    if not isinstance(found, Diffusion | DiffusionSpec):
        raise UserError(f"{what} needs a diffusion model{f' {other}' if other else ''}, and this is a {found.family}")
    return found
