"""Errors a user can mend: one line that says what is wrong, where, and what to do.

The command line prints a :class:`UserError` as one line and exits with code 2. Every other exception is a
fault of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

__all__ = ["Diverged", "UserError", "choose", "nearest"]

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in what was asked for or in the data given, with the way out in its text."""


class Diverged(UserError):
    """A training that went on not being finite, whatever was tried: a fault of the model or its learning rate."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name is meant: ``"; did you mean 'ddim'?"``, or list the known ones.

    Args:
        name: what was asked for.
        known: the names there are.

    Returns:
        A clause to end an error line with; never empty.
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look ``name`` up in a registry.

    Args:
        kind: what the registry holds, for the error text ("sampler").
        name: the key.
        table: the registry.

    Raises:
        UserError: the name is not in the table; the nearest known one is offered.
    """
    if name not in table:
        raise UserError(f"unknown {kind} '{name}'{nearest(name, table)}")
    return table[name]
