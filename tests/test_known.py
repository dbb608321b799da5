"""What is known of a picture: the law of the masks, what networks see of it, and that it is learned as a condition."""

import pytest
import torch

from sfumato.condition import Condition
from sfumato.denoise import Denoiser, Given
from sfumato.dist import stream
from sfumato.known import known, random_masks
from sfumato.nn import UNet
from sfumato.process import Gaussian
from sfumato.schedule import Cosine
from sfumato.weighting import LogNormal


def unet(**more):
    torch.manual_seed(0)
    network = UNet(2, widths=(16, 16), blocks=1, attention=(False, True), **more)
    torch.nn.init.normal_(network.outlet.weight, std=0.1)
    return network


# ── Masks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_half_of_the_masks_show_nothing_and_the_rest_every_share():
    masks = random_masks(torch.zeros(4000, 3, 16, 12), stream(0))
    assert masks.shape == (4000, 1, 16, 12) and set(masks.unique().tolist()) == {0.0, 1.0}
    shown = masks.mean((1, 2, 3))
    assert abs(float((shown == 0).double().mean()) - 0.5) < 0.05
    some = shown[shown > 0]
    assert all(float(((low < some) & (some <= low + 0.25)).double().mean()) > 0.1 for low in (0, 0.25, 0.5, 0.75))


def test_masks_show_insides_and_outsides_alike():
    """Where anything is shown, a corner is in half of them, as the middle is, within what the shapes of both allow."""
    masks = random_masks(torch.zeros(8000, 1, 9, 9), stream(1))[:, 0]
    masks = masks[masks.flatten(1).any(1)]
    middle, corners = masks[:, 4, 4].mean(), masks[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert abs(float(middle) - 0.5) < 0.06 and abs(float(corners) - 0.5) < 0.1


def test_what_is_hidden_is_zero_whatever_lies_there():
    x = torch.randn(2, 3, 4, 4)
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    got = known(torch.where(mask > 0, x, torch.nan), mask)
    assert torch.equal(got[:, :1], mask.expand(2, 1, 4, 4)) and torch.equal(got[:, 1:], x * mask)


# ── Networks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_known_is_the_same_as_none():
    network, x, level = unet(known=True), torch.randn(3, 2, 7, 8), torch.zeros(3)
    nothing = Condition(known=torch.zeros(3, 3, 7, 8))
    assert torch.equal(network(x, level), network(x, level, nothing))
    shown = Condition(known=known(x, torch.ones(7, 8)))
    assert not torch.allclose(network(x, level), network(x, level, shown))


def test_a_network_that_is_shown_nothing_refuses_to_be():
    x = torch.randn(1, 2, 8, 8)
    with pytest.raises(ValueError, match="known=False"):
        unet()(x, torch.zeros(1), Condition(known=known(x, torch.ones(8, 8))))


def test_the_rest_of_a_picture_is_learned_from_what_is_known():
    """Pictures of one value, N(0, 1), in much noise: it is what all 64 pixels say together, as two Gaussians have it,
    and is known once a corner is.
    """
    torch.manual_seed(0)
    network = UNet(1, widths=(16, 16), blocks=1, attention=(False, True), known=True)
    model = Denoiser(network, Gaussian(Cosine()), sigma_data=1.0, masks=True, law=LogNormal(1.0, 1.2))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for k in range(400):
        rng = stream(2, k)
        x = torch.randn(64, 1, 1, 1, generator=rng).expand(64, 1, 8, 8)
        optimiser.zero_grad()
        model.loss(x, None, rng).mean().backward()
        optimiser.step()
    x = torch.randn(200, 1, 1, 1, generator=stream(3)).expand(200, 1, 8, 8)
    mask = torch.zeros(8, 8)
    mask[:3, :3] = 1
    t, x_t = 0.93, model.process.marginal(x, 0.93).sample(stream(4))  # the noise is 9 times the data
    with torch.no_grad():
        told = Given(model.eval(), model.shown(x, mask))(x_t, t).x0
        untold = Given(model, None)(x_t, t).x0
    now = model.process.schedule.at(t)
    mean = x_t.mean((1, 2, 3), keepdim=True) * now.alpha * 64 / (now.sigma**2 + 64 * now.alpha**2)
    assert float((told - x).square().mean()) < 0.2
    assert float((untold - mean).square().mean()) < 0.1 < 0.5 < float((untold - x).square().mean())
