"""What the towers of the twin decoder are made of: three kinds of attention, and a feed-forward.

Each is normed before and after (Sandwich-LN; CogView: Ding et al. 2021, arXiv:2105.13290), so that
what it adds to a stream is as large in layer 48 as in the first. Each attention computes a whole
sequence (`forward`), or only its next tokens (`step`) from the keys and values that a `Cache` keeps
of those before.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avlib.attention import Attention, FeedForward, KeysValues
from avlib.neighbours import Neighbours


class Cache:
    """The keys and values that each attention of a model has made so far."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}
        self._read: dict[Neighbours, tuple[int, Tensor]] = {}

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._kept

    def size(self, module: nn.Module) -> int:
        """Of how many tokens it has keys."""
        return self._kept[module][2] if module in self else 0

    def add(self, module: nn.Module, new: KeysValues) -> None:
        """Put those of the next tokens behind the others."""
        start, count = self.size(module), new[0].shape[-2]
        end = start + count
        buffers = list(self._kept[module][:2]) if module in self else [n[..., :0, :] for n in new]
        for i, (buffer, part) in enumerate(zip(buffers, new, strict=True)):
            if end > buffer.shape[-2]:  # twice the room, so that each is copied about once
                buffers[i] = part.new_empty(*part.shape[:-2], 2 * end, part.shape[-1])
                buffers[i][..., :start, :] = buffer[..., :start, :]
            buffers[i][..., start:end, :] = part
        self._kept[module] = (buffers[0], buffers[1], end)

    def read_by(self, neighbours: Neighbours, token: int) -> Tensor:
        """`Neighbours.read_by`, which layers that share it ask one after another."""
        if neighbours not in self._read or self._read[neighbours][0] != token:
            self._read[neighbours] = token, neighbours.read_by(token)
        return self._read[neighbours][1]

    def __getitem__(self, module: nn.Module) -> KeysValues:
        key, value, end = self._kept[module]
        return key[..., :end, :], value[..., :end, :]


