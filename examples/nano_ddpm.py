"""Diffusion in one file: turn handwritten digits into noise step by step, and learn the way back.

    python examples/nano_ddpm.py [--steps N] [--out FILE]

Time t runs from 0 (a picture) to 1 (noise); s < t is an earlier time. This is all of it:

    (1)  x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, 1)                    a picture with noise of strength t
    (2)  q(x_t | x_s),  q(x_t | x_0),  q(x_s | x_t, x_0)                     the way to noise: known, nothing to learn
    (3)  p_theta(x_s | x_t) = q(x_s | x_t, x_0 = the network's guess)        the way back

Learning is guessing x_0 from x_t. Sampling is drawing pure noise and applying (3) until t = 0.
"""

import argparse
import zlib
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

# ── The way to noise ──────────────────────────────────────────────────────────────────────────────────────────────────
# A quarter turn from data to noise: alpha = cos and sigma = sin of an angle that grows with t (alpha^2 + sigma^2 = 1).
# It stops just short of 90 degrees, so that nothing divides by zero. A normal distribution is the pair (mean, std).
END = 0.995 * torch.pi / 2


def alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(END * t), torch.sin(END * t)


def q_transition(x_s: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_t | x_s) = N(alpha_ts x_s, 1 - alpha_ts^2),  alpha_ts = alpha_t / alpha_s:  one step of noise."""
    alpha_ts = alpha_sigma(t)[0] / alpha_sigma(s)[0]
    return alpha_ts * x_s, (1 - alpha_ts**2).sqrt()


def q_marginal(x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2):  all steps at once, equation (1)."""
    alpha, sigma = alpha_sigma(t)
    return alpha * x_0, sigma


