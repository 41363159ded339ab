"""The backward pass of a reversible sequence: what was not stored is computed again."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from avlib.coupling import Coupling, Streams, moved, step, version
from avlib.grid import Grid

_LOCK = RLock()  # held while leaves stand in for weights, and random states for those of now
_Key = tuple[str, str]  # ("stream", name), ("input", name) or ("weight", name)


class Tape:
    """Hands streams from the backward pass of one coupling to that of the one before it."""

    def __init__(self, length: int) -> None:
        self.length, self.first = length, length  # `first` is the first that has a backward pass
        self._left: tuple[int, dict[str, Tensor]] | None = None

    def leave(self, index: int, streams: dict[str, Tensor]) -> None:
        """Keep the streams as they were before this coupling, if any coupling wants them."""
        self._left = (index, streams) if index > self.first else None

    def take(self, index: int) -> dict[str, Tensor]:
        """The streams as they were after this coupling."""
        if self._left is None or self._left[0] != index + 1:
            raise RuntimeError(
                "reversible: two backward passes through one graph got in each other's way; run "
                "one after the other, not from a hook or another thread"
            )
        return self._left[1]


def recomputed(
    coupling: Coupling,
    streams: Streams,
    inputs: Mapping[str, Any],
    grid: Grid | None,
    tape: Tape,
    index: int,
) -> dict[str, Tensor]:
    """The streams after the coupling in place `index`, which stores nothing for its backward pass.

    Its backward pass gets the streams from the `tape`; the last coupling's has its own.
    """
    tensors: dict[_Key, Tensor] = {("stream", name): s for name, s in streams.items()}
    for name in coupling.keywords.values():
        if isinstance(inputs[name], Tensor):
            tensors["input", name] = inputs[name]
    with _LOCK:
        for name, weight in _places(coupling, nn.Module.named_parameters):
            tensors["weight", name] = weight
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors.values()):
        return step(coupling, streams, inputs, grid)
    tape.first = min(tape.first, index)
    call = _Call(coupling, tensors, inputs, grid, tape, index)
    return dict(zip(streams, _Recomputed.apply(call, *tensors.values()), strict=True))


class _Call:
    """One call of one coupling: the order of its tensors, and what computing it again needs."""

    def __init__(
        self,
        coupling: Coupling,
        tensors: Mapping[_Key, Tensor],
        inputs: Mapping[str, Any],
        grid: Grid | None,
        tape: Tape,
        index: int,
    ) -> None:
        self.coupling, self.grid, self.tape, self.index = coupling, grid, tape, index
        self.last = index == tape.length - 1
        self.needs_grad = {key: tensor.requires_grad for key, tensor in tensors.items()}
        self.streams = [name for kind, name in tensors if kind == "stream"]
        self.rest = [key for key in tensors if key[0] != "stream"]
        names = coupling.keywords.values()
        self.constants = {n: inputs[n] for n in names if ("input", n) not in tensors}
        self.training = [module.training for module in coupling.modules()]
        self.fingerprint: Tensor | None = None
        self.random_state: RandomState = {}  # of the generators that were drawn from
        self.buffers: list[str] = []
        self.devices = {torch.device("cpu"), *(tensor.device for tensor in tensors.values())}
        kinds = {device.type for device in self.devices}
        self.autocasts = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted(kinds)
            if torch.amp.is_autocast_available(kind)
        ]

    def deltas(
        self, streams: Streams, rest: Mapping[_Key, Tensor], buffers: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[_Key, Tensor]]:
        """What the coupling adds, and the leaves of its graph: a graph of its own."""
        read = {("stream", name): streams[name] for name in self.coupling.reads}
        leaves = {key: tensor.detach() for key, tensor in (*read.items(), *rest.items())}
        for key, leaf in leaves.items():
            leaf.requires_grad_(key in read or self.needs_grad[key])

        with ExitStack() as stack:
            for autocast in self.autocasts:
                stack.enter_context(torch.autocast(*autocast))
            # Not under no_grad, in the forward pass either: some modules take another path there.
            stack.enter_context(torch.enable_grad())
            # Views: of a leaf, autocast would keep a copy that belongs to this graph, and torch's
            # module trackers do not bear one as an argument.
            given = {key: leaf.view_as(leaf) for key, leaf in leaves.items()}
            named = {
                kind: {key[1]: tensor for key, tensor in given.items() if key[0] == kind}
                for kind in ("stream", "input", "weight")
            }
            arguments = ({**streams, **named["stream"]}, {**self.constants, **named["input"]})
            state = {**named["weight"], **buffers}
            deltas = functional_call(self.coupling, state, arguments, tie_weights=False)
        _refuse_strangers(self.coupling, deltas, leaves)
        return deltas, leaves


class _Recomputed(torch.autograd.Function):
    """A coupling. All that its outputs depend on is an input, so autograd does all the rest.

    Streams that it does not touch pass through, so that couplings run backwards one by one.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        streams = dict(zip(call.streams, tensors, strict=False))
        rest = dict(zip(call.rest, tensors[len(streams) :], strict=True))
        if call.grid is not None:
            call.fingerprint = call.grid.fingerprint(streams, call.coupling.targets)
        buffers = dict(_places(call.coupling, nn.Module.named_buffers))
        versions = {name: version(buffer) for name, buffer in buffers.items()}
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        with _LOCK:
            before = random_state(call.devices)
            deltas, leaves = call.deltas(streams, rest, {})
            call.random_state = drawn_from(before)
        for leaf in leaves.values():
            if leaf.requires_grad:
                leaf.register_hook(_refuse_outside)
        for name, buffer in buffers.items():  # such as statistics: kept as they were before
            if version(buffer) != versions[name]:
                buffers[name] = copies[name]
        call.buffers = list(buffers)
        outputs = tuple(moved(streams, deltas, call.grid).values())
        ctx.call = call
        ctx.set_materialize_grads(False)
        own = outputs if call.last else ()
        ctx.save_for_backward(*rest.values(), *buffers.values(), *own)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call, coupling = ctx.call, ctx.call.coupling
        if torch.is_grad_enabled():
            raise RuntimeError(
                "reversible: a second derivative is asked for (create_graph=True), and there is "
                "only the first; run the forward pass with reverse=False"
            )
        if [module.training for module in coupling.modules()] != call.training:
            raise RuntimeError(
                f"reversible: {coupling} was switched between .train() and .eval() after the "
                "forward pass; call backward first"
            )
        saved = iter(_saved_tensors(ctx))
        rest = dict(zip(call.rest, saved, strict=False))
        buffers = {name: b.clone() for name, b in zip(call.buffers, saved, strict=False)}
        streams = (
            dict(zip(call.streams, saved, strict=True)) if call.last else call.tape.take(call.index)
        )
        found: dict[_Key, Tensor | None] = dict.fromkeys(call.needs_grad)
        found.update({("stream", name): grad for name, grad in zip(streams, grads, strict=True)})

        with _LOCK:
            now = random_state(call.random_state)
            set_random_state(call.random_state)
            try:
                deltas, leaves = call.deltas(streams, rest, buffers)
            finally:
                set_random_state(now)
        streams = moved(streams, deltas, call.grid, back=True)
        if call.grid is not None:
            call.grid.compare(call.fingerprint, streams, coupling.targets)
        call.tape.leave(call.index, streams)

        given = {
            n: d for n, d in deltas.items() if d.requires_grad and found["stream", n] is not None
        }
        wanted = {key: leaf for key, leaf in leaves.items() if leaf.requires_grad}
        if given:
            into = [found["stream", name] for name in given]
            got = torch.autograd.grad(
                list(given.values()), list(wanted.values()), into, allow_unused=True
            )
            for key, grad in zip(wanted, got, strict=True):
                if grad is not None:
                    so_far = found[key]
                    found[key] = grad if so_far is None else so_far + grad
        return None, *found.values()


