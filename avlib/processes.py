"""Several processes that train one model: who they are, and how they share what they found."""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def meet(device: torch.device) -> tuple[int, int]:
    """This process's number, and how many there are. Under `torchrun` they meet here."""
    if "RANK" in os.environ and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL sends objects by way of the current one
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(part: Tensor) -> Tensor:
    """The rows of all processes, in order; each process's gradient goes back to it."""
    return torch.cat(all_gather(part.contiguous())) if dist.is_initialized() else part


def gather_fixed(part: Tensor) -> Tensor:
    """The rows of all processes, in order, without gradients."""
    if not dist.is_initialized():
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def from_all(value: Any) -> list[Any]:
    """One value from each process, in order."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