def q_posterior(x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """q(x_s | x_t, x_0) = N(alpha_s x_0 + sqrt(sigma_s^2 - tau^2) eps, tau^2),  eps = (x_t - alpha_t x_0) / sigma_t.

    Of the noise that x_s must have, some is kept from x_t and tau is drawn anew: as much as Bayes' rule says for
    eta = 1 (DDPM, arXiv 2006.11239), none for eta = 0 (DDIM, 2010.02502). Either way x_s has the law q(x_s | x_0).
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(s), alpha_sigma(t)
    tau = eta * (1 - (alpha_t / alpha_s) ** 2).sqrt() * sigma_s / sigma_t
    return alpha_s * x_0 + (sigma_s**2 - tau**2).sqrt() * (x_t - alpha_t * x_0) / sigma_t, tau


# ── The network and what it learns ────────────────────────────────────────────────────────────────────────────────────
# It sees x_t, t and which digit it is. It answers v, the direction in which the quarter turn moves (arXiv 2202.00512):
#
#     x_t = alpha_t x_0 + sigma_t eps       v = alpha_t eps - sigma_t x_0       hence   x_0 = alpha_t x_t - sigma_t v
#
# To guess v is to guess x_0, in a form that suits every t: near t = 0 it is the noise, near t = 1 the picture.
class Network(nn.Module):
    def __init__(self, width: int = 384, depth: int = 4) -> None:
        super().__init__()
        self.enter, self.clock, self.digit = nn.Linear(64, width), nn.Linear(16, width), nn.Embedding(10, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64))

    def forward(self, x_t: Tensor, t: Tensor, digit: Tensor) -> Tensor:
        hands = torch.pi * t * 2.0 ** torch.arange(-1, 7)  # t (B, 1) on eight clocks, from slow to fast
        told = self.clock(torch.cat([hands.sin(), hands.cos()], dim=1)) + self.digit(digit)
        h = self.enter(x_t)
        for block in self.blocks:
            h = h + block(h + told)
        return self.leave(h)


def loss(network: nn.Module, x_0: Tensor, digit: Tensor, rng: torch.Generator) -> Tensor:
    """E |v - v_theta(x_t, t)|^2 over pictures, times and noise. Training makes this small; that is all it does."""
    t, eps = torch.rand(len(x_0), 1, generator=rng), torch.randn(x_0.shape, generator=rng)
    alpha, sigma = alpha_sigma(t)
    return (alpha * eps - sigma * x_0 - network(alpha * x_0 + sigma * eps, t, digit)).square().mean()


def train(x_0: Tensor, digit: Tensor, steps: int, batch: int = 128, lr: float = 1e-3, seed: int = 0) -> Network:
    rng, network = torch.manual_seed(seed), Network()
    adam = torch.optim.AdamW(network.parameters())
    for k in range(steps):
        adam.param_groups[0]["lr"] = lr * (1 - k / steps)  # ever smaller steps average the noise of the batches
        pick = torch.randint(len(x_0), (batch,), generator=rng)
        error = loss(network, x_0[pick], digit[pick], rng)
        adam.zero_grad()
        error.backward()
        adam.step()
        if (k + 1) % 500 == 0:
            print(f"step {k + 1:5d} of {steps}   loss {error.item():.3f}")
    return network


# ── The way back ──────────────────────────────────────────────────────────────────────────────────────────────────────
@torch.no_grad()
def sample(network: nn.Module, digit: Tensor, eta: float, stops: int = 100, seed: int = 0) -> list[Tensor]:
    """Draw x_1 ~ N(0, 1), then x_s ~ p_theta(x_s | x_t) down the chain t = 1, ..., 2/stops, 1/stops, 0. Return all."""
    rng = torch.Generator().manual_seed(seed)
    path = [torch.randn(len(digit), 64, generator=rng)]
    for k in range(stops, 0, -1):
        x_t, t, s = path[-1], torch.tensor(k / stops), torch.tensor((k - 1) / stops)
        alpha, sigma = alpha_sigma(t)
        x_0 = alpha * x_t - sigma * network(x_t, t.expand(len(digit), 1), digit)
        mean, std = q_posterior(x_t, x_0, t, s, eta)  # p_theta(x_s | x_t)
        path.append(mean + std * torch.randn(mean.shape, generator=rng))
    return path


def in_blocks(ten: Tensor) -> str:
    """Ten pictures in 4 lines of 80 characters: each character is two pixels, one above the other, on or off."""
    upper, lower = (ten.view(10, 4, 2, 8).permute(2, 1, 0, 3).reshape(2, 4, 80) > 0).int()
    return "\n".join("".join(" ▀▄█"[c] for c in line) for line in upper + 2 * lower)


def png(pictures: Tensor, zoom: int = 6) -> bytes:
    """A file with ten pictures a row. PNG is a header, the zipped rows of pixels and an end, each with a checksum."""
    cells = nn.functional.pad(pictures.view(-1, 10, 8, 8), (1, 1, 1, 1), value=-1).transpose(1, 2).reshape(-1, 100)
    grey = (cells.clamp(-1, 1) * 127.5 + 127.5).byte().repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    rows = zlib.compress(b"".join(b"\0" + bytes(row.tolist()) for row in grey))
    parts = [b"IHDR" + b"".join(n.to_bytes(4) for n in grey.T.shape) + b"\x08\0\0\0\0", b"IDAT" + rows, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join((len(p) - 4).to_bytes(4) + p + zlib.crc32(p).to_bytes(4) for p in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn to draw handwritten digits.")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="the picture of new digits")
    args = parser.parse_args()
    torch.set_num_threads(1)  # with matrices this small a second thread waits more than it works
    pictures, digit = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x_0 = pictures.float() / 8 - 1  # pixels 0..16 become -1..1
    network = train(x_0[:1500], digit[:1500], args.steps)
    print(f"loss on digits it never saw: {loss(network, x_0[1500:], digit[1500:], torch.manual_seed(0)).item():.3f}")
    ddpm, ddim = (sample(network, torch.arange(50) % 10, eta) for eta in (1.0, 0.0))
    for k in (0, 60, 75, 90, 100):
        print(f"\nt = {1 - k / 100:.2f}\n{in_blocks(ddpm[k][:10])}")
    args.out.write_bytes(png(torch.cat([ddpm[-1], ddim[-1]])))
    print(f"\n{args.out}: 50 new digits with eta = 1, and from the same noise 50 with eta = 0")


if __name__ == "__main__":
    main()
