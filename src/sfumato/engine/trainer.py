"""Training: the weights after N steps are a function of the config, the data and N.

Nothing random is a state. With stream() of dist.py, s = seed:

(1)  first weights                = f(s)
(2)  examples of step k           = f(s, epoch): the k-th batch of an endless row of shuffled epochs
(3)  times of k                   = f(s, k);  noise, dequantisation and dropout of part j of k = f(s, k, j)
(4)  learning rate of step k = lr min(1, k / WARM_UP), then falling to 0 over the last cool_down of the run

So a run killed anywhere and resumed from its last checkpoint ends with the same bits, and many processes follow the law
of one; see distributed.py for the parts. A run that is given a time learns its number of steps on the way: the total is
planned anew from the measured speed until the cool-down begins, up to which nothing depends on it.

A student begins with its teacher's weights and learns by another loss than the denoiser's own; see lesson.py.

A step whose gradient is not finite is skipped: it changes neither the weights nor the optimiser's state, and the
average takes the unchanged weights. PATIENCE such steps in a row are answered by a return to the last checkpoint at
half the learning rate, at most RETURNS times in a run. Nothing here waits for the device in every step: the optimiser
reads the norm of the gradient there, and the host reads losses and norms when it logs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sfumato.condition import Condition
from sfumato.data import Dataset
from sfumato.data.stream import Stream
from sfumato.dist import rand, stream
from sfumato.engine import checkpoint
from sfumato.engine.adaptation import ADAPTATIONS
from sfumato.engine.average import SECOND, Averages
from sfumato.engine.distributed import Workers, alike, local, parts_of, shard, whole
from sfumato.engine.gauge import ByLevel, Levels
from sfumato.engine.lesson import Lesson, Objective
from sfumato.engine.neon import NEON, Correction
from sfumato.engine.optimizer import Optimizer
from sfumato.engine.order import Order
from sfumato.engine.run import Run, restore
from sfumato.errors import UserError
from sfumato.models.base import GenerativeModel
from sfumato.models.diffusion import need_diffusion
from sfumato.models.latent import LatentCodec
from sfumato.process import spread

__all__ = ["Trainer"]

WARM_UP = 50  # steps; 200 of 32 cost a run of 900 steps 4% in Frechet distance, and a GAN of 600 a sixth
CLIP = 1.0  # norm of the gradient
PATIENCE, RETURNS = 10, 4
MEASURED, MEASURED_VALUES = (64, 512), 2**14  # examples, of pictures fewer: each tells of many values
WEIGHTS, ORDER, NOISE, DROPOUT, MEASURE, TIMES = range(6)  # what a stream is for


class Trainer:
    """One training run in memory.

    Args:
        run: its folder; the newest good checkpoint there is loaded.
        dataset: the data of ``run``.
        workers: the processes that share it; each makes a Trainer.

    Raises:
        UserError: the data are not those the run began with, more workers than parts, or no checkpoint is whole.
    """

    def __init__(self, run: Run, dataset: Dataset, workers: Workers | None = None) -> None:
        if dataset.fingerprint != run.data["fingerprint"]:
            raise UserError(
                f"{run.folder}: the data '{run.config.data}' are not what this run began with; restore them, or "
                "train anew"
            )
        self.run, self.dataset, self.config = run, dataset, run.config
        self.workers = workers or Workers()
        self.parts = parts_of(self.config.parts, self.workers)
        self.device = _device(self.config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(self.config.seed, WEIGHTS).initial_seed())
            self.model = run.build(self.device).to(self.device)
            self.lesson = _lesson(run, self.model, self.device)
        self.shown = dataset if self.lesson is None else self.lesson.shown(dataset)
        self.own, codec = dataset, self.model.codec
        if isinstance(codec, LatentCodec):
            self.own = codec.encoded(dataset)
            self.shown = self.own if self.shown is dataset else codec.encoded(self.shown)
        begun = bool(checkpoint.checkpoints(run.checkpoints))
        if not begun:
            self.model.prepare(self.own)
        self.order = Order((self.config.seed, ORDER), len(self.shown.items), self.config.batch)
        self.ema, self.second = (copy.deepcopy(self.model).requires_grad_(False).eval() for _ in range(2))
        for model in (self.model, self.ema, self.second) if self.config.shard and self.workers.size > 1 else ():
            for child in model.learner.children():
                shard(child)
        self.learning = Objective(self.model, self.lesson)
        self.objective = self.workers.join(self.learning, self.config.shard)
        self._take_up()
        self.step, self.total = 0, self.config.steps or 1_000_000_000
        self.seconds = 0.0
        self.skipped = self.in_row = self.returns = 0
        self.levels = ByLevel(self.device)
        self._recent: list[tuple[int, Tensor, Tensor]] = []  # not read from the device yet
        self._read: list[tuple[Tensor, float]] = []  # not logged yet
        self.damaged: tuple[tuple[Path, str], ...] = ()
        if begun:
            self._restore()
        if self.config.compile:
            self.model.compile_networks()

    def _take_up(self) -> None:
        """Begin to learn what is taught now, with averages and an optimiser that have seen nothing yet."""
        paces, method = self.learning.paces(), None if self.lesson is None else self.lesson.method
        self.parameters = [each for module in paces for each in module.parameters() if each.requires_grad]
        momentum = (self.model if method is None else method).momentum
        self.optimizer = Optimizer(self.config.optimizer, paces, momentum=momentum)
        self.horizon = (method and method.ema) or self.config.ema
        self.averages = Averages(self.model, self.ema, self.second, self.horizon)

    def _begin_anew(self) -> None:
        """Begin another method, with the average of what the one before has made."""
        self.model.load_state_dict(self.ema.state_dict())
        self._take_up()
        if self.workers.leads:
            self.averages.forget(self.run.averages)

    @property
    def taught(self) -> int:
        """Steps done by the method of now: what another one did is not averaged with them."""
        return self.step - (0 if self.lesson is None else self.lesson.begun)

    # ── One step ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def advance(self) -> Tensor:
        """Do one training step.

        Returns:
            This worker's share of the mean loss, on the device; the shares of all workers add up to it.
        """
        if self.lesson is not None and self.lesson.go_on(self.step, self.total, self.ema):
            self._begin_anew()
        index = self.order(self.step)
        t = self.learning.learner.times(len(index), stream(self.config.seed, TIMES, self.step))
        self.optimizer.zero_grad()
        share = torch.zeros((), device=self.device)
        for call, (part, counts) in enumerate(self.parts):
            mine = slice(part, None, self.config.parts)
            with self.workers.adding(self.objective, call + 1 < len(self.parts)):
                states, cond = self.examples(index[mine], rng := stream(self.config.seed, NOISE, self.step, part))
                self._prefetch(call + 1)
                with self._dropout(part):
                    losses: Tensor = self.objective(states, cond, rng, t[mine])
                loss = losses.sum() * (counts / len(index))
                (loss * self.workers.size).backward()  # type: ignore[no-untyped-call]  # ranks are averaged
            if counts:
                share += loss.detach()
                if (noise := self.model.noise(t[mine])) is not None:
                    self.levels.add(losses.detach(), noise)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)).detach()
        unfit = alike((~norm.isfinite()).float(), self.parameters[0])
        self.optimizer.step(self.rate(self.step + 1), unfit)
        self.step += 1
        self.averages.update(self.taught)
        self._recent.append((self.step, share, norm))
        return share

    def rate(self, step: int) -> float:
        """Return the learning rate of step 1, 2, ...; equation (4)."""
        left = (self.total - step + 1) / (self.config.cool_down * self.total)
        return self.config.lr / 2**self.returns * min(1.0, step / WARM_UP, left)

    def _prefetch(self, call: int) -> None:
        """Let data on disk be read that are wanted next: for a later call of this step, or the first of the next."""
        if isinstance(self.shown.items, Stream):
            late = call == len(self.parts)
            part, _ = self.parts[0 if late else call]
            self.shown.items.prefetch(self.order(self.step + late)[part :: self.config.parts])

    def examples(
        self, index: Tensor, rng: torch.Generator, dataset: Dataset | None = None
    ) -> tuple[Tensor, Condition | None]:
        """Return the states and conditions of examples, on the device; mirrored and dequantised if the run wants it.

        Args:
            index: (b,) of the examples.
            rng: for both.
            dataset: that holds them; by default the one that is shown.
        """
        dataset = self.shown if dataset is None else dataset
        codec, items = dataset.codec, dataset.items[index]
        if items.dtype == torch.uint8:  # a quarter of the bytes to move
            items = (items.pin_memory() if self.device.type == "cuda" else items).to(self.device, non_blocking=True)
        states = codec.encode(items).to(self.device)
        if self.config.mirror:
            turned = torch.rand(len(states), generator=rng, dtype=torch.float64) < 0.5
            states = torch.where(spread(turned, states).bool(), states.flip(-1), states)
        if self.config.model.dequantise:
            states = states + codec.level_width * (rand(states, rng) - 0.5).to(states.dtype)
        cond = self.model.conditions_of(dataset, index)
        return states, None if cond is None else cond.to(self.device)

    @contextmanager
    def _dropout(self, part: int) -> Iterator[None]:
        """Make dropout, which draws from PyTorch's global state, a function of the step and part; equation (3)."""
        wanted = self.config.model.dropout > 0
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=wanted):
            if wanted:
                torch.manual_seed(stream(self.config.seed, DROPOUT, self.step, part).initial_seed())
            yield

    # ── What the steps were like ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def reads_every_step(self) -> bool:
        """Whether reading a number from the device is free, so that what is not finite is seen at once."""
        return self.device.type == "cpu"

    def unread(self) -> list[tuple[int, Tensor, float]]:
        """Return (step, this worker's share of the loss, norm of the gradient) of the steps since the last call."""
        recent, self._recent = self._recent, []
        norms = torch.stack([norm for *_, norm in recent]).tolist() if recent else []
        read = [(step, share, norm) for (step, share, _), norm in zip(recent, norms, strict=True)]
        self._read += [(share, norm) for _, share, norm in read]
        return read

    def read(self) -> tuple[float, float, Levels]:
        """Return the mean loss, norm and losses by noise level since the last call, over all ranks."""
        shares, norms = [share for share, _ in self._read], [norm for _, norm in self._read]
        self._read = []
        if not shares:
            return math.nan, math.nan, self.levels.read()
        self.levels.totals.copy_(self.workers.sum(self.levels.totals))
        loss = float(self.workers.sum(torch.stack(shares)).nanmean())
        good = [norm for norm in norms if math.isfinite(norm)]
        return loss, sum(good) / len(good) if good else math.nan, self.levels.read()

    def broken_examples(self, step: int) -> list[int]:
        """Return which examples of a step's batch hold NaN or infinity."""
        index = self.order(step - 1)
        states, _ = self.examples(index, stream(self.config.seed, NOISE, step - 1, 0))
        return index[~states.isfinite().flatten(1).all(1).cpu()].tolist()

    # ── The whole run ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def finished(self) -> bool:
        """Whether the checkpoint that was loaded is that of a whole run."""
        return self.step == self.total and self.ema.measured

    def finish(self, say: Callable[[str], None] = print) -> None:
        """Conclude the lesson, and measure what training leaves open; see ``GenerativeModel.measure``.

        Args:
            say: told what is done.
        """
        if self.lesson is not None:
            self.lesson.conclude(self.ema, self.dataset, self.examples, say)
        least, most = MEASURED
        wanted = min(max(least, MEASURED_VALUES // math.prod(self.own.codec.dims)), most)
        count = min(wanted, len(self.dataset.items))
        index = torch.randperm(len(self.dataset.items), generator=stream(self.config.seed, MEASURE))[:count]
        mine = index[self.workers.rank :: self.workers.size] if count >= self.workers.size else index
        rng = stream(self.config.seed, MEASURE, self.workers.rank)
        for buffer in self.ema.measure(*self.examples(mine, rng, self.own), rng):
            buffer.copy_(self.workers.sum(buffer) / self.workers.size)

    # ── Checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────────

    def healthy(self) -> bool:
        """Whether all weights are finite, on every rank."""
        every = (*self.parameters, *self.ema.parameters())
        broken = torch.stack([(~local(p.detach()).isfinite()).any().float() for p in every]).sum()
        return not float(self.workers.sum(broken))

    def save(self) -> Path | None:
        """Write a checkpoint and return its path; every rank must ask, and rank 0 writes.

        Raises:
            UserError: it cannot be written.
        """
        tensors = {f"model.{name}": whole(tensor) for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": whole(tensor) for name, tensor in self.ema.state_dict().items()}
        tensors |= {f"{SECOND}.{name}": whole(tensor) for name, tensor in self.second.state_dict().items()}
        tensors |= {f"optimizer.{name}": whole(tensor) for name, tensor in self.optimizer.tensors().items()}
        counters = ("step", "total", "seconds", "skipped", "in_row", "returns", "horizon")
        notes = {name: repr(getattr(self, name)) for name in counters}
        if self.lesson is not None:
            tensors, notes = tensors | self.lesson.tensors(), notes | self.lesson.notes()
        with self.workers.together():
            return checkpoint.save(self.run.checkpoints, self.step, tensors, notes) if self.workers.leads else None

    def keep_averages(self) -> None:
        """Keep the averages for ``reconstructed``, unless the run is corrected at its end; every rank must ask."""
        if self.lesson is not None and not self.lesson.keeps_averages:
            return
        tensors = self.averages.tensors()
        with self.workers.together():
            if self.workers.leads:
                self.averages.keep(self.run.averages, self.taught, tensors)

    def go_back(self) -> None:
        """Return to the last good checkpoint, at half the learning rate."""
        returns, skipped = self.returns + 1, self.skipped
        self._recent, self._read = [], []
        self.levels.read()
        self._restore()
        self.returns, self.skipped, self.in_row = returns, skipped, 0

    def _restore(self) -> None:
        found = checkpoint.load(self.run.checkpoints)
        if self.workers.leads:
            checkpoint.set_aside(found)
        self.damaged = found.damaged
        restore(self.model, found.tensors, "model.", self.run.checkpoints)
        restore(self.ema, found.tensors, "ema.", self.run.checkpoints)
        restore(self.second, found.tensors, f"{SECOND}.", self.run.checkpoints)
        state = {name: tensor for name, tensor in found.tensors.items() if name.startswith("optimizer.")}
        notes = found.notes
        if self.lesson is not None:
            self.lesson.restore(found.tensors, notes)
            self._take_up()
        self.optimizer.restore({name.removeprefix("optimizer."): tensor for name, tensor in state.items()})
        self.step, self.seconds = int(notes["step"]), float(notes["seconds"])
        self.total = self.config.steps or int(notes["total"])
        self.skipped, self.in_row, self.returns = (int(notes[name]) for name in ("skipped", "in_row", "returns"))


def _lesson(run: Run, model: GenerativeModel, device: torch.device) -> Lesson | None:
    """Return what a run is taught, if another one teaches it."""
    method = run.config.student.method
    if not method:
        return None
    kind = ({NEON: Correction} | ADAPTATIONS).get(method, Lesson)
    return kind(run, need_diffusion(model, "teaching"), device)


def _device(name: str) -> torch.device:
    """Return the device of this process: of several with CUDA, the one that ``joined`` has set."""
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)
