"""The library and its peers, each with a U-Net of about the same work per image and its own plain way to train it.

A peer is given its best plain form: its own network and loss, the options of it that measure faster (fused optimiser,
foreach average), float32 as it ships, no dropout. Data are one batch in memory: loading is timed for nobody.
"""

from __future__ import annotations

import copy
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from interleave import gflop
from torch import Tensor, nn

from sfumato.denoise import Denoiser
from sfumato.dist import stream
from sfumato.engine.average import PowerAverage
from sfumato.engine.machine import pages_kept, tuned
from sfumato.nn import UNet
from sfumato.process import Gaussian
from sfumato.schedule import Cosine
from sfumato.weighting import LogNormal

BATCHES = (32, 128)


@dataclass(frozen=True)
class Case:
    """Size of the pictures, one channel, and of each library's network; widths are those of the levels."""

    side: int
    sfumato: tuple[int, ...]
    diffusers: tuple[int, ...]
    azula: tuple[int, ...]
    smalldiffusion: tuple[int, tuple[int, ...], tuple[int, ...]]  # channels, multiples, sides that have attention
    lucidrains: tuple[int, tuple[int, ...]]  # dim, multiples


CASES = {
    "28x28": Case(28, (32, 64, 112), (32, 32, 64), (32, 64, 80), (32, (1, 1, 2), (7,)), (24, (1, 2, 3))),
    "32x32": Case(32, (48, 96, 176), (32, 64, 128), (48, 96, 112), (32, (1, 2, 4), (8,)), (36, (1, 2, 4))),
}
"""diffusers' networks do 0.36 and 1.08 GFLOP an image forward; the others have widths that come near to it."""


@contextmanager
def torchvision_stubbed() -> Iterator[None]:
    """Let libraries that import torchvision for their data sets be imported: it has no release that works here.

    Nothing of what is timed uses it.
    """
    stub = ModuleType("torchvision")
    stub.__spec__ = ModuleSpec("torchvision", None)
    stub.transforms = stub.utils = MagicMock()
    sys.modules["torchvision"] = stub
    try:
        yield
    finally:
        del sys.modules["torchvision"]


class Contestant(ABC):
    """A network with all that its library's training step needs.

    Attributes:
        network: takes ``x`` and ``time``.
        trained: the module that holds it, and whatever else is trained.
        time: how noisy each example is, in the network's terms, for the forward pass alone.
        clip: norm of the gradient, if it is clipped.
    """

    network: nn.Module
    trained: nn.Module
    time: Tensor
    clip: float | None = None

    def __init__(self, case: Case, batch: int) -> None:
        self.set_up()
        self.x = torch.rand(batch, 1, case.side, case.side) * 2 - 1
        self.build(case, batch)
        self.parameters = list(self.trained.parameters())
        self.optimiser = self.optimise()
        self.gflop = gflop(lambda: self.network(self.x[:1], self.time[:1]), 1)

    def set_up(self) -> None:  # noqa: B027
        """Tell the process what the library tells it before it trains; most say nothing."""

    @staticmethod
    def load() -> tuple[Any, ...]:
        """Import what this file did not, for ``build``."""
        return ()

    @abstractmethod
    def build(self, case: Case, batch: int) -> None:
        """Set the attributes, and the average of the weights if there is one."""

    @abstractmethod
    def optimise(self) -> torch.optim.Optimizer:
        """The optimiser."""

    @abstractmethod
    def loss(self) -> Tensor:
        """The loss of a batch."""

    def average(self) -> None:  # noqa: B027
        """Take the weights into their average; some keep none."""

    def step(self) -> None:
        """One training step."""
        self.loss().backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.average()

    def forward(self) -> Tensor:
        """The network alone, in sampling."""
        with torch.no_grad():
            return self.network.eval()(self.x, self.time)


class Sfumato(Contestant):
    """As engine/trainer.py does."""

    clip, precision = 1.0, "fp32"

    def set_up(self) -> None:
        self.machine = tuned(0, "cpu")  # held: what it sets is set back when it is forgotten
        self.machine.__enter__()

    def build(self, case: Case, batch: int) -> None:
        attention = [width == case.sfumato[-1] for width in case.sfumato]
        self.network = UNet(1, widths=case.sfumato, blocks=2, attention=attention, precision=self.precision)
        self.trained = Denoiser(self.network, Gaussian(Cosine()), weighting="edm", law=LogNormal(-0.5, 1.2))
        self.power = PowerAverage(self.trained, copy.deepcopy(self.trained), 0.1)
        self.time, self.steps = torch.randn(batch), 0

    def optimise(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters, lr=1e-3, betas=(0.9, 0.99), fused=True)

    def loss(self) -> Tensor:
        return self.trained.train().loss(self.x, None, stream(0, self.steps)).mean()

    def step(self) -> None:
        loss = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip))
        assert math.isfinite(norm)
        self.optimiser.step()
        self.steps += 1
        self.power.update(self.steps)
        loss.item()


