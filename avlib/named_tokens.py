"""The tokens along one side of a mask: their names and places."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avlib.checks import check_number
from avlib.tokens import whole

Grid = int | Sequence[int]
UNNAMED = "tokens"  # the one group of tokens that nobody named
AXES = {1: ("place",), 2: ("row", "column"), 3: ("frame", "row", "column")}


class Tokens:
    """The tokens along one side of a mask: groups in order, each a line or a grid.

    >>> tokens = Tokens({"audio": (4, 4), "video": (8, 2, 2), "fusion": 2})
    >>> len(tokens), tokens.place(21)
    (50, 'video 5 (frame 1, row 0, column 1)')

    Args:
        groups: name → how many tokens, or their grid: (rows, columns) or (frames, rows, columns),
            numbered as `patchify_*` does. A number alone stands for tokens without a name.

    Attributes:
        grids: name → its grid.
        sizes: name → how many tokens.
        letters: name → a letter of its own.
        spans: name → where its tokens are in the sequence.

    Raises:
        ValueError: no group, a size that is no positive whole number, a grid of more than three
            axes, or a name that is no text.
    """

    def __init__(self, groups: int | Mapping[str, Grid]) -> None:
        if not isinstance(groups, Mapping):
            groups = {UNNAMED: groups}
        grids = {}
        for name, grid in groups.items():
            shape = whole(grid if isinstance(grid, tuple | list) else (grid,))
            if not isinstance(name, str) or not name or not 0 < len(shape) <= 3:
                raise ValueError(
                    f"Tokens: got {name!r}: {grid!r}, wanted a name, and a positive whole number "
                    "of tokens or a grid of them, such as {'audio': (4, 4), 'fusion': 2}"
                )
            grids[name] = shape
        if not grids:
            raise ValueError("Tokens: got no groups; give at least one, such as {'audio': 16}")
        self.grids: Mapping[str, tuple[int, ...]] = MappingProxyType(grids)
        self.sizes = {name: prod(grid) for name, grid in grids.items()}
        self.letters = _letters(tuple(grids))
        ends = accumulate(self.sizes.values())
        self.spans = {
            name: slice(end - self.sizes[name], end) for name, end in zip(grids, ends, strict=True)
        }

    @classmethod
    def of(cls, groups: "Tokens | int | Mapping[str, Grid]") -> "Tokens":
        """The same, whether they are `Tokens` already or not."""
        return groups if isinstance(groups, cls) else cls(groups)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def __eq__(self, other: object) -> bool:
        # Rows come in order, so order counts.
        return isinstance(other, Tokens) and [*self.grids.items()] == [*other.grids.items()]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        grids = {name: g[0] if len(g) == 1 else g for name, g in self.grids.items()}
        return f"Tokens({grids})"

    @property
    def unnamed(self) -> bool:
        """Whether these are tokens that nobody named or placed."""
        return self.grids == {UNNAMED: (len(self),)}

    def group(self, token: int) -> tuple[str, int]:
        """The group of a token, and its number there.

        Raises:
            ValueError: there is no such token.
        """
        check_number("Tokens", "token", token, len(self))
        name = next(name for name, span in self.spans.items() if token < span.stop)
        return name, token - self.spans[name].start

    def coordinates(self, token: int) -> tuple[int, ...]:
        """Where a token lies in its group's grid."""
        name, number = self.group(token)
        return tuple(map(int, np.unravel_index(number, self.grids[name])))

    def place(self, token: int) -> str:
        """A token in words."""
        name, number = self.group(token)
        if self.sizes[name] == 1:
            return name
        if len(self.grids[name]) == 1:
            return f"{'token' if name == UNNAMED else name} {number}"
        axes = AXES[len(self.grids[name])]
        where = (f"{a} {c}" for a, c in zip(axes, self.coordinates(token), strict=True))
        return f"{name} {number} ({', '.join(where)})"

    def query(self, token: int) -> str:
        """The same, with the number in the sequence before it, as in "query 21, video 5"."""
        place = self.place(token)
        return f"query {token}" if self.unnamed else f"query {token}, {place},"

    def numbers(self, tokens: Any) -> Tensor:
        """Numbers of tokens, a list or a tensor, as a tensor.

        Raises:
            ValueError: there is no such token, or these are no list.
        """
        listed = tokens.tolist() if hasattr(tokens, "tolist") else tokens
        if not isinstance(listed, Iterable):
            raise ValueError(f"Tokens: got {tokens!r}, wanted a list; use [{listed!r}]")
        listed = [*listed]
        for token in listed:
            check_number("Tokens", "token", token, len(self))
        return torch.tensor(listed, dtype=torch.int64)


def _letters(names: tuple[str, ...]) -> dict[str, str]:
    """A letter for each group: its first that is free, else one of no group, else a number."""
    spare = [c for c in ascii_uppercase if c not in "".join(names).upper()]
    letters: dict[str, str] = {}
    for number, name in enumerate(names):
        # Those alone that are one letter in capitals and in small: ß is SS, and 音 is both.
        own = (
            c.upper()
            for c in name
            if len({c.upper(), c.lower()}) == 2 == len(c.upper() + c.lower())
        )
        free = (c for c in (*own, *spare) if c not in letters.values())
        letters[name] = next(free, str(number))
    return letters


Layout = Tokens | int | Mapping[str, Grid]
