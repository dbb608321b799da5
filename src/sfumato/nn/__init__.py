"""Networks. They import torch only and know nothing of diffusion: a tensor, a noise level and labels in, a tensor out."""

from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "UNet"]