class SfumatoBF16(Sfumato):
    """The same with bfloat16 inside the network."""

    precision = "bf16"


class _Sample(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.net(x, time).sample


class Diffusers(Contestant):
    """As its example train_unconditional.py does with --use_ema; attention on the lowest level as in ours."""

    clip = 1.0

    def build(self, case: Case, batch: int) -> None:
        levels = len(case.diffusers)
        net = UNet2DModel(
            sample_size=case.side,
            in_channels=1,
            out_channels=1,
            block_out_channels=case.diffusers,
            layers_per_block=2,
            down_block_types=["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
        )
        self.network = self.trained = _Sample(net)
        self.scheduler = DDPMScheduler(1000)
        self.ema = EMAModel(
            net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True
        )
        self.time = torch.randint(1000, (batch,))

    def optimise(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)

    def loss(self) -> Tensor:
        noise = torch.randn_like(self.x)
        t = torch.randint(1000, (len(self.x),))
        return F.mse_loss(self.network.train()(self.scheduler.add_noise(self.x, noise, t), t), noise)

    def average(self) -> None:
        self.ema.step(self.parameters)


class DiffusersPagesKept(Diffusers):
    """The same with the allocator's setting of ours, which its users would have to know."""

    def set_up(self) -> None:
        pages_kept()


class Azula(Contestant):
    """As its tutorial mnist.ipynb does, without labels: Adam, nothing clipped, no average."""

    @staticmethod
    def load() -> tuple[Any, ...]:
        from azula.denoise import KarrasDenoiser
        from azula.nn.unet import UNet as Net
        from azula.noise import VPSchedule

        return KarrasDenoiser, Net, VPSchedule

    def build(self, case: Case, batch: int) -> None:
        KarrasDenoiser, Net, VPSchedule = self.load()

        class Backbone(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.unet = Net(1, 1, hid_channels=case.azula, hid_blocks=(2, 2, 2), mod_features=64)
                self.embedding = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64))

            def forward(self, x: Tensor, time: Tensor) -> Tensor:
                return self.unet(x, self.embedding(time[..., None]))

        self.network, self.time = Backbone(), torch.randn(batch)
        self.trained = KarrasDenoiser(self.network, VPSchedule())

    def optimise(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters, lr=3e-4, fused=True)

    def loss(self) -> Tensor:
        return self.trained.train().loss(self.x, torch.rand(len(self.x)))


class SmallDiffusion(Contestant):
    """As its training_loop does: AdamW, nothing clipped, no average; the U-Net of its example fashion_mnist_unet.py."""

    @staticmethod
    def load() -> tuple[Any, ...]:
        with torchvision_stubbed():
            from smalldiffusion import Scaled, ScheduleLogLinear, Unet, generate_train_sample
        return Scaled, ScheduleLogLinear, Unet, generate_train_sample

    def build(self, case: Case, batch: int) -> None:
        Scaled, ScheduleLogLinear, Unet, self.draw = self.load()
        channels, multiples, sides = case.smalldiffusion
        self.network = self.trained = Scaled(Unet)(
            case.side, 1, 1, ch=channels, ch_mult=multiples, attn_resolutions=sides, dropout=0.0
        )
        self.schedule = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)
        self.time = torch.rand(batch, 1, 1, 1) + 0.1

    def optimise(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters, lr=7e-4, fused=True)

    def loss(self) -> Tensor:
        x, sigma, eps, _ = self.draw(self.x, self.schedule)
        return self.network.train().get_loss(x, sigma, eps)


class Lucidrains(Contestant):
    """As its Trainer does: GaussianDiffusion, Adam, the average every tenth step."""

    clip = 1.0

    @staticmethod
    def load() -> tuple[Any, ...]:
        with torchvision_stubbed():
            from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        return GaussianDiffusion, Unet, EMA

    def build(self, case: Case, batch: int) -> None:
        GaussianDiffusion, Unet, EMA = self.load()
        dim, multiples = case.lucidrains
        self.network = Unet(dim, dim_mults=multiples, channels=1, flash_attn=True)
        self.trained = GaussianDiffusion(self.network, image_size=case.side)
        self.ema = EMA(self.trained, beta=0.995, update_every=10)
        self.x = (self.x + 1) / 2  # it normalises itself
        self.time = torch.randint(1000, (batch,))

    def optimise(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters, lr=1e-4, betas=(0.9, 0.99), fused=True)

    def loss(self) -> Tensor:
        return self.trained.train()(self.x)

    def average(self) -> None:
        self.ema.update()


CONTESTANTS: dict[str, type[Contestant]] = {
    "sfumato bf16": SfumatoBF16,
    "sfumato fp32": Sfumato,
    "diffusers": Diffusers,
    "diffusers, pages kept": DiffusersPagesKept,
    "azula": Azula,
    "smalldiffusion": SmallDiffusion,
    "denoising-diffusion-pytorch": Lucidrains,
}
OURS = ("sfumato bf16", "sfumato fp32")
