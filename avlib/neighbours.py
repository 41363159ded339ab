"""Attention under a sparse causal mask that computes about what the mask lets through.

Queries that read nearly the same keys run together: their keys are gathered once, and one fused
attention goes over all runs. So scores and memory grow with the neighbourhood, and not with the
square of the sequence.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from avlib.token_masks import Mask

# Queries in a run: with more, keys are read in vain; with fewer, they are copied too often.
# `benchmarks/nuwa.py` has the times for others.
RUN = 32


class Neighbours(nn.Module):
    """Who reads whom in a sequence of frames, made ready for attention. It has no weights.

    Args:
        mask: over one group of (frames, 1, places of a frame); no token reads a later one.

    Attributes:
        places: tokens of a frame; a sequence may have fewer frames than the mask.
    """

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        ((self.frames, _, self.places),) = mask.readers.grids.values()
        with _disable_current_modes():  # `predict` makes models of fake tensors, with no numbers
            self._make(mask)

    def _make(self, mask: Mask) -> None:
        # The first place of a frame, its start token, reads much more than the others.
        groups = [_Runs(mask, 1, [0])]
        if self.places > 1:
            groups.append(_Runs(mask, RUN, range(1, self.places)))
        size = len(mask.readers)
        self.dense: Tensor | None
        if 2 * sum(runs.seen.numel() for runs in groups) > size**2:  # nothing to be saved
            groups = []
            self.register_buffer("dense", mask.dense(), persistent=False)
        else:
            self.dense = None
        self.groups: Iterable[_Runs] = nn.ModuleList(groups)  # type: ignore[assignment]

    def forward(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"],
        dropout: float = 0.0,
    ) -> Float[Tensor, "b h n d"]:
        """What each token reads; n is some whole frames."""
        size = query.shape[-2]
        if self.dense is not None:
            seen = self.dense[:size, :size]
            return F.scaled_dot_product_attention(query, key, value, seen, dropout)
        flat = [part.flatten(0, 1) for part in (query, key, value)]
        frames = size // self.places
        read = [runs(*flat, frames, dropout).unflatten(1, (frames, -1)) for runs in self.groups]
        return torch.cat(read, 2).flatten(1, 2).view_as(query)

    def read_by(self, token: int) -> Int[Tensor, " j"]:
        """The tokens that one reads, in order."""
        if self.dense is not None:
            return self.dense[token].nonzero()[:, 0]
        frame, place = divmod(token, self.places)
        runs = next(runs for runs in self.groups if place in runs.listed)
        return runs.read_by(frame, place)


class _Runs(nn.Module):
    """Some places of each frame, in runs of equal length; the last is filled with its last place.

    Attributes:
        queries: (frames · runs, length), tokens.
        keys: (frames · runs, keys), all that a run reads; filled with token 0.
        seen: (frames · runs, length, keys), which of them each query reads.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor

    def __init__(self, mask: Mask, length: int, places: Iterable[int]) -> None:
        super().__init__()
        ((frames, _, count),) = mask.readers.grids.values()
        self.listed = list(places)
        self.runs = -(-len(self.listed) // length)
        length = -(-len(self.listed) // self.runs)
        filled = self.listed + self.listed[-1:] * (self.runs * length - len(self.listed))
        first = torch.arange(frames)[:, None, None] * count
        queries = (first + torch.tensor(filled).view(self.runs, length)).flatten(0, 1)
        rows = [mask.rows(run) for run in queries]  # run by run: all at once would be n × n
        keys = [row.any(0).nonzero()[:, 0] for row in rows]
        most = max(map(len, keys))
        self.register_buffer("queries", queries, persistent=False)
        self.register_buffer("keys", torch.zeros(len(rows), most).long(), persistent=False)
        self.register_buffer("seen", torch.zeros(*queries.shape, most).bool(), persistent=False)
        for run, (row, read) in enumerate(zip(rows, keys, strict=True)):
            self.keys[run, : len(read)] = read
            self.seen[run, :, : len(read)] = row[:, read]

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, frames: int, dropout: float
    ) -> Float[Tensor, "bh n d"]:
        """What the listed places of the first frames read, frame by frame."""
        runs = slice(frames * self.runs)
        queries, keys = self.queries[runs], self.keys[runs]
        query, key, value = (
            part.index_select(1, tokens.flatten()).unflatten(1, tokens.shape).transpose(0, 1)
            for part, tokens in ((query, queries), (key, keys), (value, keys))
        )
        read = F.scaled_dot_product_attention(query, key, value, self.seen[runs][:, None], dropout)
        by_frame = read.transpose(0, 1).flatten(1, 2).unflatten(1, (frames, -1))
        return by_frame[:, :, : len(self.listed)].flatten(1, 2)

    def read_by(self, frame: int, place: int) -> Int[Tensor, " j"]:
        """The tokens that one place of a frame reads."""
        run, slot = divmod(self.listed.index(place), self.queries.shape[1])
        run += frame * self.runs
        return self.keys[run][self.seen[run, slot]]
