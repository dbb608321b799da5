"""Training: the weights after N steps are a function of the config, the data and N.

Nothing random is a state. With stream() of dist.py, s = seed:

(1)  first weights          = f(s)
(2)  examples of step k     = f(s, epoch): the k-th batch of an endless row of shuffled epochs
(3)  times and noise of k   = f(s, k), that of dequantisation included;  dropout of k = f(s, k)
(4)  learning rate of k     = lr min(1, k / WARM_UP), then falling to 0 over the last COOL_DOWN of the run

So a run killed anywhere and resumed from its last checkpoint ends with the same bits. A run that is given a time
learns its number of steps on the way: the total is planned anew from the measured speed until the cool-down begins,
up to which nothing depends on it.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sfumato.data import Dataset
from sfumato.dist import rand, stream
from sfumato.engine import checkpoint
from sfumato.engine.average import PowerAverage
from sfumato.engine.interrupt import Interrupt
from sfumato.engine.preview import preview
from sfumato.engine.progress import Watch, duration
from sfumato.engine.run import Run, restore
from sfumato.errors import UserError
from sfumato.files import write_atomic

__all__ = ["Trainer"]

WARM_UP = 100  # steps; AdamW's second moment (beta 0.99) has then seen its horizon
COOL_DOWN = 0.3  # share of the run; RECIPES: 20 to 30%
CLIP = 1.0  # norm of the gradient
MMSE_EXAMPLES = 256
WEIGHTS, ORDER, NOISE, DROPOUT, MMSE = range(5)  # what a stream is for


class Trainer:
    """One training run in memory.

    Args:
        run: its folder; the newest checkpoint there is loaded.
        dataset: the data of ``run``.

    Raises:
        UserError: the data are not those the run began with, or the checkpoint is damaged.
    """

    def __init__(self, run: Run, dataset: Dataset) -> None:
        if dataset.fingerprint != run.data["fingerprint"]:
            raise UserError(
                f"{run.folder}: the data '{run.config.data}' are not what this run began with; restore them, or "
                "train anew"
            )
        self.run, self.dataset, self.config = run, dataset, run.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(self.config.seed, WEIGHTS).initial_seed())
            self.model = run.build().to(self.config.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.config.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average = PowerAverage(self.model, self.ema, self.config.ema)
        self.step, self.total = 0, self.config.steps or 1_000_000_000
        self.seconds = 0.0
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))
        if checkpoint.checkpoints(run.checkpoints):
            self._restore()

    def fit(self, watch: Watch) -> bool:
        """Train to the end, saving, logging and showing samples on the way.

        Args:
            watch: who is told.

        Returns:
            False if a signal (Ctrl-C, SIGTERM) asked to stop; the run is saved then.

        Raises:
            UserError: a loss or gradient that is not finite, or a full disk.
        """
        self._trim_log()
        clock = _Clock(self.seconds)
        saved = shown = logged = clock.now
        losses: list[float] = []
        with Interrupt() as interrupt:
            while self.step < self.total and not interrupt:
                losses.append(self.advance())
                self.seconds, pace = clock.now, clock.pace(self.step)
                self._plan(pace)
                if self.seconds - logged >= 1 or self.step == self.total:
                    self._log(losses, watch, pace)
                    losses, logged = [], self.seconds
                if self.seconds - shown >= max(10.0, self._seconds_in_all(pace) / 8):
                    self._preview(watch)
                    shown = clock.now
                if self.seconds - saved >= self.config.save_every:
                    self.save()
                    saved = clock.now
        if self.step < self.total:
            watch.say(f"stopped at step {self.step}, saved {self.save()}")
            return False
        self.finish()
        self.save()
        self._preview(watch)
        return True

    @property
    def finished(self) -> bool:
        """Whether the checkpoint that was loaded is that of a whole run."""
        return self.step == self.total and not bool(self.ema.denoiser.mmse.isnan().any())

    def advance(self) -> float:
        """Do one training step and return its loss."""
        rng = stream(self.config.seed, NOISE, self.step)
        states, cond = self._examples(self.batch(self.step), rng)
        with self._dropout():
            loss = self.model.denoiser.loss(states, cond, rng).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, CLIP))
        if not math.isfinite(norm):
            raise UserError(
                f"loss or gradient is not finite at step {self.step + 1} (loss {loss.item():g}); "
                f"lower --lr (now {self.config.lr:g}); {self.run.folder} keeps its last checkpoint"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step + 1)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        return loss.item()

    def batch(self, step: int) -> Tensor:
        """Return the indices of the examples of a step, (batch,); equation (2)."""
        count = len(self.dataset.items)
        places = torch.arange(step * self.config.batch, (step + 1) * self.config.batch)
        parts = [
            self._shuffled(epoch)[places[places // count == epoch] % count]
            for epoch in range(int(places[0]) // count, int(places[-1]) // count + 1)
        ]
        return torch.cat(parts)

    def rate(self, step: int) -> float:
        """Return the learning rate of step 1, 2, ...; equation (4)."""
        left = (self.total - step + 1) / (COOL_DOWN * self.total)
        return self.config.lr * min(1.0, step / WARM_UP, left)

    def save(self) -> Any:
        """Write a checkpoint and return its path."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        notes = {"step": str(self.step), "total": str(self.total), "seconds": repr(self.seconds)}
        return checkpoint.save(self.run.checkpoints, self.step, tensors, notes)

    def finish(self) -> None:
        """Measure what the averaged model leaves open at each noise level; see ``Denoiser.measure_mmse``."""
        count = min(MMSE_EXAMPLES, len(self.dataset.items))
        rng = stream(self.config.seed, MMSE)
        index = torch.randperm(len(self.dataset.items), generator=rng)[:count]
        states, cond = self._examples(index, rng)
        self.ema.denoiser.measure_mmse(states, cond, rng)

    def _examples(self, index: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return the states and labels of examples, on the device; dequantised if the model is of such states."""
        device, labels, codec = self.config.device, self.dataset.labels, self.dataset.codec
        states = codec.encode(self.dataset.items[index])
        if self.config.model.dequantise:
            states = states + codec.level_width * (rand(states, rng) - 0.5).to(states.dtype)
        wanted = self.config.model.classes > 0 and labels is not None
        return states.to(device), labels[index].to(device) if wanted and labels is not None else None

    def _shuffled(self, epoch: int) -> Tensor:
        """Return the order of an epoch's examples; equation (2)."""
        if self._epoch[0] != epoch:
            rng = stream(self.config.seed, ORDER, epoch)
            self._epoch = epoch, torch.randperm(len(self.dataset.items), generator=rng)
        return self._epoch[1]

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Make dropout, which draws from PyTorch's global state, a function of the step; equation (3)."""
        with torch.random.fork_rng(devices=[], enabled=self.config.model.dropout > 0):
            if self.config.model.dropout > 0:
                torch.manual_seed(stream(self.config.seed, DROPOUT, self.step).initial_seed())
            yield

    def _plan(self, pace: float | None) -> None:
        """Set the total of a run that was given a time, while the learning rate does not depend on it yet."""
        steady = 1 - COOL_DOWN
        if self.config.seconds and pace and self.step <= steady * self.total:
            left = (self.config.seconds - self.seconds) / pace
            self.total = max(math.ceil(self.step + left), math.ceil(self.step / steady))

    def _seconds_in_all(self, pace: float | None) -> float:
        return self.config.seconds or self.seconds + (self.total - self.step) * (pace or 0.0)

    def _log(self, losses: list[float], watch: Watch, pace: float | None) -> None:
        loss = sum(losses) / len(losses)
        record = {"step": self.step, "loss": loss, "lr": self.rate(self.step), "seconds": round(self.seconds, 2)}
        with self.run.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        if pace:
            speed, left = self.config.batch / pace, duration((self.total - self.step) * pace)
            watch.update(self.step, self.total, f"loss {loss:.4f}  {speed:,.0f} items/s  {left} left")

    def _trim_log(self) -> None:
        """Drop what a killed run logged after its last checkpoint: those steps are done again."""
        if self.run.log.exists():
            lines = self.run.log.read_text("utf-8").splitlines()
            kept = [line for line in lines if _logged_step(line) <= self.step]
            write_atomic(self.run.log, "".join(f"{line}\n" for line in kept).encode())

    def _preview(self, watch: Watch) -> None:
        """Draw the same samples from the averaged and the raw weights, so that a bad average shows as such."""
        path = preview(self.run, {"average": self.ema, "raw": self.model}, self.step)
        watch.say(f"step {self.step}: samples in {path} (left: averaged weights, right: raw)")

    def _restore(self) -> None:
        tensors, notes = checkpoint.load(self.run.checkpoints)
        restore(self.model, tensors, "model.", self.run.checkpoints)
        restore(self.ema, tensors, "ema.", self.run.checkpoints)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.step, self.seconds = int(notes["step"]), float(notes["seconds"])
        self.total = self.config.steps or int(notes["total"])


class _Clock:
    """Seconds of training, those before a resume included, and the pace of this session."""

    def __init__(self, before: float) -> None:
        self._before, self._start = before, time.monotonic()
        self._calls = 0
        self._origin = self._start, 0

    @property
    def now(self) -> float:
        return self._before + time.monotonic() - self._start

    def pace(self, step: int) -> float | None:
        """Return seconds a step, all that happens between steps included; call it after every step.

        The first steps of a process are slower by far and do not count: before ten steps this is None.
        """
        self._calls += 1
        if self._calls == 3:
            self._origin = time.monotonic(), step
        if self._calls < 10:
            return None
        return max(time.monotonic() - self._origin[0], 1e-6) / (step - self._origin[1])


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that was being written when the process died
        return math.inf
