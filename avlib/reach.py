"""What follows from a mask: what can reach what through many layers, and what it costs."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from avlib.named_tokens import Tokens
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
        return (
            f"{self.pairs:,} of {self.of:,} pairs, {share:.{digits}f} % of the FLOPs of full "
            f"attention. A kernel in blocks of {self.block} × {self.block} runs "
            f"{self.blocks:,} of {self.of_blocks:,}."
        )


def cost(visible: Bool[Tensor, "i j"], block: int = 128) -> Cost:
    """Count the pairs of a dense mask, and its blocks as FlexAttention's `BlockMask` does.

    Args:
        visible: True where i may read j.
        block: tokens along a block's side (FlexAttention's default is 128).
    """
    n, m = visible.shape
    busy = pooled(visible, block)
    return Cost(int(visible.sum()), n * m, int(busy.sum()), busy.numel(), block)


def pooled(visible: Bool[Tensor, "i j"], block: int) -> Bool[Tensor, "I J"]:
    """Whether any pair of each block is True; blocks at the edges may be smaller."""
    n, m = visible.shape
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
        ValueError: the mask is not square.
    """

    NEVER = 255

    def __init__(self, visible: Bool[Tensor, "n m"]) -> None:
        n, m = visible.shape
        if n != m:
            raise ValueError(
                f"Reach: got a mask of {n} readers and {m} keys; layers stack where the tokens "
                "that are read are those that read"
            )
        step = visible | torch.eye(n, dtype=torch.bool)
        self._step = step.float()
        self._first = torch.full((n, n), self.NEVER, dtype=torch.uint8)
        self._first.fill_diagonal_(0)
        self._layers, self.settled = 0, False

    def first(self, layers: int) -> Int[Tensor, "n n"]:
        """In which layer token i first holds something of j: 0 for itself, `NEVER` if not by then.

        Raises:
            ValueError: layers is no whole number from 0 to 254.
        """
        if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers < self.NEVER:
            raise ValueError(f"Reach: got {layers!r} layers, wanted a whole number from 0 to 254")
        while self._layers < layers and not self.settled:
            held = self._first < self.NEVER
            after = (self._step @ held.float()) > 0
            self.settled = bool((after == held).all())
            self._layers += not self.settled
            self._first[after & ~held] = self._layers
        return torch.where(self._first <= layers, self._first, self.NEVER)

    def after(self, layers: int) -> Bool[Tensor, "n n"]:
        """What each token can hold something of after so many layers."""
        return self.first(layers) < self.NEVER

    def sentence(self, token: int, layers: int, tokens: Tokens) -> str:
        """What a token holds something of, and which groups have still seen nothing of others."""
        held = self.after(layers)
        after = f"After {layers} layer{'s' * (layers != 1)}"
        said = f"{after} {tokens.query(token)} holds something of {counted(held[token], tokens)}."
        blind = []
        for reader, rows in tokens.spans.items():
            unseen = [key for key, cols in tokens.spans.items() if not held[rows, cols].any()]
            if unseen:
                blind.append(f"{reader} tokens have still seen no {' and no '.join(unseen)}")
        return f"{said} {after} {'; '.join(blind)}." if blind else said
