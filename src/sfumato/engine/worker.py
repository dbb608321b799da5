"""Several processes on one folder: which of them this is, and a place of its own for what is not whole yet.

Nothing but the folder is shared: no process group, no port. What a killed worker leaves behind lies in its own
``.work-*`` folder, and is swept by the next worker that starts. A worker holds a lock on a file in it as long as it
lives; the kernel lets go of the lock when it dies, however it dies and on whichever machine. Where the file system
knows no locks nothing is swept, since nobody can be told dead.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sfumato.errors import UserError
from sfumato.files import writable

__all__ = ["Worker", "sole", "workspace"]

ALIVE, LOCK, WORK = "alive", ".lock", ".work-"


@dataclass(frozen=True)
class Worker:
    """One of several processes that do a job together.

    Attributes:
        rank: of this one, from 0.
        world: how many there are.
        local_rank: of this one on its machine.
        local_world: how many there are on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @staticmethod
    def here() -> Worker:
        """Return which worker this process is by RANK, WORLD_SIZE and their LOCAL_ kin, as torchrun sets them.

        Raises:
            UserError: they contradict each other.
        """
        words = {"rank": "0", "world": "1", "local_rank": "0", "local_world": "1"}
        names = dict(zip(words, ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), strict=True))
        found = {key: os.environ.get(name, words[key]) for key, name in names.items()}
        if not all(word.isdecimal() for word in found.values()) or int(found["rank"]) >= int(found["world"]):
            raise UserError(
                f"RANK={found['rank']} and WORLD_SIZE={found['world']} of the environment name no worker: "
                "set 0 <= RANK < WORLD_SIZE, or neither"
            )
        return Worker(**{key: int(word) for key, word in found.items()})

    def __str__(self) -> str:
        return f"worker {self.rank} of {self.world}"


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Keep other processes from working on a folder as long as this one does; where there are locks.

    Raises:
        UserError: another process has it.
    """
    with ExitStack() as stack:
        with writable(folder):
            gate = stack.enter_context((folder / LOCK).open("ab"))
        if not _locked(gate) and _locks_here(folder):
            raise UserError(f"{folder}: another process is training it; wait for it, or stop it")
        yield


def _locks_here(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder) as file:
        return _locked(file)


@contextmanager
def workspace(folder: Path, begin: Callable[[Path], None]) -> Iterator[Path]:
    """Make a folder below ``folder`` that is this worker's alone, and take it away at the end.

    Args:
        folder: made if it is missing.
        begin: called with the new folder while no other worker of ``folder`` can begin.

    Raises:
        UserError: the folder cannot be written.
    """
    with ExitStack() as stack:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOCK).open("ab") as gate:
                if _locked(gate, wait=True):
                    _sweep(folder)
                own = folder / f"{WORK}{uuid.uuid4().hex}"
                own.mkdir()
                stack.callback(shutil.rmtree, own, ignore_errors=True)
                _locked(stack.enter_context((own / ALIVE).open("wb")))
                begin(own)
        yield own


def _sweep(folder: Path) -> None:
    """Remove what dead workers left. Nobody is between making a folder and locking it: the gate is ours."""
    for left in folder.glob(f"{WORK}*"):
        try:
            with (left / ALIVE).open("r+b") as held:
                dead = _locked(held)
        except FileNotFoundError:  # killed while it was taking its folder away
            dead = True
        if dead:
            shutil.rmtree(left, ignore_errors=True)


def _locked(file: IO[bytes], wait: bool = False) -> bool:
    """Lock a file until it is closed; False if another has it, or there are no locks here."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True
