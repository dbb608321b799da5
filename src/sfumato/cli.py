"""The command line: one verb for each function of verbs/, with its names, defaults and docstring.

A mistake of the user, in the words of the command or in the data, is one line on standard error and exit code 2.
Any other error is ours and keeps its traceback.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from sfumato import verbs
from sfumato.errors import UserError, nearest

__all__ = ["main"]

VERBS = (
    "inspect", "plan", "train", "resume", "sample", "edit", "interpolate", "restore", "samplers", "polish", "distill",
    "tune-sampler", "evaluate", "compare", "likelihood", "show", "report",
)  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: the words after ``sfumato``; by default those of the process.

    Returns:
        0; 2 for a mistake of the user; 130 if stopped by Ctrl-C.
    """
    code = _answer(args)
    if "MASTER_ADDR" in os.environ:  # this process may have met others
        from sfumato.engine.distributed import leave  # late, as it brings torch

        leave(code)
    return code


def _answer(args: Sequence[str] | None) -> int:
    try:
        result = _parse(args)()
        if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
            _print(result)
    except UserError as error:
        print(f"sfumato: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sfumato: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: no fault of ours
        return 0
    return 0


def _parse(args: Sequence[str] | None) -> Callable[[], Any]:
    """Return the call that the words ask for, not yet made.

    Raises:
        UserError: words that are not understood.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise UserError(f"unknown verb '{words[0]}'{nearest(words[0], VERBS)}")
    table = {name: _later(getattr(verbs, name.replace("-", "_"))) for name in VERBS}
    heard = io.StringIO()
    try:
        with redirect_stderr(heard):
            call: Callable[[], Any] = tyro.extras.subcommand_cli_from_dict(
                table, prog="sfumato", description="Diffusion models: train on your data, draw new ones.", args=words
            )
    except SystemExit as stop:
        if stop.code:
            raise UserError(_one_line(heard.getvalue())) from None
        raise
    return call


def _later(verb: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """Wrap a verb so that parsing gives a call to make, and errors of the two are kept apart."""

    arguments = {name: hint for name, hint in verb.__annotations__.items() if name != "return"}
    bare = types.FunctionType(verb.__code__, verb.__globals__)
    bare.__annotations__ = arguments  # tyro resolves every annotation, but the types of results are not imported yet

    def ask(*args: Any, **options: Any) -> Callable[[], Any]:
        return lambda: verb(*args, **options)

    ask.__doc__, ask.__name__ = verb.__doc__, verb.__name__
    ask.__annotations__ = get_type_hints(bare, include_extras=True)
    ask.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    return ask


def _one_line(box: str) -> str:
    """Fold tyro's framed message into one line: its title and the details of its guesses are left out."""
    lines = [line.strip(" │") for line in box.splitlines()[1:]]
    text = " ".join(line for line in lines if line.strip("─-╰╯"))  # without a terminal's encoding tyro draws dashes
    text = re.sub(r" (Got errors|Argument helptext): .*?(?= For full helptext|$)", "", text)
    text = re.sub(r" Perhaps you meant: (--[\w-]+).*?(?= For full helptext|$)", r"; did you mean \1?", text)
    text = re.sub(r"[.;]? For full helptext,? (?:run|see):? ", "; see ", text.replace(" (required)", ""))
    return text[:1].lower() + text[1:]


def _print(result: Any) -> None:
    if hasattr(result, "lines"):
        print("\n".join(result.lines()))
    elif isinstance(result, list):
        print(f"{len(result)} files in {result[-1].parent}; see {result[-1]}")
    elif isinstance(result, Path):
        print(f"next: sfumato sample {result}")
