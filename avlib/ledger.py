"""Every tensor storage that a step makes or reads: its size, when it came and went, what it is."""

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass
class _Entry:
    size: int
    born: int  # the operation after which it is there; 0 for what was there before the first
    made: bool  # by an operation of the step
    kind: str | None = None  # where somebody owns it
    kept: bool = False  # made by a forward pass and alive when the backward pass began
    died: int | None = None  # the last operation after which it was there


class Ledger(TorchDispatchMode):
    """Within `with ledger:` each result of a tensor operation is entered, until it is freed.

    Tensors made without an operation, such as `torch.tensor(list)`, are not seen; nor, on the
    CPU, what a kernel allocates and frees within itself. On CUDA the allocator's counters tell
    that too.

    Args:
        device: enter storages on this kind of device alone; by default on all.
        settled: count an optimizer's state as there from the beginning, also where this step
            makes it: so a first step tells of all later ones.
    """

    def __init__(self, device: torch.device | None = None, *, settled: bool = False) -> None:
        super().__init__()
        self.device, self.settled = device, settled
        # Of each operation: its name, when it ran, what the allocator held for it alone (bytes).
        self.operations, self.phases, self.workspaces = [""], ["before"], [0]
        self.in_optimizer = False
        self._entries: list[_Entry] = []
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, _Entry] = (
            weakref.WeakKeyDictionary()
        )

    def own(self, kind: str, tensors: Iterable[Tensor | None]) -> None:
        """Say what these are; those not yet entered were there before the step."""
        for tensor in tensors:
            if tensor is not None and (entry := self._enter(tensor, made=False)):
                entry.kind = entry.kind or kind
                if self.settled and kind == "optimizer":
                    entry.born = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace in ("prim", "profiler"):  # such as asking a fake tensor for its device
            return func(*args, **kwargs)
        self._begin(func.overloadpacket.__name__)
        for tensor in tensors_in((args, kwargs)):
            self._enter(tensor, made=False)
        held = _Held(self.device)
        out = func(*args, **kwargs)
        self.workspaces.append(held.beyond_results())
        for tensor in tensors_in(out):
            self._enter(tensor, made=True)
        return out

    def timeline(self, kinds: Iterable[str]) -> dict[str, Tensor]:
        """Bytes of each kind after each operation; the kinds are those of `avlib.memory`."""
        entries: dict[str | None, list[_Entry]] = {kind: [] for kind in (None, *kinds)}
        for entry in self._entries:
            entries[self._kind(entry)].append(entry)
        timeline = {kind: self._alive(entries[kind]) for kind in kinds}
        return {**timeline, "workspaces": torch.tensor(self.workspaces)}

    def made(self) -> Tensor:
        """Bytes that operations of the step made, after each of them."""
        return self._alive(entry for entry in self._entries if entry.made)

    def _alive(self, entries: Iterable[_Entry]) -> Tensor:
        change = torch.zeros(len(self.phases) + 1, dtype=torch.int64)
        for entry in entries:
            change[entry.born] += entry.size
            if entry.died is not None:
                change[entry.died + 1] -= entry.size
        return change[:-1].cumsum(0)

    def _kind(self, entry: _Entry) -> str | None:
        if entry.kind is not None:
            return entry.kind
        if entry.made:
            return "activations" if entry.kept else "temporaries"
        # Read, and made by no operation: it was there before if it is there afterwards. What is
        # gone was a small thing between operations, such as the state of a random generator.
        return "inputs" if entry.died is None else None

    def _begin(self, operation: str) -> None:
        """Another operation: note its name and its phase."""
        phase = "optimizer" if self.in_optimizer else "forward"
        if torch._C._current_graph_task_id() != -1:
            phase = "backward"
        if phase == "backward" != self.phases[-1]:
            for entry in self._known.values():
                entry.kept = entry.kept or entry.made
        self.operations.append(operation)
        self.phases.append(phase)

    def _enter(self, tensor: Tensor, *, made: bool) -> _Entry | None:
        if self.device is not None and tensor.device.type != self.device.type:
            return None
        if tensor.layout != torch.strided:
            raise ValueError(
                f"measure: a tensor has layout {tensor.layout}, and only strided ones are counted; "
                "make it dense, such as nn.Embedding(sparse=False)"
            )
        storage = tensor.untyped_storage()
        entry = self._known.get(storage)
        if entry is not None and entry.size != storage.nbytes():  # it was resized
            entry.died = len(self.phases) - 2
            entry = replace(entry, size=storage.nbytes(), born=len(self.phases) - 1, died=None)
            self._register(storage, entry)
        elif entry is None:
            entry = _Entry(storage.nbytes(), len(self.phases) - 1 if made else 0, made)
            self._register(storage, entry)
        return entry

    def _register(self, storage: torch.UntypedStorage, entry: _Entry) -> None:
        self._entries.append(entry)
        self._known[storage] = entry
        weakref.finalize(storage, self._free, entry)

    def _free(self, entry: _Entry) -> None:
        if entry.died is None:
            entry.died = len(self.phases) - 1


class _Held:
    """What CUDA's allocator holds while one operation runs; nothing on other devices."""

    def __init__(self, device: torch.device | None) -> None:
        self.device = device if device is not None and device.type == "cuda" else None
        if self.device is not None:
            torch.cuda.reset_peak_memory_stats(self.device)

    def beyond_results(self) -> int:
        """Bytes at the operation's peak that are free again, now that it has ended."""
        if self.device is None:
            return 0
        # Nested, as the counters come: the flat form is sorted, which takes longer than the rest.
        requested = torch.cuda.memory_stats_as_nested_dict(self.device)["requested_bytes"]["all"]
        return requested["peak"] - requested["current"]


@contextmanager
def watched(
    ledger: Ledger, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None
) -> Iterator[Ledger]:
    """Enters the ledger, which is told what belongs to the model and to the optimizer.

    The garbage collector rests meanwhile: it would free tensors at moments of its own.
    """
    # At its first operation under a mode torch loads parts of itself, and keeps the tensors.
    with Ledger():
        torch.zeros(1).add(1)
    parameters = [] if model is None else list(model.parameters())
    state = {} if optimizer is None else optimizer.state

    def optimizing(now: bool) -> None:
        ledger.in_optimizer = now
        ledger.own("optimizer", tensors_in(list(state.values())))

    ledger.own("parameters", parameters if model is None else [*parameters, *model.buffers()])
    ledger.own("gradients", (parameter.grad for parameter in parameters))
    optimizing(False)
    with ExitStack() as stack:
        for parameter in parameters:
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(
                    lambda ready: ledger.own("gradients", [ready.grad])
                )
                stack.callback(handle.remove)
        if optimizer is not None:
            for register, now in (
                (optimizer.register_step_pre_hook, True),
                (optimizer.register_step_post_hook, False),
            ):
                stack.callback(register(lambda *_, now=now: optimizing(now)).remove)
        stack.enter_context(no_collection())
        stack.enter_context(ledger)
        yield ledger


@contextmanager
def no_collection() -> Iterator[None]:
    """What is garbage is collected now, and then not until the end."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]
