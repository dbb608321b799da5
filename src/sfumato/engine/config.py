"""The config of a run: one flat record, saved as config.toml, from which the run can be rebuilt.

Config is data. Names in it are keys of registries, never import paths, and an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from sfumato import __version__
from sfumato.engine.optimizer import Rule
from sfumato.errors import UserError, nearest
from sfumato.files import write_atomic
from sfumato.models import FAMILIES
from sfumato.models.base import Spec

__all__ = ["Config", "Student", "config_record", "read_config", "write_config"]

T = TypeVar("T")


@dataclass(frozen=True)
class Student:
    """What a run is taught by another; nothing, if ``method`` is empty.

    Attributes:
        method: a key of ``sfumato.teaching.METHODS``.
        calls: network calls for which it is taught.
        teacher: name of the run that teaches.
        weights: fingerprint of its weights, which lie in the student's folder.
        rank: of the change of these weights that is all that learns; 0 where they learn themselves.
    """

    method: str = ""
    calls: int = 0
    teacher: str = ""
    weights: str = ""
    rank: int = 0


@dataclass(frozen=True)
class Config:
    """What a training run does. Its weights are a function of this, the data and the number of threads.

    Attributes:
        data: name or path of the data.
        model: the network and what it predicts.
        resolution: longest side of a picture; 0 for the data's own.
        skip_bad: leave unreadable files out.
        seed: of weights, data order and noise.
        batch: examples a step, over all processes.
        parts: into which a step's batch is split; at most as many processes can share the run.
        shard: split the weights over the processes (FSDP2) instead of giving each all of them (DDP).
        lr: learning rate after warm-up.
        optimizer: "muon" or "adamw".
        steps: length of the run in steps; 0 if ``seconds`` decides.
        seconds: length of the run in seconds; 0 if ``steps`` decides.
        facts: names of the columns that are heard.
        encoder: language model that reads sentences, by its name or folder; "" if words are learned along.
        mirror: show each picture mirrored, left for right, every other time.
        cool_down: share of the run over which the learning rate falls to 0.
        ema: horizon of the weights' average, as a share of the run so far.
        save_every: seconds between checkpoints.
        device: "cpu", "cuda", "mps".
        compile: let torch.compile translate the network.
        stream: leave the data on disk and read them when their turn comes.
        tensorboard: log for TensorBoard too.
        threads: of the CPU, on which the last bits of every sum depend; 0 for as many as PyTorch takes.
        student: of which run this one is a student.
        version: of sfumato that began the run.
    """

    data: str
    model: Spec
    resolution: int = 0
    skip_bad: bool = False
    seed: int = 0
    batch: int = 64
    parts: int = 1
    shard: bool = False
    lr: float = 1e-3
    optimizer: Rule = "adamw"
    steps: int = 0
    seconds: float = 0.0
    facts: tuple[str, ...] = ()
    encoder: str = ""
    mirror: bool = False
    cool_down: float = 0.3
    ema: float = 0.1
    save_every: float = 30.0
    device: str = "cpu"
    compile: bool = False
    stream: bool = False
    tensorboard: bool = False
    threads: int = 0
    student: Student = Student()
    version: str = __version__

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.seconds > 0):
            raise UserError(f"give a run either steps or a time, got steps = {self.steps}, seconds = {self.seconds:g}")
        for name in ("batch", "lr", "ema", "save_every"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.cool_down < 1:
            raise UserError(f"cool_down is a share of the run, in (0, 1), got {self.cool_down:g}")
        if self.parts < 1 or self.batch % self.parts:
            raise UserError(f"a batch of {self.batch} cannot be split into {self.parts} equal parts; change --batch")


def write_config(path: Path, config: Config) -> None:
    """Write ``config`` as TOML, atomically."""
    write_atomic(path, tomli_w.dumps(config_record(config)).encode())


def config_record(config: Config) -> dict[str, Any]:
    """Return all that config.toml says."""
    record = dataclasses.asdict(config)
    return record | {"model": {"family": config.model.family} | record["model"]}


def read_config(path: Path) -> Config:
    """Read a config.toml.

    Raises:
        UserError: the file is missing or no TOML, a key is unknown or missing, or a value has the wrong type.
    """
    try:
        record = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; is {path.parent} the folder of a run?") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not readable as TOML ({error}); mend it by hand") from error
    return _from_record(Config, record, path)


def _from_record(kind: type[T], record: Mapping[str, Any], path: Path) -> T:
    """Build a dataclass from a mapping, refusing what does not belong there."""
    hints = get_type_hints(kind)
    values = {}
    for key, value in record.items():
        if key not in hints:
            raise UserError(f"{path}: unknown key '{key}'{nearest(key, hints)}")
        values[key] = _typed(hints[key], value, f"{path}: {key}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{path}: {str(error).split('() ')[-1]}") from error


def _typed(hint: Any, value: Any, where: str) -> Any:
    if hint is Spec and isinstance(value, dict):
        family = value.get("family", "diffusion")  # runs of before there were others do not say it
        if family not in FAMILIES:
            raise UserError(f"{where}: unknown family {family!r}{nearest(str(family), FAMILIES)}")
        hint, value = FAMILIES[family], {key: each for key, each in value.items() if key != "family"}
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _from_record(hint, value, Path(where))  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_typed(get_args(hint)[0], item, where) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    choices = get_args(hint)
    if (choices and value in choices) or (isinstance(hint, type) and type(value) is hint):
        return value
    wanted = " or ".join(map(repr, choices)) if choices else getattr(hint, "__name__", str(hint))
    raise UserError(f"{where}: {value!r} is not {wanted}")
