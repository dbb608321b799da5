"""Commands that must fail well, and what they may not touch; commands in processes that can be killed."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from sfumato.cli import main

SERVER = multiprocessing.get_context("forkserver")  # imports PyTorch once: its children start in milliseconds
SERVER.set_forkserver_preload(["sfumato.engine.begin", "sfumato.engine.bulk", "sfumato.cli"])
TOUCHES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def fails(capsys, words, *parts):
    """The words give exit code 2 and one line on standard error that holds the parts."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("sfumato: "), err
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err
    return out


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start(words, environment=(), doom=None):
    """Start a command in a process of its own. With doom = (folder, k) it is killed at its k-th touch of the folder."""
    process = SERVER.Process(target=_command, args=([str(word) for word in words], dict(environment), doom))
    process.start()
    return process


def _command(words, environment, doom):
    os.environ.update(environment)
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if doom is not None:
        sys.addaudithook(_killer(*doom))
    raise SystemExit(main(words))


def _killer(folder, k):
    """Count what is opened for writing, made, renamed or removed below a folder."""
    left = k

    def hook(event, args):
        nonlocal left
        reads = event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if event in TOUCHES and not reads and str(args[0]).startswith(str(folder)):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook
