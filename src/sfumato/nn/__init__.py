"""Networks. They know nothing of diffusion: tensor, noise level and condition in, tensor out."""

from sfumato.nn.dcgan import Critic, Generator
from sfumato.nn.dit import DiT
from sfumato.nn.flow import Flow
from sfumato.nn.grid import GridDecoder, GridEncoder
from sfumato.nn.ladder import Down
from sfumato.nn.mlp import MLP
from sfumato.nn.unet import UNet
from sfumato.nn.vectors import Decoder, Encoder, Up

__all__ = [
    "MLP",
    "Critic",
    "Decoder",
    "DiT",
    "Down",
    "Encoder",
    "Flow",
    "Generator",
    "GridDecoder",
    "GridEncoder",
    "UNet",
    "Up",
]
