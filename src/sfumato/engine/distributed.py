"""Many processes that train one model, on PyTorch's own engine: torchrun starts them, DDP or FSDP2 joins them.

A step's batch is split into parts, a number that belongs to the run and not to who computes it:

(1)  part j of P holds the examples j, j + P, j + 2P, ... of the step's batch and has its own stream of noise
(2)  worker r of W computes the parts r, r + W, r + 2W, ...; gradients of its parts add up (gradient accumulation)
(3)  gradient of the step = sum over all examples / batch, whatever W is

So one process and many follow the same law, to the rounding of a sum. Where W does not divide P the last workers
compute a part once more with weight 0: every worker makes as many calls as the others, which FSDP2 needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # exported, but not in its stubs
from torch.distributed.rendezvous import rendezvous

from sfumato.engine.worker import Worker
from sfumato.errors import UserError

__all__ = ["Workers", "alike", "assign", "joined", "leave", "local", "parts_of", "restarted", "shard", "whole", "world"]

TIMEOUT = timedelta(minutes=30)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def world() -> int:
    """Return how many processes torchrun has started for this work; 1 without it."""
    return Worker.here().world


def restarted() -> bool:
    """Whether torchrun has started this process in place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@dataclass(frozen=True)
class Workers:
    """The processes of a run, seen from one of them. With one process every exchange is the identity.

    Attributes:
        rank: of this process, 0 for the one that writes and speaks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def decide(self, values: Sequence[float]) -> list[float]:
        """Return rank 0's numbers on every rank."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(told, 0)
        return told.tolist()

    def tell(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        length = int(self.decide([len(text.encode())])[0])
        letters = list(text.encode()) if self.leads else [0] * length
        return bytes(map(int, self.decide(letters))).decode()

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Return the tensors of all ranks, alike in shape, joined along their first axis in the order of ranks."""
        if self.size == 1:
            return value
        everything = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(everything, value.contiguous())
        return torch.cat(everything)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do what rank 0 may fail at: if it does, the others end quietly, so that none waits for ever.

        Raises:
            SystemExit: on the others, if rank 0 failed.
        """
        try:
            yield
        except BaseException:
            self.decide([1.0])
            raise
        if self.decide([0.0])[0]:
            raise SystemExit(2)

    def join(self, module: nn.Module, shard: bool) -> nn.Module:
        """Return what to call instead of ``module`` so that backward joins the gradients of all ranks.

        Args:
            module: calls ``denoiser``, one of its children, which is sharded in place.
            shard: by FSDP2, each rank holding its share of the weights; else by DDP, each holding all.
        """
        if shard or self.size == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # the strides of a 1x1 kernel can be read in two ways: no copy follows from it
        warnings.filterwarnings("ignore", message="Grad strides do not match")
        device = next(module.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)

    @contextmanager
    def adding(self, module: nn.Module, more: bool) -> Iterator[None]:
        """Compute one part of several: gradients are joined with the last only.

        Args:
            module: what ``join`` returned.
            more: whether other parts of the step follow.
        """
        if more and hasattr(module, "no_sync"):
            with module.no_sync():  # type: ignore[operator]  # of DDP
                yield
            return
        for unit in module.modules():
            if hasattr(unit, "set_requires_gradient_sync"):
                unit.set_requires_gradient_sync(not more, recurse=False)  # type: ignore[operator]  # of FSDP2
        yield


@contextmanager
def joined(device: str) -> Iterator[Workers]:
    """Join the processes that torchrun has started; without torchrun this process is alone.

    Args:
        device: "cpu" or "cuda"; with CUDA each process takes the device of its local rank.

    Raises:
        UserError: more processes than CUDA devices.
    """
    if world() == 1:
        yield Workers()
        return
    if device == "cuda":
        local = Worker.here().local_rank
        if local >= torch.cuda.device_count():
            raise UserError(f"{local + 1} processes here for {torch.cuda.device_count()} GPUs: lower --nproc-per-node")
        torch.cuda.set_device(local)
    _end_with_parent()
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # a process that was started again must not read the address that the one before it left in the same store
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield Workers(rank, size)
        dist.barrier()  # who leaves early would break the others' last exchange
    finally:
        dist.destroy_process_group()


def leave(code: int) -> None:
    """End this process, one of several, without the interpreter's own end.

    Gloo's threads outlive their group where DDP keeps it (torch 2.13). Python kills a thread that asks for its lock
    while the interpreter ends, and that aborts the process: a run that is saved and done would be told as failed.

    Args:
        code: for torchrun; 0 if all is well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when torchrun dies: it cannot stop its processes any more, and they stop well by that."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def parts_of(parts: int, workers: Workers) -> list[tuple[int, bool]]:
    """Return (part, whether it counts) for each call of this worker; equation (2).

    Raises:
        UserError: more workers than parts.
    """
    if workers.size > parts:
        raise UserError(
            f"this run splits a step's batch into {parts} parts: at most as many processes can share it, not "
            f"{workers.size}; begin a run with this many processes, or with a larger --accumulate"
        )
    calls = -(-parts // workers.size)
    own = [workers.rank + k * workers.size for k in range(calls)]
    return [(part if part < parts else workers.rank, part < parts) for part in own]


def shard(module: nn.Module) -> None:
    """Split a module's weights over all ranks in place, by FSDP2: each element of a ModuleList is a unit of its own."""
    from torch.distributed.fsdp import fully_shard

    for child in list(module.modules())[::-1]:
        if isinstance(child, nn.ModuleList):
            for unit in child:
                if any(True for _ in unit.parameters()):
                    fully_shard(unit)
    fully_shard(module)


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be split over the ranks; every rank must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the share of this rank of a tensor that may be split over the ranks; the memory is the same."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def alike(value: Tensor, other: Tensor) -> Tensor:
    """Return a number that all ranks have, in the form that goes together with ``other``, which may be split."""
    if not hasattr(other, "device_mesh"):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, other.device_mesh, [Replicate()], run_check=False)


def assign(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole tensors, which every rank has, into those of the same names, which may be split over the ranks."""
    with torch.no_grad():
        for name, target in targets.items():
            value = values[name].to(target.device)
            if hasattr(target, "placements"):
                from torch.distributed.tensor import distribute_tensor

                value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)  # type: ignore[attr-defined]
            target.copy_(value)
