"""The words that several verbs share."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

__all__ = ["Class", "Count", "Data", "Folder", "Method", "Model", "Others", "Size"]

Data = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
"""Data that are needed."""
Others = tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="DATA")]]
"""Data that may be named."""
Folder = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
"""The folder of a run."""
Count = Annotated[int, tyro.conf.arg(aliases=["-n"])]
"""How many."""
Class = Annotated[str | None, tyro.conf.arg(name="class")]
"""A class, under a name that Python keeps for itself."""
Model = Literal["diffusion", "gan", "vae", "ladder", "autoencoder", "plain-gan", "dcgan"]
"""A key of ``sfumato.engine.recipes.RECIPES``, which is not imported for it."""
Size = Literal["tiny", "small", "base"]
"""Of a network."""
Method = Literal["matching", "consistency", "direct", "progressive", "alphaflow", "meanflow"]
"""A key of ``sfumato.teaching.METHODS``, which is not imported for it."""
