"""What turns gradients into steps: AdamW, or Muon for the matrices of the hidden layers and AdamW for all else.

Muon, for a matrix W (fan_out, fan_in) with gradient G and momentum M                    (Jordan et al. 2024, "Muon")

(1)  M <- mu M + (1 - mu) G,   U = polar((1 - mu) G + mu M),   W <- W - RATIO lr sqrt(max(1, fan_out / fan_in)) U
(2)  polar(X) ~ S_5 ... S_1 X,  S_k = a + b A_k + c A_k^2,  A_1 = X X^T,  A_{k+1} = S_k A_k S_k,  where |X| = 1

A convolution counts as the matrix (out, in height width). So every direction of a layer moves by the same amount; AdamW
moves every weight by the same amount. Muon costs some matrix products a step, whatever the batch.

Equation (2) is what five times X <- (a + b A + c A^2) X, A = X X^T, make, and brings all singular values near 1. All
its products but the first and last are of the short side of X alone: less than half of the work for kernels of 3x3.
It takes all digits of float32, since A has the squares of the singular values of X.

A step whose gradient is not finite changes nothing, on the device itself, without asking the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from sfumato.engine.distributed import assign
from sfumato.engine.machine import exact_products

__all__ = ["AdamW", "Muon", "Optimizer", "Rule", "hidden_matrices"]

Rule = Literal["adamw", "muon"]
"""Names of the rules."""

RATIO = 5.0  # of Muon's rate to AdamW's: its updates have unit singular values, AdamW's have unit entries
MOMENTUM = 0.95
POLAR = (3.4445, -4.7750, 2.0315)  # a, b, c of (2)
ROUNDS = 5


class Optimizer:
    """Steps all weights of one or several modules.

    Args:
        rule: its name.
        paces: each module with its rate, as a share of the learning rate.
        momentum: without, every weight is AdamW's with beta_1 = 0, whatever the rule.
    """

    def __init__(self, rule: Rule, paces: Mapping[nn.Module, float], momentum: bool = True) -> None:
        hidden: dict[Tensor, float] = {}
        rest: dict[Tensor, float] = {}
        for module, pace in paces.items():
            if rule == "muon" and momentum:
                hidden |= dict.fromkeys(hidden_matrices(module), pace)
            rest |= {each: pace for each in module.parameters() if each.requires_grad and each not in hidden}
        self.adam = AdamW(rest, beta1=0.9 * momentum)
        self.muon = Muon(hidden)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in (*self.adam.weights, *self.muon.weights):
            weight.grad = None

    def step(self, lr: float, unfit: Tensor) -> None:
        """Take one step.

        Args:
            lr: learning rate.
            unfit: 1 on the device if the gradient is not finite, else 0.
        """
        self.adam.step(lr, unfit)
        self.muon.step(lr, unfit)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, by name."""
        adam = {"step": self.adam.steps, "exp_avg": self.adam.means, "exp_avg_sq": self.adam.squares}
        state = {f"adam.{i}.{name}": tensor for name, own in adam.items() for i, tensor in enumerate(own)}
        return state | {f"muon.{i}": tensor for i, tensor in enumerate(self.muon.momenta)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the state that ``tensors`` told; what it does not tell is as before the first step."""
        state = self.tensors()
        assign(state, {name: tensors.get(name, torch.zeros(own.shape)) for name, own in state.items()})


class AdamW:
    """AdamW (Loshchilov & Hutter 2019), by torch's fused kernel.

    Called as a function: torch's class imports its compiler, which takes a third of the time that a run starts in.

    Args:
        paces: weights, each with its rate as a share of the learning rate.
        beta1: how much of the mean gradient a step keeps.
    """

    def __init__(self, paces: Mapping[Tensor, float], beta1: float) -> None:
        self.weights, self.paces = list(paces), list(paces.values())
        self.beta1 = beta1
        self.steps = [torch.zeros((), device=weight.device) for weight in self.weights]
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, lr: float, unfit: Tensor) -> None:
        """Take one step; arguments as for :meth:`Optimizer.step`."""
        grads = [weight.grad for weight in self.weights]
        for pace in dict.fromkeys(self.paces):
            which = [i for i, own in enumerate(self.paces) if own == pace and grads[i] is not None]
            adamw(
                [self.weights[i] for i in which],
                [grad for i in which if (grad := grads[i]) is not None],
                [self.means[i] for i in which],
                [self.squares[i] for i in which],
                [],
                [self.steps[i] for i in which],
                fused=True,
                found_inf=unfit,  # the kernel does nothing then
                lr=lr * pace,
                beta1=self.beta1,
                beta2=0.99,
                weight_decay=0.01,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


class Muon:
    """Equations (1) and (2).

    Args:
        paces: weights of two or more dimensions, each with its rate as a share of the learning rate.
    """

    def __init__(self, paces: Mapping[Tensor, float]) -> None:
        self.weights = list(paces)
        alike: dict[tuple[int, int, float], list[Tensor]] = {}
        for weight, pace in paces.items():
            alike.setdefault((*weight.flatten(1).shape, pace), []).append(weight)
        self.groups = [
            (each, torch.zeros(len(each), rows, columns, device=each[0].device), pace)
            for (rows, columns, pace), each in alike.items()
        ]
        own = {w: m for weights, momenta, _ in self.groups for w, m in zip(weights, momenta, strict=True)}
        self.momenta = [own[weight].view_as(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, lr: float, unfit: Tensor) -> None:
        """Take one step; arguments as for :meth:`Optimizer.step`. Matrices of one shape go together."""
        for weights, momenta, pace in self.groups:
            grads = (weight.grad for weight in weights)
            grad = torch.where(unfit > 0, 0.0, torch.stack([g.flatten(1) for g in grads if g is not None]))
            momenta.lerp_(grad, (1 - MOMENTUM) * (1 - unfit))
            _, rows, columns = grad.shape
            size = RATIO * lr * pace * max(1.0, rows / columns) ** 0.5
            step = polar(torch.lerp(grad, momenta, MOMENTUM)) * (size * (1 - unfit))
            for weight, moved in zip(weights, step, strict=True):
                weight.sub_(moved.view_as(weight))


def polar(x: Tensor) -> Tensor:
    """Return (n, rows, columns) matrices with singular values between about 0.7 and 1.2, equation (2), float32."""
    wide = x.shape[1] <= x.shape[2]
    y = x if wide else x.mT
    y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)
    with exact_products():
        gram = y @ y.mT
        steps = step = _step(gram)
        for _ in range(ROUNDS - 1):
            gram = step @ gram @ step
            step = _step(gram)
            steps = step @ steps
        y = steps @ y
    return y if wide else y.mT


def _step(gram: Tensor) -> Tensor:
    """Return S of A, equation (2)."""
    a, b, c = POLAR
    step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    step.diagonal(dim1=1, dim2=2).add_(a)
    return step


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Return the weights of two or more dimensions, but for embeddings and the first and last layer of a network."""
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in tables and not {"inlet", "outlet"} & set(name.split("."))
    ]
