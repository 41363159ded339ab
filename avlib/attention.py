"""Attention between groups of tokens, and the feed-forward block.

Every stream stays a tensor of its own. A reader group attends, with no mask, to exactly the keys
that it may read, so a hidden token is never multiplied by zero: it is never touched.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avlib.masks import Visibility

Streams = Mapping[str, Tensor]
KeysValues = tuple[Float[Tensor, "*#b h _n _e"], Float[Tensor, "*#b h _n _e"]]


def attend(
    query: Mapping[str, Float[Tensor, "*b h _i d"]],
    key: Mapping[str, Float[Tensor, "*#b h _j d"]],
    value: Mapping[str, Float[Tensor, "*#b h _j d"]],
    visibility: Visibility,
    *,
    key_masks: Mapping[str, Bool[Tensor, "*#b _j"]] | None = None,
    dropout: float = 0.0,
) -> dict[str, Float[Tensor, "*b h _i d"]]:
    """Scaled dot-product attention for each reader group over the key groups that it reads.

    Equal to `scaled_dot_product_attention` over all tokens with `visibility.dense(…)` as mask, but
    no such mask is built, and what a group may not read cannot touch it, NaN included.

    A batch may have several axes, and along each a key group may have size 1: its keys are then
    shared by all the queries there, and not copied for each. So queries of K×L pairs of clips read
    keys of batches (K, 1) and (1, L).

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
    if not _differ_in_tokens_alone(query, key, value):
        shapes = [tuple(t.shape) for t in (*query.values(), *key.values(), *value.values())]
        raise ValueError(
            f"attend: got shapes {shapes}, wanted (batch, heads, tokens, features) with only the "
            "tokens differing between groups; split heads the same way everywhere"
        )
    key_masks = key_masks or {}
    for name, real in key_masks.items():
        wanted_shape = (*key[name].shape[:-3], key[name].shape[-2]) if name in key else None
        if real.dtype != torch.bool or tuple(real.shape) != wanted_shape:
            raise ValueError(
                f"attend: key mask {name!r} is {real.dtype} of shape {tuple(real.shape)}, wanted "
                f"a boolean (batch, tokens) for one of {list(key)}; True marks a real token"
            )
    out = {}
    for reader, names in visibility.reads.items():
        keys, values = ([part[name] for name in names] for part in (key, value))
        # With several batch axes always: how a pair is computed depends on no other pair.
        if query[reader].ndim > 4 or any(len(part) != len(query[reader]) for part in keys):
            masks = [key_masks.get(name) for name in names]
            out[reader] = _attend_in_parts(query[reader], keys, values, masks, dropout)
            continue
        mask = None
        if any(name in key_masks for name in names):
            parts = [
                key_masks.get(name, torch.ones_like(key[name][..., 0, :, 0], dtype=torch.bool))
                for name in names
            ]
            mask = torch.cat(parts, -1)[..., None, None, :]
        out[reader] = F.scaled_dot_product_attention(
            query[reader], _join(keys), _join(values), mask, dropout
        )
    return out


def _differ_in_tokens_alone(query: Streams, key: Streams, value: Streams) -> bool:
    """Whether all shapes agree but for the tokens, and but for keys that a batch shares."""
    *batch, heads, _, features = next(iter(query.values())).shape
    rest = [*batch, heads], features
    for shape in (part.shape for part in query.values()):
        if ([*shape[:-2]], shape[-1]) != rest:
            return False
    for name, shape in ((name, part.shape) for name, part in key.items()):
        filled = [b if n == 1 else n for n, b in zip(shape[:-3], batch, strict=False)]
        if shape != value[name].shape or ([*filled, *shape[-3:-2]], shape[-1]) != rest:
            return False
    return True


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -2)


