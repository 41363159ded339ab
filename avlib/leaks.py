"""Does a model keep to its rules? Measure which input moves which output, on anyone's module."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avlib.masks import Visibility


@dataclass(frozen=True, eq=False)
class Influence:
    """Which input group moves which output group, as measured by `influence`.

    Attributes:
        outputs, inputs: names of the rows and columns of the three tables.
        gradient: largest |∂output/∂input|, for a random direction of the output.
        changed: other finite inputs changed some bit of the output.
        poisoned: NaN or inf in the input changed some bit of the output.
        promise: the rules that the model should keep, if any were given.
    """

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    gradient: Float[Tensor, "outputs inputs"]
    changed: Bool[Tensor, "outputs inputs"]
    poisoned: Bool[Tensor, "outputs inputs"]
    promise: Visibility | None = None

    @property
    def moves(self) -> Bool[Tensor, "outputs inputs"]:
        """True where an input group moves an output group: by gradient or by change."""
        return (self.gradient != 0) | self.changed

    @property
    def leaks(self) -> list[tuple[str, str]]:
        """(input, output) pairs that move although the promise says that they cannot."""
        return self._unpromised(self.moves)

    def _unpromised(self, table: Tensor) -> list[tuple[str, str]]:
        if self.promise is None:
            return []
        return [
            (source, output)
            for i, output in enumerate(self.outputs)
            for j, source in enumerate(self.inputs)
            if table[i, j] and source not in self.promise.reads[output]
        ]

    def __str__(self) -> str:
        lines = []
        for i, output in enumerate(self.outputs):
            movers = [name for j, name in enumerate(self.inputs) if self.moves[i, j]]
            still = [name for j, name in enumerate(self.inputs) if not self.moves[i, j]]
            line = f"{output} output: moved by {' and '.join(movers) or 'nothing'}"
            if still:
                line += f"; not by {' or '.join(still)}"
            lines.append(line + ".")
        for source, output in self.leaks:
            size = self.gradient[self.outputs.index(output), self.inputs.index(source)]
            lines.append(
                f"LEAK: {source} moves the {output} output (gradient {size:.0e}); "
                "the promise says that it cannot."
            )
        only_nan = [pair for pair in self._unpromised(self.poisoned) if pair not in self.leaks]
        lines += [
            f"NaN or inf in {source} reaches the {output} output, though no finite value does."
            for source, output in only_nan
        ]
        if self.promise is not None and not self.leaks and not only_nan:
            lines.append("The promise holds.")
        return "\n".join(lines)


def influence(
    fn: Callable[..., Tensor | Mapping[str, Tensor]],
    inputs: Mapping[str, Tensor],
    groups: Mapping[str, int | slice | Callable[[Tensor], Tensor]] | None = None,
    promise: Visibility | None = None,
) -> Influence:
    """Measure which input group moves which output group, on anyone's module.

    A gradient can be zero by accident, so each input group is also replaced by other values, by
    NaN and by inf, and the outputs are compared bit for bit; all this around the given inputs and
    around random ones. It is a test, not a proof: what moves only in some far corner is missed.
    A Module is copied for each call, so its buffers stay as they were, and so do its parameters'
    `.grad`, the inputs and the global random generators. (The state of a closure cannot be kept.)

    >>> total = lambda audio, video: {"audio": audio, "both": audio + video}
    >>> print(influence(total, {"audio": torch.ones(2), "video": torch.ones(2)}))
    audio output: moved by audio; not by video.
    both output: moved by audio and video.

    Args:
        fn: called as `fn(**inputs)`; returns a tensor, or a mapping from names to tensors.
        inputs: floating tensors; each is one input group. To test one sequence that holds several
            groups, pass the parts and let `fn` join them.
        groups: names of the output groups and where they are: an index or slice into axis 1 of
            the output, or a function of the output. Not needed when `fn` returns a mapping.
        promise: readers are output groups, keys are input groups. It may name more (such as
            fusion, which is no input).

    Raises:
        TypeError: `fn` returns something else.
        ValueError: an input or output is empty, not floating or not finite, groups are not named
            or named twice, the promise lacks an output or input, or `fn` gives two answers for
            one input.
    """
    for name, tensor in inputs.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(
                f"influence: input {name!r} is {kind}, wanted a floating-point tensor; embed "
                "tokens first"
            )

    def run(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        devices = list({t.device for t in values.values() if t.device.type == "cuda"})
        module = deepcopy(fn) if isinstance(fn, nn.Module) else fn
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            return _named(module(**{name: t.clone() for name, t in values.items()}), groups)

    with torch.no_grad():
        before = run(inputs)
        again = run(inputs)
    names, sources = tuple(before), tuple(inputs)
    _check_run(inputs, before, again, promise)

    gradient = torch.zeros(len(names), len(sources), dtype=torch.float64)
    changed = torch.zeros(len(names), len(sources), dtype=torch.bool)
    poisoned = changed.clone()
    random = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=random).to(tensor)

    for base in (dict(inputs), {name: noise(tensor) for name, tensor in inputs.items()}):
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in base.items()}
        with torch.enable_grad():
            outputs = run(leaves)
        for i, out in enumerate(outputs.values()):
            if out.requires_grad:
                found = torch.autograd.grad(
                    out, list(leaves.values()), noise(out), retain_graph=True, allow_unused=True
                )
                for j, grad in enumerate(found):
                    if grad is not None:
                        size = grad.abs().max().double().cpu()
                        gradient[i, j] = torch.maximum(gradient[i, j], size)
        with torch.no_grad():
            before = run(base)
            for j, source in enumerate(sources):
                tensor = base[source]
                finite = noise(tensor), tensor + 100 * noise(tensor), torch.zeros_like(tensor)
                broken = (torch.full_like(tensor, value) for value in (torch.nan, torch.inf))
                for table, others in ((changed, finite), (poisoned, broken)):
                    for other in others:
                        after = run({**base, source: other})
                        for i, name in enumerate(names):
                            table[i, j] |= not _same(before[name], after.get(name))
    return Influence(names, sources, gradient, changed, poisoned, promise)


def _named(
    result: Any, groups: Mapping[str, int | slice | Callable[[Tensor], Tensor]] | None
) -> dict[str, Tensor]:
    """The output groups by name."""
    if isinstance(result, Mapping):
        if groups:
            raise ValueError(
                f"influence: fn returned the groups {list(result)} and groups names "
                f"{list(groups)}; leave groups out, or return one tensor"
            )
        named = dict(result)
    elif not groups:
        raise ValueError(
            "influence: fn returned one output; name its parts, as in groups={'audio': 0}"
        )
    else:
        named = {
            n: part(result) if callable(part) else result[:, part] for n, part in groups.items()
        }
    for name, part in named.items():
        if not isinstance(part, Tensor):
            raise TypeError(
                f"influence: output {name!r} is a {type(part).__name__}, wanted a tensor; wrap fn"
            )
    return named


def _check_run(
    inputs: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    again: Mapping[str, Tensor],
    promise: Visibility | None,
) -> None:
    """Refuse what would make the tables say nothing."""
    for kind, group in (("input", inputs), ("output", before)):
        if not group:
            raise ValueError(f"influence: got no {kind}s; give at least one")
        for name, tensor in group.items():
            if tensor.numel() == 0 or not tensor.isfinite().all():
                what = "not finite" if tensor.numel() else f"empty, of shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"influence: {kind} {name!r} is {what}; start from finite, non-empty tensors"
                )
    if not all(_same(before[name], again.get(name)) for name in before):
        raise ValueError("influence: fn gives two answers for one input; call .eval() first")
    if promise is not None:
        for kind, names, known in (
            ("outputs", before, promise.readers),
            ("inputs", inputs, promise.keys),
        ):
            missing = [name for name in names if name not in known]
            if missing:
                raise ValueError(
                    f"influence: the promise says nothing about the {kind} {missing}; "
                    f"it names {list(known)}"
                )


def _same(a: Tensor, b: Tensor | None) -> bool:
    """Whether two tensors hold the same bits."""
    if b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    first, second = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(first, second)
