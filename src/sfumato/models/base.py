"""What every generative model is, whatever it is made of: it learns from data by a loss, and draws samples.

Samples are functions: sample i of a model depends on its weights, the seed and i, not on how many are drawn with it.
Its noise comes from a stream of its own, and batches have one size whatever n is, because the last bits of a matrix
product depend on the batch's size. So ``sample(1, first=100)`` remakes sample 100 of a thousand, bit by bit, on the
same machine with the same number of threads.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from sfumato.condition import Condition, Row, Vocabulary
from sfumato.data.codec import Codec, Dataset
from sfumato.dist import Rng
from sfumato.errors import UserError
from sfumato.guide import Guidance
from sfumato.models.hearing import Hearing

__all__ = ["GenerativeModel", "Learner", "Spec", "Way"]

BATCH_VALUES = 64 * 28 * 28
"""Values in a batch of samples: enough to keep two cores busy, few enough that one sample alone does not wait long."""


@dataclass(frozen=True, kw_only=True)
class Spec(ABC):
    """All that is needed to build an untrained model for data of known shape; saved in config.toml.

    Attributes:
        classes: number of classes, 0 for none.
        dropout: probability of dropping a hidden activation in training.
        dequantise: train on data of finitely many levels spread evenly over the levels' bins.
        precision: "fp32" or "bf16" inside the networks.
    """

    family: ClassVar[str]
    """What kind of model it is, a key of ``sfumato.models.FAMILIES``."""

    classes: int = 0
    dropout: float = 0.0
    dequantise: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"

    @abstractmethod
    def build(self, codec: Codec, classes: Sequence[str] = (), vocabulary: Vocabulary | None = None) -> GenerativeModel:
        """Return an untrained model; its weights come from PyTorch's global random state.

        Args:
            codec: of the data.
            classes: names of the classes, ``self.classes`` of them.
            vocabulary: of a model that hears sentences.

        Raises:
            UserError: an unknown name or an impossible combination.
        """

    @abstractmethod
    def words(self) -> str:
        """Return what the networks are, for a sentence of a report."""


@dataclass(frozen=True)
class Way:
    """How samples are drawn: with the weights and an index, all that decides a sample.

    Attributes:
        seed: of the noise.
        steps: steps of the sampler.
        method: name of the sampler.
        grid: name of the grid.
        cond: what is asked for; None for every class, and what the model keeps of sentences and facts, in turn.
        guidance: towards it; None for the model as it was trained.
        hint: (1, *raw) a picture whose outline is followed; None for none.
    """

    seed: int
    steps: int
    method: str
    grid: str
    cond: Row | None = None
    guidance: Guidance | None = None
    hint: Tensor | None = field(default=None, compare=False)


class Learner(Protocol):
    """What is trained: all that learns by one loss."""

    def times(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draw what each of ``n`` examples of a step is asked at, (n,) float64, over all workers together."""

    def loss(
        self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each example, (B,).

        Args:
            x_0: (B, ...) data.
            cond: of each example, if the networks hear any.
            rng: CPU generator for all that is random.
            t: (B,) of what ``times`` drew.
        """


class GenerativeModel(Hearing, nn.Module, ABC):
    """A model with the codec of its data.

    Attributes:
        family: what kind it is, a key of ``sfumato.models.FAMILIES``.
        momentum: whether the optimiser may keep a momentum of gradients.

    Args:
        codec: between the user's items and states.
        classes: names of the classes; () if the model takes no labels.
        vocabulary: words that it hears; None if it hears none.
    """

    family: ClassVar[str]
    momentum: bool = True

    def __init__(self, codec: Codec, classes: tuple[str, ...] = (), vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        self.codec = codec
        self.classes = classes
        self.vocabulary = vocabulary
        self.facts = None

    # ── Learning ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    @abstractmethod
    def learner(self) -> nn.Module:
        """The part that is trained, a :class:`Learner`."""

    def noise(self, t: Tensor) -> Tensor | None:
        """Return the noise at what ``Learner.times`` drew, ln(sigma / (alpha sigma_data)); None if it is none."""
        return None

    def prepare(self, dataset: Dataset) -> None:
        """Take from data what no step learns, before the first one; what is known already stays as it is.

        Args:
            dataset: the examples to learn from, in this model's codec.
        """

    def measure(self, x_0: Tensor, cond: Condition | None = None, rng: torch.Generator | None = None) -> list[Tensor]:
        """Measure what training leaves open, and return the buffers that hold it; workers average them.

        Args:
            x_0: (B, ...) data: 64 examples of pictures are enough, of points 512.
            cond: of each example, if the model hears any.
            rng: CPU generator for the noise.
        """
        return []

    @property
    def measured(self) -> bool:
        """Whether nothing is open that :meth:`measure` would tell."""
        return True

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network that draws."""

    @abstractmethod
    def compile_networks(self) -> None:
        """Let torch.compile translate the networks, in place.

        Raises:
            UserError: it cannot, in training.
        """

    @abstractmethod
    def call(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:
        """Pass examples through every network once, as a step of training does, to count what that takes.

        Args:
            x_0: (B, ...) data.
            cond: of each example, if the model hears any.
        """

    @property
    def follows(self) -> bool:
        """Whether it has learned to follow the outline of a picture; see hint.py."""
        return False

    @property
    def abilities(self) -> tuple[str, ...]:
        """What the trained model can give but a sample, each in a few words."""
        told = ("a class that is asked for",) * bool(self.classes) + ("a sentence",) * bool(self.vocabulary)
        return told if self.facts is None else (*told, *(fact.name for fact in self.facts.columns))

    def bound(self, x_0: Tensor, cond: Condition | None = None, rng: Rng = None) -> Tensor | None:
        """Return a lower bound on log p(x_0) in nats, (B,) float64; None if this model tells none.

        Args:
            x_0: (B, ...) data, spread over their bins if they have levels.
            cond: of each example, if the model hears any.
            rng: for all that is random.
        """
        return None

    # ── Drawing ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def batch(self) -> int:
        """Samples made at a time, a function of the data's shape alone."""
        return max(1, min(256, BATCH_VALUES // math.prod(self.codec.dims)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def way(
        self,
        *,
        seed: int = 0,
        steps: int | None = None,
        method: str | None = None,
        grid: str | None = None,
        cond: Row | None = None,
        guidance: Guidance | None = None,
        hint: Tensor | None = None,
    ) -> Way:
        """Return a way to draw, with this model's usual steps, sampler and grid where None is given.

        Args:
            seed: any whole number.
            steps: steps of the sampler.
            method: name of the sampler.
            grid: name of the grid.
            cond: class index, what :meth:`prompt` gives, or a ``Request`` of several parts; by default every class, and
                what is kept of sentences and facts, in turn.
            guidance: towards it; by default the model as it was trained.
            hint: (1, *raw) a picture whose outline is followed, by a model that was trained to.

        Raises:
            UserError: this model draws in no such way.
        """
        if hint is not None and not self.follows:
            raise UserError("this run follows no outline: train a branch that does on top of it (train --control RUN)")
        return Way(seed, *self.usual(steps, method, grid, guidance), cond, guidance, hint)

    @abstractmethod
    def usual(
        self, steps: int | None, method: str | None, grid: str | None, guidance: Guidance | None
    ) -> tuple[int, str, str]:
        """Return steps, sampler and grid of a way, with this model's usual ones where None is given.

        Args:
            steps: as for :meth:`way`.
            method: as for :meth:`way`.
            grid: as for :meth:`way`.
            guidance: as for :meth:`way`.

        Raises:
            UserError: this model draws in no such way.
        """

    @abstractmethod
    def slug(self, way: Way) -> str:
        """Return a way as part of the name of a folder."""

    @abstractmethod
    def draw(self, indices: Sequence[int], way: Way) -> Tensor:
        """Return the states of the samples with these indices, in one batch; see :meth:`states`."""

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Leave dropout and the like out meanwhile, whether it is in training or not."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def try_out(self, indices: Sequence[int], way: Way) -> None:
        """Begin to draw some samples, to refuse what cannot work; arguments as for :meth:`draw`.

        Raises:
            UserError: the model and the way do not fit.
        """
        self.draw(indices, way)

    def states(self, n: int, way: Way | None = None, *, first: int = 0, **how: Any) -> Iterator[Tensor]:
        """Yield the states of samples first .. first + n - 1, batch by batch, (b, *dims) float32.

        Args:
            n: how many, at least 1.
            way: how; by default :meth:`way` says it.
            first: index of the first sample.
            how: keywords of :meth:`way`.

        Raises:
            UserError: n < 1, first < 0 or an unknown name.
        """
        if n < 1 or first < 0:
            raise UserError(f"ask for at least one sample, from index 0 on, got n = {n} from {first}")
        way = self.way(**how) if way is None else way
        for start in range(first - first % self.batch, first + n, self.batch):
            drawn = self.draw(range(start, start + self.batch), way)
            yield drawn[max(first - start, 0) : first + n - start].cpu()

    def sample(self, n: int = 64, **how: Any) -> Tensor:
        """Return ``n`` samples as the user's items, (n, ...); keywords as for :meth:`states`."""
        return self.codec.decode(torch.cat(list(self.states(n, **how))))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that name the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]