def _attend_in_parts(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    dropout: float,
) -> Tensor:
    """One softmax over parts whose batches differ: softmax(q·kᵀ/√d)·v, summed part by part.

    `einsum` makes rows of one matrix product of all queries that share a part, so its keys are read
    once for all of them. The scores are held in float32 at least, as fused kernels hold them, for
    which keys of less precision are copied.
    """
    scale = query.shape[-1] ** -0.5
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        scaled = query.to(dtype) * scale
        scores = [torch.einsum("...id,...jd->...ij", scaled, key.to(dtype)) for key in keys]
        scores = [
            part if mask is None else part.masked_fill(~mask[..., None, None, :], -torch.inf)
            for part, mask in zip(scores, masks, strict=True)
        ]
        highest = reduce(torch.maximum, [part.detach().amax(-1, keepdim=True) for part in scores])
        highest = highest.clamp(min=torch.finfo(dtype).min)  # -inf where all keys are padding
        weights = [part.sub_(highest).exp_() for part in scores]
        # The highest score weighs 1, so the total is at least that, or 0 over padding alone.
        total = reduce(torch.add, [part.sum(-1, keepdim=True) for part in weights]).clamp(min=1)
        if dtype != query.dtype:  # a sum of many values in half precision could overflow
            weights, total = [part / total for part in weights], torch.ones_like(total)
        read = [
            torch.einsum("...ij,...jd->...id", F.dropout(part, dropout).to(value.dtype), value)
            for part, value in zip(weights, values, strict=True)
        ]
        return (reduce(torch.add, read) / total).to(query.dtype)


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
        streams: Mapping[str, Float[Tensor, "*b _i d"]],
        visibility: Visibility,
        *,
        kept: Mapping[str, KeysValues] | None = None,
        key_masks: Mapping[str, Bool[Tensor, "*#b _j"]] | None = None,
    ) -> dict[str, Float[Tensor, "*b _i d"]]:
        """What each stream has read, to be added to it.

        Args:
            streams: the readers, one tensor a group.
            visibility: who reads whom.
            kept: key groups whose keys and values were made before, by `keys_values`; the others
                are made from the normed streams.
            key_masks: for key groups with padding; True marks a real token.
        """
        normed = {name: self.norm(stream) for name, stream in streams.items()}
        query = {name: self.queries(stream) for name, stream in normed.items()}
        read = dict(kept or {})
        for name, stream in normed.items():
            if name in visibility.keys and name not in read:
                read[name] = self.keys_values(stream)
        key, value = ({name: both[i] for name, both in read.items()} for i in (0, 1))
        dropout = self.dropout if self.training else 0.0
        answers = attend(query, key, value, visibility, key_masks=key_masks, dropout=dropout)
        return {name: self.joined(heads) for name, heads in answers.items()}

    def weights(
        self,
        query: Float[Tensor, "*b i d"],
        visibility: Visibility,
        reader: str,
        *,
        head: int | None = None,
        streams: Streams | None = None,
        kept: Mapping[str, KeysValues] | None = None,
        key_masks: Mapping[str, Bool[Tensor, "*b _n"]] | None = None,
    ) -> dict[str, Float[Tensor, "*b _h i _j"]]:
        """How much some tokens of a reader group weigh each key, to look at: softmax(q·kᵀ/√d).

        Args:
            query: those tokens, as they enter `forward`.
            visibility: what the group reads.
            reader: its name.
            head: the only one to compute, its axis then has size 1; by default all.
            streams, kept, key_masks: as for `forward`.

        Returns:
            One tensor for each key group that it reads; over all of them a row sums to 1, or to 0
            where all keys are padding.

        Raises:
            ValueError: there is no such reader, or a key group that it reads is not given.
        """
        given = {*(streams or {}), *(kept or {})}
        if reader not in visibility.reads or not given.issuperset(visibility.reads[reader]):
            raise ValueError(
                f"Attention.weights: got reader {reader!r} and keys of {sorted(given)}, wanted one "
                f"of {list(visibility.readers)} and all that it reads; give them as streams or kept"
            )
        names, scores = visibility.reads[reader], []
        heads = slice(None) if head is None else slice(head, head + 1)
        asked = self.queries(self.norm(query))[..., heads, :, :]
        for name in names:
            if kept is not None and name in kept:
                key, _ = kept[name]
            else:
                key, _ = self.keys_values(self.norm((streams or {})[name]))
            score = asked @ key[..., heads, :, :].mT * key.shape[-1] ** -0.5
            if key_masks and name in key_masks:
                score = score.masked_fill(~key_masks[name][..., None, None, :], -torch.inf)
            scores.append(score)
        joined = torch.cat(scores, -1)
        padding = joined.isneginf().all(-1, keepdim=True)
        weights = joined.softmax(-1).masked_fill(padding, 0)
        parts = weights.split([score.shape[-1] for score in scores], -1)
        return dict(zip(names, parts, strict=True))

    def queries(self, stream: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b h n e"]:
        """The queries of tokens, which are taken as they are: norm them before."""
        return self._split(self.to_q(stream))

    def keys_values(self, stream: Float[Tensor, "*b n d"]) -> KeysValues:
        """The keys and values of tokens, which are taken as they are: norm them before."""
        key, value = self.to_kv(stream).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def joined(self, heads: Float[Tensor, "*b h n e"]) -> Float[Tensor, "*b n d"]:
        """What all heads have read, as features of a token again."""
        return self.to_out(heads.transpose(-3, -2).flatten(-2))

    def _split(self, features: Tensor) -> Tensor:
        # einops would take as long as the smallest operations of a model that writes.
        return features.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


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

    def forward(self, stream: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n d"]:
        """What to add to the stream."""
        features, gate = self.to_inner(self.norm(stream)).chunk(2, dim=-1)
        return self.to_out(self.dropout(F.gelu(gate) * features))
