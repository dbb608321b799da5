"""Diffusion in one file: turn handwritten digits into noise step by step, and learn the way back.

    python examples/nano_ddpm.py [--steps N] [--out FILE]

Time t runs from 0 (a picture) to 1 (noise); s < t is any earlier time. Nothing is needed but this page:

    (1)  x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, 1)             noise of strength t, in one jump
    (2)  q(x_t | x_s),  q(x_t | x_0),  q(x_s | x_t, x_0)              the way there: known, nothing to learn
    (3)  p_theta(x_s | x_t) = q(x_s | x_t, x_0 = what the network guesses from x_t)         the way back

Learning is guessing x_0 from x_t. Sampling is starting from pure noise and applying (3) until t = 0.
Ho et al. 2020 (arXiv 2006.11239); Song et al. 2021 (2010.02502); Salimans and Ho 2022 (2202.00512).
"""

import argparse
import math
import struct
import time
import zlib
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

# ── The way to noise ─────────────────────────────────────────────────────────────────────────────────────────────────
#
# A quarter turn: alpha_t = cos, sigma_t = sin of an angle that grows with t. As alpha^2 + sigma^2 = 1, a picture of
# variance 1 keeps it. The turn stops just short of 90 degrees: a trace of signal stays and nothing divides by zero.

END = 0.995 * math.pi / 2


def alpha_sigma(t: Tensor | float) -> tuple[Tensor, Tensor]:
    angle = END * torch.as_tensor(t)
    return angle.cos(), angle.sin()


def q_transition(x_s, s, t):
    """q(x_t | x_s) = N(alpha_ts x_s, 1 - alpha_ts^2),  alpha_ts = alpha_t / alpha_s:  one step of noise."""
    alpha_ts = alpha_sigma(t)[0] / alpha_sigma(s)[0]
    return alpha_ts * x_s, (1 - alpha_ts**2).sqrt()


def q_marginal(x_0, t):
    """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2):  all the small steps at once, which is equation (1)."""
    alpha, sigma = alpha_sigma(t)
    return alpha * x_0, sigma


def q_posterior(x_t, x_0, t, s, eta=1.0):
    """q(x_s | x_t, x_0) = N(alpha_s x_0 + sqrt(sigma_s^2 - tau^2) eps, tau^2),  eps = (x_t - alpha_t x_0) / sigma_t.

    Keep the noise that is in x_t, at the strength of time s; replace a part of it, tau, by fresh noise. The part
    that Bayes' rule asks for is eta = 1 (DDPM). With eta = 0 nothing is drawn (DDIM). All of them fit q(x_s | x_0).
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(s), alpha_sigma(t)
    tau = eta * q_transition(x_t, s, t)[1] * sigma_s / sigma_t
    return alpha_s * x_0 + (sigma_s**2 - tau**2).sqrt() * (x_t - alpha_t * x_0) / sigma_t, tau


# ── The network ──────────────────────────────────────────────────────────────────────────────────────────────────────
#
# It sees a noisy picture (64 pixels), the time and which digit it is. (x_0, eps) turned by the angle is (x_t, v) with
#
#     v = alpha_t eps - sigma_t x_0,   so turning back:   x_0 = alpha_t x_t - sigma_t v.
#
# We let it output v, which has the same size at every t: at t = 0 it means the noise, at t = 1 the picture.


class Network(nn.Module):
    def __init__(self, width=384, depth=4):
        super().__init__()
        self.pixels, self.clock, self.digit = nn.Linear(64, width), nn.Linear(16, width), nn.Embedding(10, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64))

    def forward(self, x_t, t, digit):
        waves = t * math.pi * 2.0 ** torch.arange(-1, 7)  # one number t as 16, slow and fast, like the hands of a clock
        told = self.clock(torch.cat([waves.sin(), waves.cos()], 1)) + self.digit(digit)
        h = self.pixels(x_t)
        for block in self.blocks:
            h = h + block(h + told)
        return self.out(h)
