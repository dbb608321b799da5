"""The Gaussian that fits data best, with few directions of their own variance, and its guess of what is behind noise.

(1)  p(x_0) = N(mean, S),   S = V^T diag(l) V + rest (1 - V^T V)                (Tipping and Bishop 1999, eq. 3)
     most likely if the rows of V are the first eigenvectors of the data's covariance, l their eigenvalues, and rest is
     the mean of the other eigenvalues                                                                    (eq. 7, 8)
(2)  E[x_0 | x_t] = mean + alpha S (alpha^2 S + sigma^2)^-1 z,   z = x_t - alpha mean
                  = mean + c(rest) z + V^T diag(c(l) - c(rest)) V z,   c(l) = alpha l / (alpha^2 l + sigma^2)

(2) is the best guess that is linear in x_t, whatever the law of the data, up to the rank: Wiener's filter. It sees the
whole of x_t at the price of two thin matrix products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.process import spread
from sfumato.schedule import Instant

__all__ = ["PPCA"]


class PPCA(nn.Module):
    """Probabilistic principal component analysis; equation (1). Before :meth:`fit` it guesses 0.

    Args:
        dims: of a state.
        rank: directions V, at most as many as a state has values.

    Raises:
        UserError: no direction, or more.

    Attributes:
        mean: (*dims,).
        directions: (rank, d) V, d values of a state in one row.
        variances: (rank,) l.
        rest: () the variance of all other directions.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(self, dims: tuple[int, ...], rank: int) -> None:
        super().__init__()
        if not 0 < rank <= math.prod(dims):
            raise UserError(f"ppca is 0, or 1 to {math.prod(dims):,} directions of these data, got {rank}")
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("directions", torch.zeros(rank, self.mean.numel()))
        self.register_buffer("variances", torch.zeros(rank))
        self.register_buffer("rest", torch.zeros(()))

    @property
    def rank(self) -> int:
        """Number of directions."""
        return len(self.variances)

    @property
    def fitted(self) -> bool:
        """Whether it knows any data."""
        return bool(self.variances.any())

    @torch.no_grad()
    def fit(self, x_0: Tensor) -> None:
        """Take the most likely mean, directions and variances; equation (1).

        Args:
            x_0: (N, *dims) data, N above the rank.
        """
        from sklearn.decomposition import PCA  # here, since what is fitted is read back without it

        found = PCA(self.rank, random_state=0).fit(x_0.flatten(1).cpu().numpy())
        self.mean.copy_(torch.from_numpy(found.mean_).view_as(self.mean))
        self.directions.copy_(torch.from_numpy(found.components_))
        self.variances.copy_(torch.from_numpy(found.explained_variance_))
        self.rest.copy_(torch.as_tensor(found.noise_variance_))

    def forward(self, x_t: Tensor, now: Instant) -> Tensor:
        """Return E[x_0 | x_t], of the shape of ``x_t``; equation (2).

        Args:
            x_t: (B, *dims) states.
            now: their time, one or one for each.
        """
        z = (x_t - spread(now.alpha, x_t) * self.mean).flatten(1)
        plain = _slope(now, self.rest, z)
        along = (_slope(now, self.variances, z) - plain) * (z @ self.directions.T)
        return self.mean + (plain * z + along @ self.directions).view_as(x_t)


def _slope(now: Instant, variance: Tensor, z: Tensor) -> Tensor:
    """Return c of equation (2) for each variance, one row for each of z if these have times of their own."""
    alpha, sigma = spread(now.alpha, z), spread(now.sigma, z)
    return alpha * variance / (alpha**2 * variance + sigma**2)
