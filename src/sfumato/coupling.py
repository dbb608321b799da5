"""Which noise goes with which example of a training batch.

(1)  independent   eps_i ~ N(0, I) whatever x_i is: the forward process itself
(2)  immiscible    eps_pi(i), pi = argmin sum_i |x_i - eps_pi(i)|^2 over the permutations within each class
                                                                                     (Li et al. 2406.12303, eq. 4)

Under (2) every eps is still a standard normal draw, and of each class too, but it knows a little of x: paths of noise
cross less, and the network has less to average over. What it learns is no longer exactly E[x_0 | x_t] of the forward
process; the larger the batch against the dimension, the further from it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["COUPLINGS", "immiscible"]


def immiscible(x_0: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
    """Return the noise of a batch in the order of equation (2), of the shape of ``eps``.

    Args:
        x_0: (B, ...) data.
        eps: (B, ...) noise.
        label: (B,) indices of classes, or None if all are of one.
    """
    from scipy.optimize import linear_sum_assignment  # here, since most runs have no use for it

    kind = torch.zeros(len(x_0), dtype=torch.long) if label is None else label.cpu()
    cost = torch.cdist(x_0.flatten(1).float(), eps.flatten(1).float()).square().cpu()
    order = torch.arange(len(x_0))
    for each in set(kind.tolist()):
        mine = torch.nonzero(kind == each)[:, 0]
        _, chosen = linear_sum_assignment(cost[mine][:, mine].numpy())
        order[mine] = mine[torch.from_numpy(chosen)]
    return eps[order.to(eps.device)]


COUPLINGS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "independent": lambda x_0, eps, label: eps,
    "immiscible": immiscible,
}
"""By name: (x_0, eps, labels) -> the noise that goes with each example."""