def _places(coupling: Coupling, named: Callable[..., Any]) -> Iterator[tuple[str, Tensor]]:
    """Each place that holds a parameter (or a buffer), once.

    So tied weights are several leaves, whose gradients autograd adds, and a module that is used
    twice is one. (`functional_call` breaks a module whose places it is given twice.)
    """
    for prefix, module in coupling.named_modules():
        yield from named(module, prefix, recurse=False, remove_duplicate=False)


def _refuse_outside(_: Tensor) -> None:
    raise RuntimeError(
        "reversible: something that a function computed on its way is differentiated from outside, "
        "and its graph is gone; return it to a stream of its own, or use reverse=False"
    )


def _saved_tensors(ctx: Any) -> tuple[Tensor, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise RuntimeError(
            "reversible: a parameter, a buffer, an input or an output was changed in place after "
            "the forward pass, so nothing can be computed again; call backward first (before "
            "optimizer.step()), or change a copy"
        ) from error


def _refuse_strangers(coupling: Coupling, deltas: Streams, leaves: Mapping[_Key, Tensor]) -> None:
    """Refuse a function of tensors that are not among its leaves: they would get no gradient."""
    known = {id(leaf) for leaf in leaves.values()}
    strange = any(delta.requires_grad and delta.is_leaf for delta in deltas.values())
    nodes: list[Any] = [d.grad_fn for d in deltas.values() if d.grad_fn is not None]
    seen = {None, *nodes}
    while nodes and not strange:
        node = nodes.pop()
        leaf = getattr(node, "variable", None)
        strange = leaf is not None and id(leaf) not in known
        parents = {parent for parent, _ in node.next_functions} - seen
        seen |= parents
        nodes.extend(parents)
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


def drawn_from(before: RandomState) -> RandomState:
    """Those of the states that are others now, since random numbers were drawn."""
    now = random_state(before)
    return {device: state for device, state in before.items() if not state.equal(now[device])}


def set_random_state(state: RandomState) -> None:
    """Back to these states."""
    for device, numbers in state.items():
        if device.type == "cpu":
            torch.set_rng_state(numbers)
        else:
            torch.get_device_module(device).set_rng_state(numbers, device)
