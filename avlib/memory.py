"""Where the memory of a training step goes: what is there after each of its operations.

It is entered in a `Ledger`. `avlib.predict` does the same without allocating or computing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from avlib.ledger import Ledger, no_collection, tensors_in, watched

KINDS = (
    "parameters",  # and buffers
    "gradients",  # of parameters
    "optimizer",  # its state
    "inputs",  # what else was there before the step, and is read by it
    "activations",  # made by the forward pass, and still there when the backward pass begins
    "temporaries",  # made by the step, and gone before
    "workspaces",  # what kernels take for themselves while they run; known on CUDA alone
)
_UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "bytes": 1}


@dataclass(frozen=True, eq=False)
class MemoryUse:
    """The bytes of a step, by kind, at each of some moments.

    Args:
        timeline: kind (see `KINDS`) → bytes at each moment.
        phases: for each moment "before", "backward", "optimizer", or "forward", which is all else.
        operations: for each moment the name of the operation that ended then.
        allocator: on CUDA, what its allocator says of a step without a ledger, in bytes at the
            peak: `requested` by tensors and kernels, `allocated` with their sizes rounded up,
            `reserved` with what it keeps in store; `other` was there and not read by the step.
    """

    timeline: Mapping[str, Tensor]
    phases: Sequence[str]
    operations: Sequence[str]
    allocator: Mapping[str, int] | None = None

    @property
    def total(self) -> Tensor:
        """Bytes of all kinds at each moment."""
        return torch.stack([self.timeline[kind] for kind in KINDS]).sum(0)

    @property
    def peak(self) -> int:
        """The most bytes there at one moment."""
        return int(self.total.max())

    @property
    def moment(self) -> int:
        """The first moment at which the total is largest."""
        return int(self.total.argmax())

    @property
    def at_peak(self) -> dict[str, int]:
        """Kind → bytes at that moment."""
        moment = self.moment
        return {kind: int(self.timeline[kind][moment]) for kind in KINDS}

    def __str__(self) -> str:
        unit, size = readable(self.peak)
        rows = {**self.at_peak, f"peak ({self.phases[self.moment]})": self.peak}
        return "\n".join(
            f"{kind:16} {count / size:8.2f} {unit}" for kind, count in rows.items() if count
        )


def use_of(ledger: Ledger) -> MemoryUse:
    """What a ledger has entered."""
    return MemoryUse(ledger.timeline(KINDS), tuple(ledger.phases), tuple(ledger.operations))


def readable(count: int) -> tuple[str, int]:
    """The largest decimal unit of which there is at least one, and its bytes."""
    return next((unit, size) for unit, size in _UNITS.items() if count >= size or size == 1)


def measure(
    step: Callable[[], Any],
    *,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    warmups: int = 1,
    device: torch.device | str | None = None,
) -> MemoryUse:
    """What a step holds while it runs, after each of its operations.

    On the CPU that is counted, to the byte and the same in every run: the tensors, without what
    an allocator adds and what a kernel takes for itself. On CUDA the allocator is asked as well.

    Args:
        step: a training step, or anything else that computes.
        model, optimizer: whose parameters, gradients and state are told apart; without them they
            are `inputs` and `temporaries`.
        warmups: how many steps to run before, so that gradients and the optimizer's state are
            there as in every later step.
        device: which device's memory; by default that of the model's first parameter, else the
            CPU's.

    Raises:
        ValueError: nothing was computed on that device, or with sparse tensors.
    """
    where = device_of(model) if device is None else torch.device(device)
    for _ in range(warmups):
        step()
    allocator = _allocator(step, where) if where.type == "cuda" else None
    with watched(Ledger(where), model, optimizer) as ledger:
        step()
    use = use_of(ledger)
    if allocator is not None:
        allocator["other"] -= int(use.total[0])
        use = replace(use, allocator=allocator)
    if use.peak == 0 or len(use.phases) == 1:
        raise ValueError(
            f"measure: the step computed nothing on {where}; name the device with device=…, and "
            "give a function, not a generator"
        )
    return use


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most bytes of tensor storage made while `step` ran and alive at one time.

    What was there before is not counted: with gradients allocated, a training step is left with
    its activations and temporaries. Tensors on all devices count; see `measure` for what does not.
    """
    with watched(Ledger()) as ledger:
        step()
    return int(ledger.made().max())


def make_step(
    model: nn.Module,
    inputs: Mapping[str, Any] | Sequence[Any],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    autocast: torch.dtype | None = None,
    training: bool = True,
) -> Callable[[], None]:
    """The step that `predict` predicts, to be measured: forward, backward, and the optimizer's.

    Args:
        model: called with the inputs.
        inputs: keywords in a dictionary, or positional arguments in a sequence.
        optimizer: gradients are freed before the forward pass and used after the backward pass.
            Without one they stay, and each step adds to them.
        loss: outputs → a scalar; by default the sum of all floating-point outputs.
        autocast: the forward pass runs under `torch.autocast` to this dtype.
        training: with False, only a forward pass under `no_grad`.

    Raises:
        TypeError: inputs is a single tensor.
        ValueError: from the step, where the outputs hold no floating-point tensor and there is no
            loss.
    """
    if isinstance(inputs, Tensor):
        raise TypeError("make_step: inputs is a tensor, wanted a list of them; write [inputs]")
    score = _sum_of if loss is None else loss
    names = inputs if isinstance(inputs, Mapping) else {}
    places = () if isinstance(inputs, Mapping) else tuple(inputs)
    kind = device_of(model).type

    def step() -> None:
        if training and optimizer is not None:
            optimizer.zero_grad()
        with (
            torch.set_grad_enabled(training),
            torch.autocast(kind, autocast, enabled=autocast is not None),
        ):
            total = score(model(*places, **names))
        if training:
            total.backward()
        if training and optimizer is not None:
            optimizer.step()

    return step


def _sum_of(outputs: Any) -> Tensor:
    sums = [tensor.sum() for tensor in tensors_in(outputs) if tensor.is_floating_point()]
    if not sums:
        raise ValueError(
            f"make_step: the model returned {type(outputs).__name__}, without a floating-point "
            "tensor in it; give loss=…, which makes a scalar of it"
        )
    return torch.stack(sums).sum()


def device_of(model: nn.Module | None) -> torch.device:
    """That of the first parameter; the CPU where there is none."""
    parameter = None if model is None else next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _allocator(step: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """What CUDA's allocator counts during a step; `other` is all that was there before."""
    with no_collection():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        other = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
        step()
        torch.cuda.synchronize(device)
        stats = torch.cuda.memory_stats(device)
    peaks = {
        name: stats[f"{name}_bytes.all.peak"] for name in ("requested", "allocated", "reserved")
    }
    return {**peaks, "other": other}
