"""What follows from a mask: what can reach what through many layers, and what it costs."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from torch import Tensor

from avlib.checks import check_counts, is_whole
from avlib.named_tokens import Layout, Tokens
from avlib.token_masks import counted


class Cost(NamedTuple):
    """What a mask lets through, and what a kernel that skips empty blocks would run.

    Attributes:
        pairs: of (reader, key).
        of: all pairs.
        blocks: that hold some pair.
        of_blocks: all blocks.
        block: tokens along a block's side.
    """

    pairs: int
    of: int
    blocks: int
    of_blocks: int
    block: int

    def flops(self, dim: int) -> int:
        """Floating-point operations of one attention forward, see `Visibility.flops`."""
        return 4 * dim * self.pairs

    def __str__(self) -> str:
        share = 100 * self.pairs / self.of
        digits = 0 if share >= 10 or share == int(share) else 1
        said = f"{self.pairs:,} of {self.of:,} pairs, {share:.{digits}f} % of the FLOPs of full "
        said += "attention."
        if self.of_blocks == 1:
            return said
        return (
            f"{said} A kernel in blocks of {self.block} × {self.block} runs {self.blocks:,} of "
            f"{self.of_blocks:,}."
        )


def cost(visible: Bool[Tensor, "i j"], block: int = 128) -> Cost:
    """Count the pairs of a dense mask, and its blocks as FlexAttention's `BlockMask` does.

    Args:
        visible: True where i may read j.
        block: tokens along a block's side (FlexAttention's default is 128).

    Raises:
        TypeError, ValueError: the mask is no boolean tensor (n, m), or block no positive number.
    """
    _check_dense("cost", visible)
    n, m = visible.shape
    busy = pooled(visible, block)
    return Cost(int(visible.sum()), n * m, int(busy.sum()), busy.numel(), block)


def pooled(visible: Bool[Tensor, "i j"], block: int) -> Bool[Tensor, "I J"]:
    """Whether any pair of each block is True; blocks at the edges may be smaller."""
    check_counts("pooled", block=block)
    n, m = visible.shape
    block = min(block, max(n, m))
    padded = torch.zeros(-(-n // block) * block, -(-m // block) * block, dtype=torch.bool)
    padded[:n, :m] = visible
    return padded.unflatten(0, (-1, block)).unflatten(2, (-1, block)).any(3).any(1)


class Reach:
    """After how many layers something of one token can have reached another.

    The residual stream carries every token past every layer: after L layers token i can hold
    something of token j where (I + mask)^L is not zero. Layers are computed when asked for.

    Args:
        visible: the mask of every layer, (n, n), True where i may read j.

    Raises:
        TypeError, ValueError: the mask is no boolean tensor, or not square.
    """

    NEVER = 255

    def __init__(self, visible: Bool[Tensor, "n m"]) -> None:
        _check_dense("Reach", visible)
        n, m = visible.shape
        if n != m:
            raise ValueError(
                f"Reach: got a mask of {n} readers and {m} keys; layers stack where the tokens "
                "that are read are those that read"
            )
        # Rows as bits, so that a layer is an OR of the rows that are read; rows that read the same
        # hold the same.
        itself = np.eye(n, dtype=bool)
        rows, self._like = np.unique(_bits(visible.numpy() | itself), axis=0, return_inverse=True)
        self._reads = [np.flatnonzero(_booleans(row, n)) for row in rows]
        self._held = _bits(itself)
        self._first = torch.full((n, n), self.NEVER, dtype=torch.uint8)
        self._first.fill_diagonal_(0)
        self._layers, self.settled = 0, False

    def first(self, layers: int) -> UInt8[Tensor, "n n"]:
        """In which layer token i first holds something of j: 0 for itself, `NEVER` if not by then.

        Raises:
            ValueError: layers is no whole number from 0 to 254.
        """
        if not is_whole(layers) or not 0 <= int(layers) < self.NEVER:
            raise ValueError(f"Reach: got {layers!r} layers, wanted a whole number from 0 to 254")
        while self._layers < layers and not self.settled:
            held = [np.bitwise_or.reduce(self._held[keys]) for keys in self._reads]
            after = np.stack(held)[self._like]
            self.settled = bool((after == self._held).all())
            self._layers += not self.settled
            new = torch.from_numpy(_booleans(after & ~self._held, len(after)))
            self._first[new] = self._layers
            self._held = after
        return torch.where(self._first <= layers, self._first, self.NEVER)

    def after(self, layers: int) -> Bool[Tensor, "n n"]:
        """What each token can hold something of after so many layers."""
        return self.first(layers) < self.NEVER

    def mixing(self) -> str:
        """After how many layers nothing new arrives, and whether all have then met."""
        layers = 0
        while not self.settled and layers < self.NEVER - 1:
            layers += 1
            self.first(layers)
        n, layers = len(self._first), self._layers
        apart = int((self._first == self.NEVER).sum())
        after = f"after {layers} layer{'s' * (layers != 1)}"
        if apart == 0:
            return f"Everything has reached everything {after}."
        if not self.settled:
            return f"Something new may still arrive {after}."
        return f"Nothing new arrives {after}; {apart:,} of {n * n:,} pairs never meet."

    def sentence(self, token: int, layers: int, tokens: Layout) -> str:
        """What a token holds something of, and which groups have still seen nothing of others.

        Raises:
            ValueError: there is no such token, or the tokens are not those of the mask.
        """
        tokens = Tokens.of(tokens)
        if len(tokens) != len(self._first):
            raise ValueError(
                f"Reach: the mask has {len(self._first)} tokens, and {tokens} are {len(tokens)}; "
                "give those of the mask"
            )
        held = self.after(layers)
        after = f"After {layers} layer{'s' * (layers != 1)}"
        said = f"{after} {tokens.query(token)} holds something of {counted(held[token], tokens)}."
        blind = []
        for reader, rows in tokens.spans.items():
            unseen = [key for key, cols in tokens.spans.items() if not held[rows, cols].any()]
            if unseen:
                blind.append(f"{reader} tokens have still seen no {' and no '.join(unseen)}")
        return f"{said} {after} {'; '.join(blind)}." if blind else said


def _bits(rows: NDArray[np.bool_]) -> NDArray[np.uint64]:
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 64)))
    return np.packbits(padded, axis=1).view(np.uint64)


def _booleans(bits: NDArray[np.uint64], count: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits.view(np.uint8), axis=-1, count=count).astype(bool)


def _check_dense(where: str, visible: Any) -> None:
    if not isinstance(visible, Tensor):
        raise TypeError(
            f"{where}: got {type(visible).__name__}, wanted a boolean tensor (n, m), True where i "
            "may read j; as_mask(…).dense() makes one"
        )
    if visible.dtype != torch.bool or visible.ndim != 2 or 0 in visible.shape:
        raise ValueError(
            f"{where}: got {visible.dtype} of shape {tuple(visible.shape)}, wanted booleans "
            "(n, m); as_mask(…).dense() makes them"
        )
