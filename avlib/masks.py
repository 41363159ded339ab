"""Who may read whom: a mask as an object that is drawn, proved and run.

A token belongs to a group (audio, video, fusion …). A `Visibility` says which reader group may
read which key group. Everything else follows from that small table: the dense mask, the function
that FlexAttention wants, what can influence what after many layers, and the cost.
`avlib.leaks` then checks on a real model that the table holds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Visibility:
    """Which reader groups may read which key groups.

    >>> print(Visibility({"audio": ["audio"], "video": ["video"], "fusion": "all"}))
            audio   video   fusion
    audio   reads   ·       ·
    video   ·       reads   ·
    fusion  reads   reads   reads

    Args:
        reads: for each reader group, the key groups that it reads, or "all".
        keys: names of the key groups; by default the readers' own names.

    Raises:
        ValueError: a name is unknown, or a reader reads nothing (softmax over no keys has no
            meaning: it gives uniform weights, NaN or zeros, depending on the code that runs it).
    """

    reads: Mapping[str, Sequence[str]]
    keys: tuple[str, ...]

    def __init__(
        self, reads: Mapping[str, Sequence[str]], keys: Sequence[str] | None = None
    ) -> None:
        if not isinstance(reads, Mapping):
            raise TypeError(
                f"Visibility: got {reads!r}, wanted a mapping from each reader to what it reads; "
                'for example {"audio": ["audio"], "fusion": "all"}'
            )
        if isinstance(keys, str):
            raise TypeError(f"Visibility: keys is {keys!r}, wanted a list; use [{keys!r}]")
        names = tuple(reads if keys is None else keys)
        for name in (*reads, *names):
            if not isinstance(name, str) or name in ("", "all") or names.count(name) > 1:
                raise ValueError(
                    f"Visibility: {name!r} cannot name a group; give every group a name of its "
                    'own, other than "all"'
                )
        listed = {}
        for reader, wanted in reads.items():
            if isinstance(wanted, str) and wanted != "all":
                wanted = (wanted,)
            wanted = names if wanted == "all" else tuple(wanted)
            unknown = [key for key in wanted if key not in names]
            if unknown:
                raise ValueError(
                    f"Visibility: {reader} reads {unknown[0]!r}, which is no key group; "
                    f"the key groups are {', '.join(names)}"
                )
            if not wanted:
                raise ValueError(
                    f"Visibility: {reader} reads nothing; let it read at least one of "
                    f"{', '.join(names) or 'some key groups'}"
                )
            listed[reader] = tuple(key for key in names if key in wanted)
        if not listed:
            raise ValueError("Visibility: got no readers; give at least one, with what it reads")
        object.__setattr__(self, "reads", MappingProxyType(listed))
        object.__setattr__(self, "keys", names)

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of the reader groups, in order."""
        return tuple(self.reads)

    def _content(self) -> tuple[object, ...]:
        return tuple(self.reads.items()), self.keys  # rows come in order, so order counts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Visibility) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def __reduce__(self) -> tuple[Any, ...]:
        return Visibility, (dict(self.reads), self.keys)

    def __str__(self) -> str:
        width = max(map(len, (*self.readers, *self.keys, "reads"))) + 2
        lines = [" " * width + "".join(key.ljust(width) for key in self.keys)]
        for reader, wanted in self.reads.items():
            cells = ("reads" if key in wanted else "·" for key in self.keys)
            lines.append(reader.ljust(width) + "".join(cell.ljust(width) for cell in cells))
        return "\n".join(line.rstrip() for line in lines)

    def table(self) -> Bool[Tensor, "readers keys"]:
        """The rules as a small boolean tensor."""
        return torch.tensor(
            [[key in wanted for key in self.keys] for wanted in self.reads.values()]
        )

    def only(self, groups: Sequence[str], readers: Sequence[str] | None = None) -> "Visibility":
        """The same rules with every group outside `groups` left out, as reader and as key.

        Args:
            groups: the names that stay.
            readers: where given, these alone stay as readers, in this order.

        Raises:
            ValueError: a name is unknown, or a reader that stays would read nothing.
        """
        for names, known in (
            (groups, {*self.readers, *self.keys}),
            (readers or [], {*self.readers}),
        ):
            if isinstance(names, str) or set(names) - known:
                raise ValueError(
                    f"Visibility.only: got {names!r}, wanted a list of names from {sorted(known)}"
                )
        keys = tuple(key for key in self.keys if key in groups)
        if readers is None:
            readers = [reader for reader in self.readers if reader in groups]
        reads = {
            reader: tuple(key for key in self.reads[reader] if key in keys) for reader in readers
        }
        return Visibility(reads, keys)

    # The mask at the size of tokens

    def _sizes(
        self, where: str, readers: Mapping[str, int], keys: Mapping[str, int] | None
    ) -> tuple[list[int], list[int]]:
        keys = readers if keys is None else keys
        for kind, wanted, got in (("readers", self.readers, readers), ("keys", self.keys, keys)):
            if set(wanted) != set(got) or min(got.values()) < 0:
                raise ValueError(
                    f"Visibility.{where}: got {kind} {dict(got)}, wanted a number of tokens for "
                    f"each of {list(wanted)}; only(…) leaves groups out"
                )
        return [readers[name] for name in self.readers], [keys[name] for name in self.keys]

    def dense(
        self, readers: Mapping[str, int], keys: Mapping[str, int] | None = None
    ) -> Bool[Tensor, "i j"]:
        """The mask for `scaled_dot_product_attention`: `mask[i, j]` is True when i may read j.

        Args:
            readers: tokens in each reader group; rows come in the order of `self.readers`.
            keys: tokens in each key group; by default the same as the readers.
        """
        rows, columns = self._sizes("dense", readers, keys)
        mask = self.table().repeat_interleave(torch.tensor(rows), 0)
        return mask.repeat_interleave(torch.tensor(columns), 1)

    def mask_mod(
        self,
        readers: Mapping[str, int],
        keys: Mapping[str, int] | None = None,
        device: torch.device | str | None = None,
    ) -> MaskMod:
        """The same mask as a function `(b, h, q_idx, kv_idx) → bool` for FlexAttention."""
        rows, columns = self._sizes("mask_mod", readers, keys)
        row_group = torch.arange(len(rows)).repeat_interleave(torch.tensor(rows))
        key_group = torch.arange(len(columns)).repeat_interleave(torch.tensor(columns))
        tables = [part.to(device) for part in (self.table(), row_group, key_group)]

        def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            table, row_group, key_group = (part.to(q_idx.device) for part in tables)
            return table[row_group[q_idx], key_group[kv_idx]]

        return mask_mod

    # What follows from the rules

    def __matmul__(self, earlier: "Visibility") -> "Visibility":
        """Read through two steps: `later @ earlier` says what reaches a reader of `later`."""
        if not isinstance(earlier, Visibility):
            return NotImplemented
        if set(self.keys) != set(earlier.readers):
            raise ValueError(
                f"Visibility @ Visibility: the left reads {list(self.keys)}, the right has readers "
                f"{list(earlier.readers)}; both must name the same groups"
            )
        reads = {
            reader: [key for key in earlier.keys if any(key in earlier.reads[m] for m in middle)]
            for reader, middle in self.reads.items()
        }
        return Visibility(reads, earlier.keys)

    def after(self, layers: int) -> "Visibility":
        """What can have influenced each group after so many layers, residual stream included.

        The residual stream carries every token past every layer, so a group always holds itself:
        (I + reads)^layers. After 0 layers a group holds itself alone.
        """
        if set(self.readers) != set(self.keys) or not isinstance(layers, int) or layers < 0:
            raise ValueError(
                f"Visibility.after: got {layers} layers with readers {list(self.readers)} and keys "
                f"{list(self.keys)}; stacking needs layers ≥ 0 and keys that are the readers"
            )
        held = Visibility({name: (name,) for name in self.readers}, self.keys)
        layer = Visibility(
            {name: (*wanted, name) for name, wanted in self.reads.items()}, self.keys
        )
        for _ in range(min(layers, len(self.keys))):  # then nothing new can arrive
            held = layer @ held
        return held

    def pairs(self, readers: Mapping[str, int], keys: Mapping[str, int] | None = None) -> int:
        """How many (reader, key) pairs of tokens the mask lets through."""
        self._sizes("pairs", readers, keys)
        keys = readers if keys is None else keys
        return sum(
            readers[reader] * keys[key] for reader, wanted in self.reads.items() for key in wanted
        )

    def flops(
        self, readers: Mapping[str, int], keys: Mapping[str, int] | None = None, *, dim: int
    ) -> int:
        """Floating-point operations of one attention forward: 4·dim for each pair.

        Two for each multiply-add of a score q·k, two for each of weight·v. Projections are not
        counted: no mask changes them.

        Args:
            readers: tokens in each reader group.
            keys: tokens in each key group; by default the same as the readers.
            dim: heads × dim_head.
        """
        return 4 * dim * self.pairs(readers, keys)


def zorro_trunk(*modalities: str) -> Visibility:
    """Zorro's rule inside the layers: each modality reads itself, fusion reads all (paper, §3).

    >>> print(zorro_trunk("audio", "video"))
            audio   video   fusion
    audio   reads   ·       ·
    video   ·       reads   ·
    fusion  reads   reads   reads
    """
    _check_modalities("zorro_trunk", modalities)
    return Visibility({**{name: (name,) for name in modalities}, "fusion": "all"})


def zorro_readout(*modalities: str) -> Visibility:
    """Zorro's rule for the readout queries (paper, §3; masked as the published model means to).

    >>> print(zorro_readout("audio", "video"))
            audio   video   fusion
    audio   reads   ·       ·
    video   ·       reads   ·
    fusion  ·       ·       reads
    global  reads   reads   reads
    """
    _check_modalities("zorro_readout", modalities)
    groups = (*modalities, "fusion")
    return Visibility({**{name: (name,) for name in groups}, "global": "all"}, groups)


def _check_modalities(where: str, modalities: tuple[str, ...]) -> None:
    if len({*modalities, "fusion", "global"}) != len(modalities) + 2:
        raise ValueError(
            f"{where}: got {modalities}; give different names, other than fusion and global"
        )
