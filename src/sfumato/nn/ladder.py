"""A ladder of latent variables: one way up through the data, and one way down that infers them or draws them.

From the coarsest level to the finest, with h what lies above and d_k what the way up found in the data at level k,

(1)  p(z_k | above) = N(m(h), s(h)^2),    q(z_k | above, x) = N(m(h) + s(h) m'(h, d_k), (s(h) s'(h, d_k))^2)
(2)  h <- blocks(h + W z_k), doubled in size for the level below it

(Sonderby et al. 1602.02282, section 2.2; that q is told relative to p is of Vahdat and Kautz 2007.03898, section 3.2).
At first q = p = N(0, 1). Inference and generation share the way down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.nn.vectors import Paint, active, coarsest, everywhere, given, layer

__all__ = ["Down"]

Law = tuple[Tensor, Tensor]
"""Mean and log standard deviation."""


class Down(nn.Module):
    """From latent variables, coarsest first, and labels to data (B, *dims).

    Args:
        dims: (channels, height, width) of pictures, or (dim,) of points.
        latent: latent channels of each level; of points, numbers.
        widths: hidden channels of each level, the finest first.
        blocks: residual blocks of each level.
        classes: number of class labels; 0 means there are none.
    """

    def __init__(self, dims: Sequence[int], latent: int, widths: Sequence[int], blocks: int, classes: int = 0) -> None:
        super().__init__()
        self.dims = tuple(dims)
        sides, down = coarsest(dims, widths), list(reversed(widths))
        self.shapes = [(latent, *(side * 2**k for side in sides)) for k in range(len(widths))]
        self.start = nn.Parameter(torch.zeros(down[0], *sides))
        self.label = nn.Embedding(classes, down[0]) if classes else None
        self.prior = nn.ModuleList(layer(dims, width, 2 * latent, 0.0, side=1) for width in down)
        self.posterior = nn.ModuleList(layer(dims, 2 * width, 2 * latent, 0.0, side=1) for width in down)
        self.take = nn.ModuleList(layer(dims, latent, width, side=1) for width in down)
        self.paint = Paint(dims, widths, blocks)

    def forward(self, n: int, cond: Condition | None, draw: Callable[[int, Tensor, Law], Tensor]) -> Tensor:
        """Walk down.

        Args:
            n: examples.
            cond: of each example.
            draw: asked at every level, with its number from 0, h, and the law p of (1), for z_k.

        Raises:
            ValueError: labels are missing where the network has them, or given where it has none.
        """
        h = self.start.expand(n, *self.start.shape)
        if (label := given(self.label, cond)) is not None:
            h = h + everywhere(label, self.dims[1:])

        def more(k: int, h: Tensor) -> Tensor:
            mean, log_std = self.prior[k](active(h)).chunk(2, 1)
            taken: Tensor = self.take[k](draw(k, h, (mean, log_std)))
            return taken

        made: Tensor = self.paint(h, more)
        return made

    def relative(self, k: int, h: Tensor, found: Tensor) -> Law:
        """Return m' and log s' of (1), (B, latent, ...) each.

        Args:
            k: number of the level, from 0.
            h: what lies above.
            found: what the way up found there.
        """
        mean, log_std = self.posterior[k](active(torch.cat([h, found], 1))).chunk(2, 1)
        return mean, log_std
