"""The coupling rule: add to one stream what another gives, so that it can be taken away again.

Dinh et al. 2015, arXiv:1410.8516, sec. 3.2; Gomez et al. 2017, arXiv:1707.04585, eq. 6 to 8.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avlib.grid import Grid

Streams = Mapping[str, Tensor]


class Coupling(nn.Module):
    """`streams[targets] += fn(*streams[reads], **keywords)`, the only step that a block is made of.

    Args:
        targets: the stream, or streams, that are added to.
        reads: the streams that `fn` is called with, in this order.
        fn: a Module, or a function that holds no tensor that needs a gradient. It returns one
            tensor for each target (several in a tuple), each of its target's shape; other
            floating dtypes are cast. It is called twice in a training step and must answer the
            same twice: random numbers come from torch's default generators, and what it is given
            stays as it is.
        keywords: keyword of `fn` → name among the `inputs` of the sequence.

    Raises:
        ValueError: no target, or a target that is read: it could not be taken away again.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        reads: str | Sequence[str],
        fn: Callable[..., Any],
        keywords: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.targets, self.reads = _names(targets), _names(reads)
        self.fn = fn
        self.keywords = dict(keywords or {})
        if not callable(fn):
            raise TypeError(
                f"{self}: fn is {type(fn).__name__}, wanted something to call; pass a Module"
            )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"{self}: targets are {list(self.targets)}; name each stream once")
        both = sorted(set(self.targets) & set(self.reads))
        if both:
            raise ValueError(
                f"{self}: {both[0]!r} is target and read, so it could not be taken away again; "
                "read another stream, or split this one into halves"
            )

    def __str__(self) -> str:
        return f"Coupling {self.extra_repr()}"

    def extra_repr(self) -> str:
        """The coupling as one would write it, such as `x1 += Attention(x2)`."""
        name = type(self.fn).__name__ if isinstance(self.fn, nn.Module) else "fn"
        return f"{', '.join(self.targets)} += {name}({', '.join(self.reads)})"

    def forward(self, streams: Streams, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is to be added to each target.

        Raises:
            TypeError, ValueError: `fn` returned something that cannot be added to its targets.
        """
        read = [streams[name] for name in self.reads]
        given = {keyword: inputs[name] for keyword, name in self.keywords.items()}
        tensors = [value for value in (*read, *given.values()) if isinstance(value, Tensor)]
        versions = [version(tensor) for tensor in tensors]
        out = self.fn(*read, **given)
        if versions != [version(tensor) for tensor in tensors]:
            raise ValueError(
                f"{self}: fn changed what it was given; compute without in-place operations"
            )
        deltas = tuple(out) if isinstance(out, (tuple, list)) else (out,)
        if len(deltas) != len(self.targets) or not all(isinstance(d, Tensor) for d in deltas):
            raise TypeError(
                f"{self}: fn returned {[type(delta).__name__ for delta in deltas]}, wanted "
                f"{len(self.targets)} tensor{'s' * (len(self.targets) > 1)}; return one for each "
                "target, several in a tuple"
            )
        for name, delta in zip(self.targets, deltas, strict=True):
            stream = streams[name]
            if delta.shape != stream.shape or not delta.is_floating_point():
                raise ValueError(
                    f"{self}: fn returned {delta.dtype} of shape {tuple(delta.shape)}, wanted "
                    f"floating point of shape {tuple(stream.shape)}; return what can be added to "
                    f"the stream {name!r}"
                )
        return {
            name: delta.to(streams[name].dtype)
            for name, delta in zip(self.targets, deltas, strict=True)
        }


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version


def step(
    coupling: Coupling,
    streams: Streams,
    inputs: Mapping[str, Any],
    grid: Grid | None,
    *,
    back: bool = False,
) -> dict[str, Tensor]:
    """The streams after one coupling, or with `back` those before it; ordinary autograd."""
    if grid is None:
        return moved(streams, coupling(streams, inputs), grid, back=back)
    # Some modules take another path, and give other bits, where nothing needs a gradient.
    read = {name: streams[name] for name in coupling.reads}
    tensors = (*read.values(), *inputs.values(), *coupling.parameters())
    needed = any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
    with torch.enable_grad():
        read = {n: s if s.requires_grad else s.detach().requires_grad_() for n, s in read.items()}
        deltas = coupling({**streams, **read}, inputs)
    if not (needed and torch.is_grad_enabled()):
        deltas = {name: delta.detach() for name, delta in deltas.items()}
    return moved(streams, deltas, grid, back=back)


def moved(
    streams: Streams, deltas: Streams, grid: Grid | None, *, back: bool = False
) -> dict[str, Tensor]:
    """The streams with their deltas added, or with `back` taken away again."""
    after = dict(streams)
    for name, delta in deltas.items():
        delta = delta if grid is None else grid.round(delta)
        after[name] = streams[name] - delta if back else streams[name] + delta
        if grid is not None:
            grid.watch(after[name])
    return after


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
