"""A run folder: config.toml, data.json, log.jsonl, checkpoints/, samples/. It holds all that rebuilds the model.

data.json records what the model was trained on and the codec of it, so that sampling needs no data.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import nn

from sfumato import __version__
from sfumato.data import NAMES, Codec, Dataset, codec_from
from sfumato.data import load as load_data
from sfumato.engine import checkpoint
from sfumato.engine.average import early, put, reconstructed
from sfumato.engine.config import Config, read_config, write_config
from sfumato.engine.distributed import assign
from sfumato.engine.heard import facts_of, records, vocabulary_of
from sfumato.engine.machine import device_of, has_bf16
from sfumato.engine.shipped import names, unpacked
from sfumato.errors import UserError
from sfumato.files import exists, write_atomic
from sfumato.models.base import GenerativeModel
from sfumato.models.diffusion import Diffusion
from sfumato.models.latent import LatentCodec
from sfumato.models.vae import GridVAE
from sfumato.nn.lora import adapt, merge
from sfumato.sampler import Tuned

__all__ = ["Run", "is_run", "latest", "restore"]

GAIN = "denoiser.gain"


@dataclass(frozen=True)
class Run:
    """The folder of a run.

    Attributes:
        folder: where it lies.
        config: what config.toml says.
        data: what data.json says: name, fingerprint, count, classes, vocabulary, codec.
    """

    folder: Path
    config: Config
    data: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def averages(self) -> Path:
        """Folder of the averages that were kept on the way."""
        return self.folder / "averages"

    @property
    def samples(self) -> Path:
        """Folder of previews and samples."""
        return self.folder / "samples"

    @property
    def teacher(self) -> Path:
        """The teacher's weights, of a student."""
        return self.folder / "teacher.safetensors"

    @property
    def drawn(self) -> Path:
        """What the teacher drew, of a run that corrects itself."""
        return self.folder / "drawn.safetensors"

    @property
    def log(self) -> Path:
        """The log, one JSON record a line."""
        return self.folder / "log.jsonl"

    @staticmethod
    def create(
        folder: Path,
        config: Config,
        dataset: Dataset,
        like: GenerativeModel | None = None,
        latents: LatentCodec | None = None,
    ) -> Run:
        """Make the folder of a new run.

        Args:
            folder: which must not exist.
            config: of the run.
            dataset: that it is trained on.
            like: of which it has the classes, the words and the codec; by default those of its data.
            latents: of its data, whose autoencoder is copied; by default those of ``like``, if it has any.

        Raises:
            UserError: the folder exists.
        """
        Run.refuse(folder)
        run = Run.of(folder, config, dataset, like)
        write_atomic(folder / "data.json", json.dumps(run.data, indent=2, ensure_ascii=False).encode())
        codec = latents if like is None else like.codec
        if isinstance(codec, LatentCodec):
            codec.copy(folder / "codec")
        write_config(folder / "config.toml", config)  # last: with it the folder is a run
        return run

    @staticmethod
    def of(folder: Path, config: Config, dataset: Dataset, like: GenerativeModel | None = None) -> Run:
        """Return a run of which nothing is on disk yet; arguments as for :meth:`create`."""
        data = {
            "name": dataset.name,
            "count": len(dataset.items),
            "fingerprint": dataset.fingerprint,
            **records(config, dataset, like),
            "codec": (dataset if like is None else like).codec.to_dict(),
            "notes": list(dataset.notes),
        }
        return Run(folder, config, data)

    @staticmethod
    def refuse(folder: Path) -> None:
        """Raise a UserError if the folder of a new run exists."""
        if folder.exists():
            raise UserError(f"{folder}: exists; go on with 'sfumato resume {folder}', or choose another --out")

    @staticmethod
    def open(folder: Path) -> Run:
        """Open the folder of a run, or a model that came along by its name; see shipped.py.

        Raises:
            UserError: it is none, or its records are damaged.
        """
        if not folder.is_dir():
            folder = unpacked(str(folder)) or _missing(folder)
        config = read_config(folder / "config.toml")
        path = folder / "data.json"
        try:
            data = json.loads(path.read_text("utf-8"))
            codec_from(data["codec"])
            vocabulary_of(data)
            facts_of(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: missing or damaged ({error}); restore it, or train again") from error
        return Run(folder, config, data)

    def precision(self, device: str | torch.device | None = None) -> Literal["fp32", "bf16"]:
        """Return the config's precision, or fp32 where bfloat16 arithmetic is missing.

        Args:
            device: where to compute; by default the fastest found.
        """
        return self.config.model.precision if has_bf16(device or device_of(None)[0]) else "fp32"

    def build(self, device: str | torch.device | None = None, **changes: Any) -> GenerativeModel:
        """Return the model with fresh weights.

        Args:
            device: where it will compute; by default the fastest found.
            changes: of the config's model; its precision is by default what :meth:`precision` says.
        """
        spec = replace(self.config.model, **({"precision": self.precision(device)} | changes))
        model = spec.build(self.codec(), self.data["classes"], vocabulary_of(self.data))
        model.facts = facts_of(self.data)
        return model

    def codec(self) -> Codec:
        """Return the codec of the run's data: of a run of latents, by the autoencoder in its folder."""
        inner = self.folder / "codec"
        return Run.open(inner).latents() if inner.is_dir() else codec_from(self.data["codec"])

    def latents(self) -> LatentCodec:
        """Return what the autoencoder of this run makes of pictures.

        Raises:
            UserError: it is no run of an autoencoder, or one that is not trained to its end.
        """
        model, _ = self.load()
        if not isinstance(model, GridVAE):
            raise UserError(f"{self.folder}: a {model.family}, and latents need one of train --model autoencoder")
        return LatentCodec(model.requires_grad_(False), self.folder)

    def dataset(self) -> Dataset:
        """Load the data the run is trained on, as its config says; see ``sfumato.data.load``.

        Raises:
            UserError: the data are gone or cannot be read.
        """
        config = self.config
        return load_data(
            config.data, resolution=config.resolution or None, skip_bad=config.skip_bad, stream=config.stream
        )

    def recipe(self, model: GenerativeModel, notes: Mapping[str, str]) -> dict[str, Any]:
        """Return what every output of this run's model carries; arguments as :meth:`load` returns them."""
        return {
            "sfumato": __version__,
            "run": self.folder.name,
            "data": self.data["name"],
            "weights": model.fingerprint(),
            "step": int(notes["step"]),
        } | ({"codec": model.codec.fingerprint} if isinstance(model.codec, LatentCodec) else {})

    def load(
        self, ema: float | None = None, device: str | torch.device | None = None, lora: float = 1.0, **changes: Any
    ) -> tuple[GenerativeModel, dict[str, str]]:
        """Return the model with its newest averaged weights, and the notes of the checkpoint.

        Args:
            ema: horizon of the average, as a share of the run; by default the run's own.
            device: where it will compute; by default the fastest found.
            lora: how much of what a run learned on top of another is taken, 1 for all; no other run has any.
            changes: of the config's model.

        Raises:
            UserError: no checkpoint, the newest is damaged, or it is of another model; an impossible horizon, or no
                averages that were kept.
        """
        found = checkpoint.load(self.checkpoints)
        if found.damaged:
            path, reason = found.damaged[0]
            raise UserError(
                f"{path}: damaged checkpoint ({reason}); 'sfumato resume {self.folder}' goes on from {found.path.name}"
            )
        model, rank = self.build(device, **changes), self.config.student.rank
        if rank:
            adapt(model, rank)
        elif lora != 1.0:
            raise UserError(f"{self.folder}: learned nothing on top of another run: leave --lora out")
        restore(model, found.tensors, "ema.", self.checkpoints)
        merge(model, lora)
        # of the models that come along, older ones have no such note
        kept = float(found.notes.get("horizon", self.config.ema))
        if ema is not None and ema != kept:
            put(model, reconstructed(self.averages, kept, ema))
        if isinstance(model, Diffusion):
            model.tuned = self._tuned(model)
        return model.eval(), found.notes

    def worse(self, model: Diffusion, share: float) -> Diffusion:
        """Return a copy of the run's model as it was after a share of the run, for guidance away from it.

        Args:
            model: that was loaded.
            share: in (0, 1); of the averages that were kept the nearest is taken.

        Raises:
            UserError: an impossible share, or no averages kept.
        """
        before = copy.deepcopy(model)
        put(before, early(self.averages, share))
        return before

    def _tuned(self, model: Diffusion) -> dict[int, Tuned]:
        """Return the ways back that were learned for these weights, by their number of steps."""
        path = self.folder / "samplers.json"
        if not path.exists():
            return {}
        try:
            told = json.loads(path.read_text("utf-8"))
            if told["weights"] != model.fingerprint():  # trained on since: no longer of this model
                return {}
            return {int(steps): Tuned.from_dict(record) for steps, record in told["tuned"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{path}: damaged ({error}); remove it, and tune again") from error


def is_run(source: str) -> bool:
    """Return whether a word of the user's is the folder of a run, and not data by their name."""
    return source not in NAMES and exists(Path(source) / "config.toml")


def restore(model: nn.Module, tensors: dict[str, Any], prefix: str, where: Path) -> None:
    """Load the tensors whose names begin with ``prefix`` into a model.

    Args:
        model: that takes them.
        tensors: by name.
        prefix: "model.", "ema." (the average) or "".
        where: they came from, for the error.

    Raises:
        UserError: they are those of another model.
    """
    target = model.state_dict()
    if prefix and not any(name.startswith(prefix) for name in tensors):
        raise UserError(f"{where}: the checkpoint holds no '{prefix}' weights: train the run again")
    state = {name: tensor for name, tensor in target.items() if name == GAIN}  # which students of before have not
    state |= {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if {name: t.shape for name, t in target.items()} != {name: t.shape for name, t in state.items()}:
        raise UserError(f"{where}: the weights do not fit config.toml; was it changed by hand?")
    assign(target, state)


def _missing(folder: Path) -> NoReturn:
    known = latest(folder.parent)
    newest = f"; the newest there is {known}" if known else ""
    raise UserError(f"{folder}: no such run{newest}; with sfumato come {', '.join(names()) or 'none'}")


def latest(folder: Path) -> Path | None:
    """Return the run below ``folder`` that was written to last, if there is one."""
    runs = [path.parent for path in folder.glob("*/config.toml")] if folder.is_dir() else []

    def written(run: Path) -> float:
        newest = checkpoint.checkpoints(run / "checkpoints")
        return (newest[-1] if newest else run / "config.toml").stat().st_mtime

    return max(runs, key=written, default=None)
