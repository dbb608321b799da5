"""What the machine is told before long work: threads, allocator, arithmetic. All of it is about speed.

* The C library's allocator returns large blocks to the system at once, and the system clears every page of them when
  they are taken again: 5 to 10% of a training step on a CPU. ``mallopt`` tells it to keep them.
* Denormal numbers are flushed to zero: they cost a hundred times the time of others, and no training needs them.
* On CUDA float32 products may use TF32, and convolutions are searched for the fastest algorithm.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sfumato.errors import UserError, choose

__all__ = ["device_of", "exact_products", "has_bf16", "pages_kept", "threaded", "tuned"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of the GNU C library
TOP_PAD = 256 * 2**20


def pages_kept() -> bool:
    """Tell the GNU C library to keep freed memory for this process; False where there is another library."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, value)
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD))
    )


def device_of(asked: str | None) -> tuple[str, str]:
    """Return the device to compute on, and why.

    Raises:
        UserError: the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    best = next(name for name, found in there.items() if found)
    name = best if asked is None else asked
    if not choose("device", name.split(":")[0], there):
        raise UserError(f"device '{name}' is not available here; leave --device out to use {best}")
    return name, "the fastest found"


def has_bf16(device: str | torch.device) -> bool:
    """Return whether bfloat16 saves time there: what imitates it is several times slower than float32."""
    kind = torch.device(device).type
    return kind == "cuda" or (kind == "cpu" and torch.cpu._is_avx512_bf16_supported())


@contextmanager
def threaded(threads: int) -> Iterator[None]:
    """Work with so many threads of the CPU (0: as many as PyTorch takes), on which last bits depend; then set back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply matrices of float32 with all of its digits, on CUDA too; then as before."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def tuned(threads: int, device: str) -> Iterator[None]:
    """Work with ``threads`` threads and everything above."""
    torch.set_flush_denormal(True)
    pages_kept()
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    try:
        with threaded(threads):
            yield
    finally:
        torch.set_flush_denormal(False)
