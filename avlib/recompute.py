"""The backward pass of a reversible block: compute it again, from its outputs."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from avlib.coupling import Coupling, Streams, moved, step
from avlib.grid import Grid

Tape = list[tuple[Tensor, ...]]  # where a block leaves its inputs, recomputed, for the one before


def stored(
    block: Iterable[Coupling], streams: Streams, inputs: Mapping[str, Any], grid: Grid | None
) -> dict[str, Tensor]:
    """The streams after a block under ordinary autograd."""
    after = dict(streams)
    for coupling in block:
        after = step(coupling, after, inputs, grid)
    return after


def recomputed(
    block: Iterable[Coupling],
    streams: Streams,
    inputs: Mapping[str, Any],
    grid: Grid | None,
    tape: Tape,
    *,
    last: bool,
) -> dict[str, Tensor]:
    """The streams after a block that keeps nothing for its backward pass.

    Its outputs come back on the `tape`, from the block after it; the last block keeps its own.
    """
    tensors = _gather(block, streams, inputs)
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors.values()):
        return stored(block, streams, inputs, grid)
    call = _Call(block, tensors, inputs, grid, tape, last)
    return dict(zip(streams, _Block.apply(call, *tensors.values()), strict=True))


_Key = tuple[str | int, str]  # ("stream", name), ("input", name), (index of a coupling, weight)


class _Call:
    """One call of one block: the order of its tensors, and what computing it again needs."""

    def __init__(
        self,
        block: Iterable[Coupling],
        tensors: Mapping[_Key, Tensor],
        inputs: Mapping[str, Any],
        grid: Grid | None,
        tape: Tape,
        last: bool,
    ) -> None:
        self.block, self.grid, self.tape, self.last = tuple(block), grid, tape, last
        self.needs_grad = {key: tensor.requires_grad for key, tensor in tensors.items()}
        names = {name for coupling in block for name in coupling.keywords.values()}
        self.constants = {n: inputs[n] for n in names if ("input", n) not in tensors}
        self.training = [coupling.training for coupling in block]
        self.fingerprint: Tensor | None = None
        self.devices = {torch.device("cpu"), *(tensor.device for tensor in tensors.values())}
        self.random_states: list[RandomState] = []  # where a coupling drew from them
        kinds = {device.type for device in self.devices}
        self.autocasts = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted(kinds)
            if torch.amp.is_autocast_available(kind)
        ]

    def sort(self, tensors: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[_Key, Tensor]]:
        """The streams by name, and all the rest by key."""
        by_key = dict(zip(self.needs_grad, tensors, strict=True))
        streams = {key[1]: by_key.pop(key) for key in self.needs_grad if key[0] == "stream"}
        return streams, by_key

    def deltas(
        self, index: int, streams: Streams, rest: Mapping[_Key, Tensor]
    ) -> tuple[dict[str, Tensor], dict[_Key, Tensor]]:
        """What a coupling adds, and the leaves of its graph: a graph of its own."""
        coupling = self.block[index]
        leaves: dict[_Key, Tensor] = {("stream", n): streams[n].detach() for n in coupling.reads}
        for key, tensor in rest.items():
            if key[0] == index or (key[0] == "input" and key[1] in coupling.keywords.values()):
                leaves[key] = tensor.detach()
        for key, leaf in leaves.items():
            leaf.requires_grad_(key[0] == "stream" or self.needs_grad[key])
        read = {name: leaf for (kind, name), leaf in leaves.items() if kind == "stream"}
        given = {name: leaf for (kind, name), leaf in leaves.items() if kind == "input"}
        weights = {name: leaf for (kind, name), leaf in leaves.items() if kind == index}
        arguments = ({**streams, **read}, {**self.constants, **given})
        with ExitStack() as stack:
            for autocast in self.autocasts:  # uncached: a cached cast belongs to another graph
                stack.enter_context(torch.autocast(*autocast, cache_enabled=False))
            # Not under no_grad, in the forward pass either: some modules take another path there.
            stack.enter_context(torch.enable_grad())
            # Tied weights are several leaves here; autograd adds their gradients outside.
            return functional_call(coupling, weights, arguments, tie_weights=False), leaves


class _Block(torch.autograd.Function):
    """A block whose backward recomputes. All that its outputs depend on is among its inputs."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        streams, rest = call.sort(tensors)
        if call.grid is not None:
            call.fingerprint = call.grid.fingerprint(streams)
        for index, coupling in enumerate(call.block):
            before = random_state(call.devices)
            deltas, leaves = call.deltas(index, streams, rest)
            drew = not same_state(before, random_state(call.devices))
            call.random_states.append(before if drew else {})
            _refuse_strangers(coupling, deltas, leaves)
            streams = moved(streams, deltas, call.grid)
            del deltas, leaves  # two graphs at once would be one too many
        outputs = tuple(streams.values())
        ctx.call = call
        ctx.save_for_backward(*tensors[len(outputs) :], *(outputs if call.last else ()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "reversible: a second derivative is asked for (create_graph=True), and there is "
                "only the first; run the forward pass with reverse=False"
            )
        call, saved, count = ctx.call, _saved_tensors(ctx), len(grads)
        saved, outputs = (saved[:-count], saved[-count:]) if call.last else (saved, call.tape.pop())
        streams, rest = call.sort((*outputs, *saved))
        found: dict[_Key, Tensor | None] = dict.fromkeys(call.needs_grad)
        found.update({("stream", name): grad for name, grad in zip(streams, grads, strict=True)})
        for index, coupling in reversed(list(enumerate(call.block))):
            if coupling.training != call.training[index]:
                raise RuntimeError(
                    f"reversible: {coupling} was switched between .train() and .eval() after the "
                    "forward pass; call backward first"
                )
            now = random_state(call.random_states[index])
            try:
                _set_random_state(call.random_states[index])
                deltas, leaves = call.deltas(index, streams, rest)
            finally:
                _set_random_state(now)
            streams = moved(streams, deltas, call.grid, back=True)
            outs = {name: delta for name, delta in deltas.items() if delta.requires_grad}
            wanted = {key: leaf for key, leaf in leaves.items() if leaf.requires_grad}
            if not outs:  # nothing that fn returns depends on what it was given
                continue
            into = [found["stream", name] for name in outs]
            got = torch.autograd.grad(
                list(outs.values()), list(wanted.values()), into, allow_unused=True
            )
            for key, grad in zip(wanted, got, strict=True):
                if grad is not None:
                    so_far = found[key]
                    found[key] = grad if so_far is None else so_far + grad
            del deltas, outs, leaves, wanted
        if call.grid is not None:
            call.grid.compare(call.fingerprint, streams)
        call.tape[:] = [tuple(streams.values())]
        return None, *found.values()


def _saved_tensors(ctx: Any) -> tuple[Tensor, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise RuntimeError(
            "reversible: a parameter, an input or an output was changed in place after the forward "
            "pass, so a block cannot be computed again; call backward before optimizer.step()"
        ) from error


def _gather(
    block: Iterable[Coupling], streams: Streams, inputs: Mapping[str, Any]
) -> dict[_Key, Tensor]:
    """All that the outputs of a block depend on, streams first."""
    tensors: dict[_Key, Tensor] = {("stream", name): s for name, s in streams.items()}
    for index, coupling in enumerate(block):
        for name in coupling.keywords.values():
            if isinstance(inputs[name], Tensor):
                tensors["input", name] = inputs[name]
        for name, weight in coupling.named_parameters(remove_duplicate=False):
            tensors[index, name] = weight
    return tensors


def _refuse_strangers(coupling: Coupling, deltas: Streams, leaves: Mapping[_Key, Tensor]) -> None:
    """Refuse a function of tensors that are not among its leaves: they would get no gradient."""
    known = {id(leaf) for leaf in leaves.values()}
    nodes = [delta.grad_fn for delta in deltas.values()]
    strange = any(d.requires_grad and d.is_leaf and id(d) not in known for d in deltas.values())
    seen = set(nodes)
    while nodes and not strange:
        node: Any = nodes.pop()
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        strange = variable is not None and id(variable) not in known
        following = {parent for parent, _ in node.next_functions} - seen
        seen |= following
        nodes.extend(following)
    if strange:
        raise ValueError(
            f"{coupling}: fn depends on a tensor that needs a gradient and is neither a stream, an "
            "input nor a parameter of the Module; pass it through keywords and inputs, or pass the "
            "Module itself in place of a function around it"
        )


# Random numbers

RandomState = dict[torch.device, Tensor]


def random_state(devices: Iterable[torch.device]) -> RandomState:
    """The states of the devices' default generators."""
    state = {}
    for device in devices:
        if device.type == "cpu":
            state[device] = torch.get_rng_state()
        elif device.type != "meta":
            state[device] = torch.get_device_module(device).get_rng_state(device)
    return state


def same_state(one: RandomState, other: RandomState) -> bool:
    """Whether no random number was drawn in between."""
    return all(torch.equal(state, other[device]) for device, state in one.items())


def _set_random_state(state: RandomState) -> None:
    for device, numbers in state.items():
        if device.type == "cpu":
            torch.set_rng_state(numbers)
        else:
            torch.get_device_module(device).set_rng_state(numbers, device)
