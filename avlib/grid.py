"""Exact mode: streams on a grid, where adding and taking away give back the very bits."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Grid:
    """Keeps float32 streams on multiples of 2⁻¹²: y = x + round(f · 2¹²) / 2¹².

    There a float32 sum is exact while it stays within ±4096 (24 bits), so y − round(f · 2¹²) / 2¹²
    is x to the bit, whatever the precision that f is computed in, if f gives the same bits twice.
    The gradient takes the rounding for the identity. (Maclaurin et al. 2015, arXiv:1502.03492,
    run the training itself backwards with fixed-point numbers.)

    Two things break this: a value outside the range, and a function that answers otherwise the
    second time. Both set a flag on the device, which `check` reads: no step waits for it.
    """

    BITS = 12
    LIMIT = 2.0 ** (24 - BITS)

    def __init__(self) -> None:
        self._flags: dict[str, Tensor] = {}
        self._weights: dict[torch.device, Tensor] = {}

    def enter(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The streams rounded to the grid.

        Raises:
            ValueError: a stream is not float32.
        """
        for name, stream in streams.items():
            if stream.dtype != torch.float32:
                raise ValueError(
                    f"exact mode: stream {name!r} is {stream.dtype}, wanted torch.float32; keep "
                    "the streams in float32, and compute in bfloat16 with torch.autocast"
                )
        return {name: self.watch(self.round(stream)) for name, stream in streams.items()}

    def round(self, values: Tensor) -> Tensor:
        """The nearest points of the grid; in the backward pass the identity."""
        return _Round.apply(values, 2.0**self.BITS)

    def watch(self, stream: Tensor) -> Tensor:
        """Flag values out of range; returns the stream."""
        if stream.numel():
            low, high = stream.aminmax()
            self._flag("range", ~((low > -self.LIMIT) & (high < self.LIMIT)))
        return stream

    def fingerprint(self, streams: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
        """Numbers that almost surely change when the named streams do."""
        sums = []
        for name in names:
            bits = streams[name].reshape(-1).view(torch.int32).long()
            sums.append((bits * self._odd_numbers(len(bits), bits.device)).sum())  # modulo 2⁶⁴
        return torch.stack(sums)

    def _odd_numbers(self, count: int, device: torch.device) -> Tensor:
        """Random weights, always the same: a longer draw begins as a shorter one does."""
        if device not in self._weights or len(self._weights[device]) < count:
            seeded = torch.Generator().manual_seed(0)
            drawn = torch.randint(-(2**62), 2**62, (count,), generator=seeded)
            self._weights[device] = (2 * drawn + 1).to(device)
        return self._weights[device][:count]

    def compare(
        self, fingerprint: Tensor, streams: Mapping[str, Tensor], names: Iterable[str]
    ) -> None:
        """Flag recomputed streams that are not those whose fingerprint was taken."""
        self._flag("drift", (fingerprint != self.fingerprint(streams, names)).any())

    def check(self) -> None:
        """Raise RuntimeError if a flag is set, and clear it."""
        raised = {name for name, flag in self._flags.items() if flag.item()}
        self._flags.clear()
        if "range" in raised:
            raise RuntimeError(
                f"exact mode: a stream left the grid's range of ±{self.LIMIT:g} or is not finite; "
                "normalise what the functions return, or do without exact=True"
            )
        if "drift" in raised:
            raise RuntimeError(
                "exact mode: recomputed streams differ from those of the forward pass, since a "
                "function answered otherwise the second time; draw random numbers from torch's "
                "default generators, and set torch.use_deterministic_algorithms(True)"
            )

    def _flag(self, name: str, flag: Tensor) -> None:
        before = self._flags.get(name)
        self._flags[name] = flag if before is None else before.to(flag.device) | flag


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float) -> Tensor:
        # + 0 turns -0 into 0: the sign of a zero does not survive adding and taking away.
        return (values * scale).round_().div_(scale).add_(0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None