class NormedFeedForward(FeedForward):
    """`FeedForward` with a norm behind it."""

    def __init__(self, dim: int, *, mult: float, dropout: float) -> None:
        super().__init__(dim, mult=mult, dropout=dropout)
        self.out_norm = nn.LayerNorm(dim, bias=False)

    def forward(self, stream: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n d"]:
        """What to add to the stream."""
        return self.out_norm(super().forward(stream))

    def step(self, cache: Cache, stream: Float[Tensor, "*b n d"], **_: Any) -> Tensor:
        """The same: a token's own features are all that it needs."""
        return self(stream)


class _Reader(nn.Module):
    """An attention with a norm behind it."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.out_norm = nn.LayerNorm(dim, bias=False)

    def _query(self, stream: Tensor) -> Tensor:
        return self.attention.queries(self.attention.norm(stream))

    def _out(self, heads: Tensor) -> Tensor:
        return self.out_norm(self.attention.joined(heads))

    @property
    def _dropout(self) -> float:
        return self.attention.dropout if self.training else 0.0


class NearbyAttention(_Reader):
    """A tower reads itself, nearby and causally.

    Args:
        dim, heads, dim_head, dropout: see `Attention`.
        neighbours: who reads whom; layers may share it.
    """

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, dropout: float, neighbours: Neighbours
    ) -> None:
        super().__init__(dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.neighbours = neighbours

    def forward(self, stream: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """What each token has read; n is some whole frames."""
        normed = self.attention.norm(stream)
        query, (key, value) = self.attention.queries(normed), self.attention.keys_values(normed)
        return self._out(self.neighbours(query, key, value, self._dropout))

    def step(self, cache: Cache, stream: Float[Tensor, "b m d"], **_: Any) -> Tensor:
        """What the next m tokens have read."""
        first, normed = cache.size(self), self.attention.norm(stream)
        cache.add(self, self.attention.keys_values(normed))
        key, value = cache[self]
        read = [cache.read_by(self.neighbours, first + i) for i in range(stream.shape[1])]
        if len(read) == 1:
            key, value, seen = key[..., read[0], :], value[..., read[0], :], None
        else:
            seen = torch.zeros(len(read), key.shape[-2], dtype=torch.bool, device=key.device)
            for row, keys in zip(seen, read, strict=True):
                row[keys] = True
        query = self.attention.queries(normed)
        return self._out(F.scaled_dot_product_attention(query, key, value, seen))


class TextAttention(_Reader):
    """A tower reads the text, which comes normed. Where no word is real it reads zeros."""

    def forward(
        self,
        stream: Float[Tensor, "b n d"],
        *,
        context: Float[Tensor, "b words d"],
        context_mask: Bool[Tensor, "b words"] | None = None,
        mask: None = None,
    ) -> Float[Tensor, "b n d"]:
        """What each token has read.

        Args:
            stream: the tower.
            context: the encoded text.
            context_mask: True marks a real word.
            mask: the tower's own; a reversible block passes it, and it is not used.
        """
        return self._read(stream, self.attention.keys_values(context), context_mask)

    def step(
        self,
        cache: Cache,
        stream: Float[Tensor, "b m d"],
        *,
        context: Float[Tensor, "b words d"],
        context_mask: Bool[Tensor, "b words"] | None,
        **_: Any,
    ) -> Tensor:
        """What the next m tokens have read."""
        if self not in cache:
            cache.add(self, self.attention.keys_values(context))
        return self._read(stream, cache[self], context_mask)

    def _read(self, stream: Tensor, text: KeysValues, real: Tensor | None) -> Tensor:
        seen = None if real is None else real[:, None, None]
        query = self._query(stream)
        return self._out(F.scaled_dot_product_attention(query, *text, seen, self._dropout))


class OtherTowerAttention(_Reader):
    """A tower reads the other one, frame by frame, and a learned key that is always there.

    Equal to attention under `gallery.frame_chunks(…, null=True)`, frame by frame without a mask.

    Args:
        dim, heads, dim_head, dropout: see `Attention`.
        places, other_places: tokens of a frame in both towers.
        lag: the last frame that is read lies so far back.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        dropout: float,
        places: int,
        other_places: int,
        lag: int,
    ) -> None:
        super().__init__(dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.other_norm = nn.LayerNorm(dim, bias=False)
        self.null = nn.Parameter(torch.randn(2, heads, 1, dim_head))
        self.places, self.other_places, self.lag = places, other_places, lag

    def forward(
        self,
        stream: Float[Tensor, "b n d"],
        other: Float[Tensor, "b m d"],
        *,
        mask: None = None,
        context_mask: None = None,
    ) -> Float[Tensor, "b n d"]:
        """What each token has read; both towers have the same whole frames.

        The masks are those that a reversible block passes; they are not used.
        """
        kept = self._with_null(self.attention.keys_values(self.other_norm(other)))
        frames = enumerate(self._query(stream).split(self.places, -2))
        read = [self._read(query, kept, frame) for frame, query in frames]
        return self._out(torch.cat(read, -2))

    def remember(self, cache: Cache, other: Float[Tensor, "b m d"]) -> None:
        """Keep the keys and values of the other tower's next tokens."""
        new = self.attention.keys_values(self.other_norm(other))
        cache.add(self, new if self in cache else self._with_null(new))

    def step(self, cache: Cache, stream: Float[Tensor, "b m d"], *, frame: int, **_: Any) -> Tensor:
        """What the next m tokens have read, all of one frame."""
        if self in cache:
            kept = cache[self]
        else:  # nothing was written in the other tower
            kept = self._with_null(self.attention.keys_values(stream[:, :0]))
        return self._out(self._read(self._query(stream), kept, frame))

    def _read(self, query: Tensor, kept: KeysValues, frame: int) -> Tensor:
        count = 1 + max(0, frame + 1 - self.lag) * self.other_places
        key, value = (part[..., :count, :] for part in kept)
        return F.scaled_dot_product_attention(query, key, value, dropout_p=self._dropout)

    def _with_null(self, kept: KeysValues) -> KeysValues:
        key, value = (
            torch.cat([null.expand(len(part), -1, -1, -1), part], -2)
            for null, part in zip(self.null, kept, strict=True)
        )
        return key, value
