"""Attention between groups of tokens, and the feed-forward block.

Every stream stays a tensor of its own. A reader group attends, with no mask, to exactly the keys
that it may read, so a hidden token is never multiplied by zero: it is never touched.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avlib.masks import Visibility

Streams = Mapping[str, Tensor]


def attend(
    query: Mapping[str, Float[Tensor, "b h _i d"]],
    key: Mapping[str, Float[Tensor, "b h _j d"]],
    value: Mapping[str, Float[Tensor, "b h _j d"]],
    visibility: Visibility,
    *,
    key_masks: Mapping[str, Bool[Tensor, "b _j"]] | None = None,
    dropout: float = 0.0,
) -> dict[str, Float[Tensor, "b h _i d"]]:
    """Scaled dot-product attention for each reader group over the key groups that it reads.

    Equal to `scaled_dot_product_attention` over all tokens with `visibility.dense(…)` as mask, but
    no such mask is built, and what a group may not read cannot touch it, NaN included.

    Args:
        query: one tensor for each reader group.
        key, value: one tensor for each key group. Where a key is padding its value must still be
            finite: 0 · NaN is NaN.
        visibility: readers are the names in `query`, keys those in `key`.
        key_masks: for key groups that hold padding; True marks a real token. A reader whose keys
            are all padding gets zeros.
        dropout: probability of dropping an attention weight.

    Returns:
        One tensor for each reader group, shaped like its query.

    Raises:
        ValueError: the names differ from the visibility's, the shapes do not fit together, or a
            key mask fits no key group.
    """
    for kind, wanted, got in (
        ("query", visibility.readers, query),
        ("key", visibility.keys, key),
        ("value", visibility.keys, value),
    ):
        if set(wanted) != set(got):
            raise ValueError(
                f"attend: {kind} has groups {sorted(got)}, the visibility names {sorted(wanted)}; "
                "leave groups out of both with visibility.only(…)"
            )
    tensors = [*query.values(), *key.values(), *value.values()]
    alike = {(tensor.shape[:-2], tensor.shape[-1]) for tensor in tensors}
    if len(alike) > 1 or any(key[name].shape != value[name].shape for name in key):
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(
            f"attend: got shapes {shapes}, wanted (batch, heads, tokens, features) with only the "
            "tokens differing between groups; split heads the same way everywhere"
        )
    key_masks = key_masks or {}
    for name, real in key_masks.items():
        wanted_shape = (*key[name].shape[:1], key[name].shape[2]) if name in key else None
        if real.dtype != torch.bool or tuple(real.shape) != wanted_shape:
            raise ValueError(
                f"attend: key mask {name!r} is {real.dtype} of shape {tuple(real.shape)}, wanted "
                f"a boolean (batch, tokens) for one of {list(key)}; True marks a real token"
            )
    out = {}
    for reader, names in visibility.reads.items():
        mask = None
        if any(name in key_masks for name in names):
            parts = [
                key_masks.get(name, torch.ones_like(key[name][:, 0, :, 0], dtype=torch.bool))
                for name in names
            ]
            mask = torch.cat(parts, -1)[:, None, None]
        out[reader] = F.scaled_dot_product_attention(
            query[reader], _join(key, names), _join(value, names), mask, dropout
        )
    return out


def _join(streams: Streams, names: Sequence[str]) -> Tensor:
    return streams[names[0]] if len(names) == 1 else torch.cat([streams[n] for n in names], -2)


class Attention(nn.Module):
    """Pre-norm multi-head attention over streams, as in `zorro-pytorch`: no biases.

    All groups share the weights; the Visibility alone tells them apart.

    Args:
        dim: features of a token.
        heads, dim_head: heads and features of each.
        dropout: probability of dropping an attention weight while training.
    """

    def __init__(
        self, dim: int, *, heads: int = 8, dim_head: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim, bias=False)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, heads * dim_head * 2, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(
        self,
        streams: Mapping[str, Float[Tensor, "b _i d"]],
        visibility: Visibility,
        *,
        context: Mapping[str, Float[Tensor, "b _j d"]] | None = None,
        key_masks: Mapping[str, Bool[Tensor, "b _j"]] | None = None,
    ) -> dict[str, Float[Tensor, "b _i d"]]:
        """What each stream has read, to be added to it.

        Args:
            streams: the readers, one tensor a group.
            visibility: who reads whom.
            context: the key groups, read as they are; by default the normed streams themselves.
            key_masks: for key groups with padding; True marks a real token.
        """
        normed = {name: self.norm(stream) for name, stream in streams.items()}
        query, key, value = {}, {}, {}
        for name, stream in normed.items():
            query[name] = self._split(self.to_q(stream))
        for name, stream in (normed if context is None else context).items():
            k, v = self.to_kv(stream).chunk(2, dim=-1)
            key[name], value[name] = self._split(k), self._split(v)
        dropout = self.dropout if self.training else 0.0
        read = attend(query, key, value, visibility, key_masks=key_masks, dropout=dropout)
        return {
            name: self.to_out(rearrange(heads, "b h n d -> b n (h d)"))
            for name, heads in read.items()
        }

    def _split(self, features: Tensor) -> Tensor:
        return rearrange(features, "b n (h d) -> b h n d", h=self.heads)


class FeedForward(nn.Module):
    """Pre-norm feed-forward with a GELU gate (GEGLU; Shazeer 2020, arXiv:2002.05202, eq. 6).

    Args:
        dim: features of a token.
        mult: the inner size is int(dim · mult · 2/3): with the gate's weights, as many parameters
            as an ungated block of dim · mult.
        dropout: probability of dropping an inner feature while training.
    """

    def __init__(self, dim: int, *, mult: float = 4, dropout: float = 0.0) -> None:
        super().__init__()
        inner = int(dim * mult * 2 / 3)
        self.norm = nn.LayerNorm(dim, bias=False)
        self.to_inner = nn.Linear(dim, inner * 2, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, stream: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """What to add to the stream."""
        features, gate = self.to_inner(self.norm(stream)).chunk(2, dim=-1)
        return self.to_out(self.dropout(F.gelu(gate) * features))
