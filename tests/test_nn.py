"""The networks: shapes, padding, independence of rows, gradients, determinism, conditioning, precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.condition import Condition
from sfumato.nn import MLP, DiT, Encoder, UNet
from sfumato.nn.dit import places
from sfumato.nn.layers import AFTER_SILU, Attention, Waves, channel_norm, started

Make = Callable[..., nn.Module]


def small_unet(**options: object) -> UNet:
    return UNet(2, **{"widths": (8, 16), "blocks": 1, "attention": (False, True), **options})


def small_dit(**options: object) -> DiT:
    return DiT(2, **{"width": 16, "depth": 2, "patch": 2, **options})


def awake(network: nn.Module, size: float = 0.1) -> nn.Module:
    """Moves every weight a little, so that the layers that start at zero take part."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(size * torch.randn_like(p))
    return network


def images(batch: int = 4, channels: int = 2, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, channels, height, width), torch.linspace(-2.5, 2.5, batch)


def points(batch: int = 4, dim: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, dim), torch.linspace(-2.5, 2.5, batch)


NETWORKS = [
    pytest.param(small_unet, images, id="unet"),
    pytest.param(small_dit, images, id="dit"),
    pytest.param(lambda **options: MLP(3, width=16, depth=2, **options), points, id="mlp"),
    pytest.param(lambda **options: MLP(3, width=16, depth=2, octaves=2, **options), points, id="mlp with waves"),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# shapes and padding


@pytest.mark.parametrize("side", [(1, 1), (7, 5), (9, 13), (28, 28), (8, 8), (2, 33)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_networks_keep_any_shape(side: tuple[int, int], channels: int, kind: str) -> None:
    unet = UNet(channels, widths=(8, 8, 8, 8), blocks=1, attention=(False, False, False, True))
    network = awake(unet if kind == "unet" else DiT(channels, width=16, depth=1, patch=4))
    x, level = images(2, channels, *side)
    out = network(x, level)
    assert out.shape == x.shape
    assert out.is_contiguous()
    assert out.dtype == x.dtype


@pytest.mark.parametrize("make", [small_unet, small_dit])
def test_networks_pad_with_zeros_and_crop_back_exactly(make: Make) -> None:
    network = awake(make())
    x, level = images(height=7, width=5)
    whole = network(F.pad(x, (0, 1, 0, 1)), level)
    assert torch.equal(network(x, level), whole[:, :, :7, :5])


def test_places_of_patches_are_told_apart_and_of_one_length() -> None:
    told = places(5, 7, 32)
    assert told.shape == (35, 32)
    assert torch.cdist(told, told).fill_diagonal_(9).min() > 0.1
    torch.testing.assert_close(told.norm(dim=1), torch.full((35,), 4.0))
    near, far = torch.cdist(told[:1], told[[1, 4]])[0]
    assert near < far


def test_a_transformer_knows_where_its_patches_are() -> None:
    """Patches that change places do not just take their answers along."""
    network = awake(small_dit())
    x, level = images()
    swapped = torch.cat([x[..., 4:], x[..., :4]], 3)
    out = network(x, level)
    assert not torch.allclose(network(swapped, level), torch.cat([out[..., 4:], out[..., :4]], 3), atol=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_mlp_keeps_any_dimension(dim: int) -> None:
    x, level = points(5, dim)
    assert awake(MLP(dim, width=8))(x, level).shape == (5, dim)


def test_waves_turn_by_an_angle_whose_octaves_double() -> None:
    x, shift = torch.randn(5, 3).double(), 0.7
    seen, moved = (Waves(3, 2)(each).view(5, 5, 3) for each in (x, x + shift))
    assert torch.equal(seen[:, 0], x)
    for k, turn in enumerate([shift, 2 * shift]):
        cos, sin = seen[:, 1 + k], seen[:, 3 + k]
        close = {"rtol": 0, "atol": 1e-12}
        torch.testing.assert_close(moved[:, 1 + k], math.cos(turn) * cos - math.sin(turn) * sin, **close)
        torch.testing.assert_close(moved[:, 3 + k], math.sin(turn) * cos + math.cos(turn) * sin, **close)
    assert torch.equal(Waves(3, 0)(x), x)


def test_waves_are_for_points_alone() -> None:
    assert Encoder((2,), 1, (8,), 1, octaves=2)(torch.randn(3, 2)).shape == (3, 1)
    with pytest.raises(ValueError, match="waves are for points"):
        Encoder((1, 8, 8), 1, (8,), 1, octaves=2)


def test_one_level_unet_is_allowed() -> None:
    x, level = images(height=3, width=3)
    assert awake(UNet(2, widths=(8,), attention=(True,)))(x, level).shape == x.shape


def test_attention_needs_one_entry_per_level() -> None:
    with pytest.raises(ValueError, match="one per level"):
        UNet(1, widths=(8, 16), attention=(True,))


# what a row of the output depends on


@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_fresh_network_answers_zero(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    assert torch.count_nonzero(make()(*batch())) == 0


@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_rows_do_not_see_each_other(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    network = awake(make())
    x, level = batch()
    before = network(x, level)
    x[1:], level[1:] = 100 * torch.randn_like(x[1:]), -level[1:]
    after = network(x, level)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_permuting_the_batch_permutes_the_output(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    network = awake(make(classes=4)).double()
    x, level = (v.double() for v in batch())
    cond, order = Condition(torch.arange(4)), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(x[order], level[order], cond[order]), network(x, level, cond)[order])


@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_level_and_label_both_matter(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    network = awake(make(classes=2))
    x, level = batch()
    cond = Condition(torch.zeros(4, dtype=torch.long))
    out = network(x, level, cond)
    assert not torch.allclose(out, network(x, level + 0.1, cond))
    assert not torch.allclose(out, network(x, level, cond.asking(1)))


@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_labels_must_fit_the_network(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    x, level = batch()
    cond = Condition(torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="classes=0"):
        make()(x, level, cond)
    with pytest.raises(ValueError, match="classes=3"):
        make(classes=3)(x, level)
    with pytest.raises(IndexError):
        make(classes=3)(x, level, cond.asking(3))


# derivatives and training


@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_gradients_reach_every_parameter(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    network = awake(make(classes=4))
    network(*batch(), Condition(torch.arange(4))).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch warns of itself on first use
@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_forward_mode_and_backward_mode_derivatives_agree(
    make: Make, batch: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    network = awake(make()).double()
    x, level = (v.double() for v in batch())
    u, v = torch.randn_like(x), torch.randn_like(x)
    _, forward = torch.func.jvp(lambda x: network(x, level), (x,), (u,))
    _, pull = torch.func.vjp(lambda x: network(x, level), x)
    torch.testing.assert_close((forward * v).sum(), (u * pull(v)[0]).sum())


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_jacobian_by_batched_forward_mode(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """As exact likelihoods need it: all directions at once, through vmap."""
    network = awake(make()).double()
    x, level = (v[:1].double() for v in batch())
    basis = torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape)
    columns = torch.func.vmap(lambda u: torch.func.jvp(lambda x: network(x, level), (x,), (u,))[1])(basis)
    rows = torch.func.jacrev(lambda x: network(x, level))(x).view(x.numel(), x.numel())
    torch.testing.assert_close(columns.view(x.numel(), x.numel()).T, rows)


def trained(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    network = make()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    for _ in range(5):
        x, level = batch()
        optimiser.zero_grad()
        F.mse_loss(network(x, level), x.flip(0)).backward()
        optimiser.step()
    return network.state_dict()


@pytest.mark.parametrize(
    ("make", "batch"),
    [*NETWORKS, pytest.param(lambda: small_unet(dropout=0.3, precision="bf16"), images, id="unet-dropout-bf16")],
)
def test_training_twice_gives_equal_bits(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    first, second = trained(make, batch), trained(make, batch)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropout_draws_only_in_training() -> None:
    network = awake(small_unet(dropout=0.5))
    x, level = images()
    assert not torch.equal(network(x, level), network(x, level))
    network.eval()
    assert torch.equal(network(x, level), network(x, level))


# numbers


def test_unet_bf16_is_close_to_fp32() -> None:
    exact = awake(small_unet(classes=4))
    fast = small_unet(classes=4, precision="bf16")
    fast.load_state_dict(exact.state_dict())
    x, level = images()
    want, got = exact(x, level, Condition(torch.arange(4))), fast(x, level, Condition(torch.arange(4)))
    assert got.dtype == torch.float32
    assert (got - want).norm() < 3e-2 * want.norm()
    assert not torch.equal(got, want)


@pytest.mark.parametrize("make", [small_unet, small_dit])
def test_what_comes_out_of_bf16_is_not_rounded(make: Make) -> None:
    network = awake(make(precision="bf16"))
    out = network(*images())
    assert (out.bfloat16() != out).float().mean() > 0.9


@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_float64_agrees_with_float32(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    network = awake(make())
    x, level = batch()
    single = network(x, level)
    double = network.double()(x.double(), level.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("make", "batch"), NETWORKS)
def test_state_dict_is_plain_tensors(make: Make, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
    state = make().state_dict()
    assert all(type(v) is Tensor and v.is_contiguous() and v.is_floating_point() for v in state.values())


@pytest.mark.parametrize("layer", [nn.Linear(256, 512), nn.Conv2d(32, 64, 3, padding=1)], ids=["linear", "conv"])
def test_started_layers_keep_unit_scale(layer: nn.Linear | nn.Conv2d) -> None:
    x = torch.randn(256, 256) if isinstance(layer, nn.Linear) else torch.randn(8, 32, 32, 32)
    with torch.no_grad():
        assert started(layer)(x).std().item() == pytest.approx(1, rel=0.05)
        after_silu = started(layer, AFTER_SILU)(F.silu(x))
    assert after_silu.square().mean().sqrt().item() == pytest.approx(1, rel=0.08)


def test_hidden_activations_start_at_unit_scale() -> None:
    network = UNet(3, widths=(32, 64, 96), attention=(False, False, True))
    sizes: dict[str, float] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and "second" not in name and name != "outlet":
            module.register_forward_hook(lambda _, __, out, name=name: sizes.update({name: out.detach().std().item()}))
    network(torch.randn(4, 3, 32, 32), torch.zeros(4))
    assert len(sizes) == 1 + 12 + 2 * 3
    assert {name: s for name, s in sizes.items() if not 0.6 < s < 1.5} == {}


def test_channel_norm_is_zero_mean_unit_variance_per_pixel() -> None:
    y = channel_norm(3 + 7 * torch.randn(2, 64, 3, 5, dtype=torch.float64))
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(2, 3, 5, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [24, 64])
def test_attention_is_torch_s_own_attention(channels: int) -> None:
    ours = awake(Attention(channels)).double()
    theirs = nn.MultiheadAttention(channels, ours.heads, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64)
    tokens = F.layer_norm(x.flatten(2).transpose(1, 2), (channels,))
    want = x + theirs(tokens, tokens, tokens)[0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(ours(x), want)


@pytest.mark.parametrize(("network", "shape"), [(UNet(1), (2, 3, 8, 8)), (UNet(1), (2, 8, 8)), (MLP(2), (4, 3))])
def test_other_shapes_are_refused(network, shape):
    with pytest.raises(ValueError, match=r"takes p.* got"):
        network(torch.zeros(shape), torch.zeros(shape[0]))
