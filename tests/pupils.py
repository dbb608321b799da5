"""Small networks for the data of a line, and what it takes to teach them."""

import copy

import torch

from oracles import line
from sfumato.denoise import Denoiser
from sfumato.dist import stream
from sfumato.nn import MLP
from sfumato.process import Gaussian
from sfumato.schedule import Cosine
from sfumato.teaching import Task
from sfumato.weighting import LogNormal


def mlp(gives, seed=0):
    torch.manual_seed(seed)
    network = MLP(1, width=64, depth=3, ends=gives == "map")
    law = LogNormal(0.0, 2.0) if gives != "mean" else None
    return Denoiser(network, Gaussian(Cosine()), sigma_data=0.95, gives=gives, law=law)


def taught(method, teacher, steps, lr=2e-3):
    """A student after some steps, on fresh data of the line."""
    student = mlp(method.gives)
    student.load_state_dict(teacher.state_dict(), strict=False)
    beside = method.beside(teacher)
    learning = [*student.parameters(), *(each for one in beside.values() for each in one.parameters())]
    optimiser = torch.optim.Adam(learning, lr=lr, betas=(0.9, 0.95))
    average, guide, stage = copy.deepcopy(student), teacher, 0
    for k in range(steps):
        if int(k / steps * method.stages) > stage:
            stage, guide = stage + 1, copy.deepcopy(average)
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (steps - k) / (0.5 * steps))
        x_0 = line().sample(512, stream(8, k)).float()
        task = Task(x_0, None, stream(9, k), student.times(512, stream(10, k)), k / steps, beside, k)
        loss = method.loss(student, guide, task)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        for ours, theirs in zip(average.parameters(), student.parameters(), strict=True):
            ours.data.lerp_(theirs.data, 0.02)
    return average


def trained():
    """A network that gives the mean, after some steps on data of the line."""
    model = mlp("mean")
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for k in range(600):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (600 - k) / 300)
        optimiser.zero_grad()
        model.loss(line().sample(512, stream(11, k)).float(), rng=stream(12, k)).mean().backward()
        optimiser.step()
    return model.requires_grad_(False)
