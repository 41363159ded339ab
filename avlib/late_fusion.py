"""Streams computed once and fused later: what is kept of a stream, and all pairs of many.

Zorro's modality streams never read the fusion stream, so they can be computed before anyone knows
what they will be fused with. A few fusion tokens are then all that a pair costs: K sounds and L
films need K + L encodings instead of K·L joint passes, and the result is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from avlib.attention import Attention, KeysValues
from avlib.checks import check_counts, check_indices
from avlib.embedding import Lengths
from avlib.layer import halved, mean_of_halves
from avlib.masks import Visibility
from avlib.reversible import ReversibleSequence
from avlib.tokens import TokenType


@dataclass(frozen=True, eq=False)
class StreamCache:
    """All that others read of a modality's streams, for a batch of clips.

    `cache[3:5]`, `cache[7]` and `cache[[2, 0]]` are caches of those clips; a slice shares memory
    with the whole, `StreamCache.cat([cache[3:5]])` does not. `torch.save` writes a cache, and it is
    read with `weights_only=True`.

    Args:
        name: of the modality.
        layers: its keys and values in each layer.
        readout: the same in the readout.
        real: which tokens are real, (batch, tokens); None where there is no padding.
        reversible: whether a reversible model made it.
    """

    name: str
    layers: tuple[KeysValues, ...]
    readout: KeysValues
    real: Tensor | None
    reversible: bool = False

    @property
    def batch(self) -> tuple[int, ...]:
        """Axes before (heads, tokens, features): the number of clips."""
        return tuple(self.readout[0].shape[:-3])

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a model must share: (layers, heads, features, reversible, precision, device)."""
        key = self.readout[0]
        size = len(self.layers), key.shape[-3], key.shape[-1]
        return *size, self.reversible, key.dtype, key.device

    @property
    def num_bytes(self) -> int:
        """What the cache holds."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def __len__(self) -> int:
        return self.batch[0]

    def __getitem__(self, clips: int | slice | Sequence[int] | Tensor) -> "StreamCache":
        if isinstance(clips, tuple | str) or clips is None:
            raise TypeError(
                f"StreamCache: got the index {clips!r}, wanted clips; use a number, a slice or a "
                "list"
            )
        kept: Any = [clips] if isinstance(clips, int) else clips
        return self.map(lambda tensor: tensor[kept])

    @staticmethod
    def cat(caches: Sequence["StreamCache"]) -> "StreamCache":
        """One cache of the clips of several, for clips that were encoded a few at a time.

        Raises:
            TypeError, ValueError: no caches are given, or they differ in modality, tokens, padding,
                precision or device.
        """
        caches = list(caches)
        _check_type("StreamCache.cat", caches)
        alike = {
            (cache.name, cache.readout[0].shape[-2], cache.real is None, *cache.kind)
            for cache in caches
        }
        if len(alike) != 1:
            raise ValueError(
                f"StreamCache.cat: got {sorted(map(str, alike))} as (modality, tokens, unpadded, "
                "layers, heads, features, reversible, precision, device), wanted one kind; encode "
                "all clips with one model at one length, with lengths"
            )
        tensors = [list(cache._tensors()) for cache in caches]
        joined = iter([torch.cat(parts) for parts in zip(*tensors, strict=True)])
        return caches[0].map(lambda _: next(joined))

    def _tensors(self) -> list[Tensor]:
        pairs = [tensor for pair in (*self.layers, self.readout) for tensor in pair]
        return pairs if self.real is None else [*pairs, self.real]

    def map(self, change: Callable[[Tensor], Tensor]) -> "StreamCache":
        """The cache with each of its tensors changed, as by `lambda tensor: tensor.to("cuda")`."""
        layers = tuple((change(key), change(value)) for key, value in self.layers)
        readout = change(self.readout[0]), change(self.readout[1])
        real = None if self.real is None else change(self.real)
        return StreamCache(self.name, layers, readout, real, self.reversible)


torch.serialization.add_safe_globals([StreamCache])  # it holds names and tensors alone


class LateFusion(nn.Module):
    """What makes a `Zorro` able to compute its streams one by one and to fuse them afterwards."""

    layers: Any
    trunk: list[Visibility]
    reversible: bool
    return_token_types: tuple[TokenType, ...]
    fusion_tokens: Tensor
    norm: nn.Module
    pool: Attention
    _embed: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]
    _readable: Callable[..., Visibility]
    _pool: Callable[..., Tensor]

    @torch.no_grad()
    def encode(
        self,
        *,
        audio: Float[Tensor, "b samples"] | None = None,
        video: Float[Tensor, "b c t y x"] | None = None,
        audio_lengths: Lengths = None,
        video_lengths: Lengths = None,
    ) -> StreamCache:
        """Compute one modality's stream and keep what others read of it, to be fused later.

        For inference: nothing has a gradient. The arguments are those of `forward`, of one
        modality. A clip's cache holds its tokens' keys and values in each layer and in the readout:
        2 · (depth + 1) · tokens · heads · dim_head numbers.

        Raises:
            ValueError: as `forward`; both modalities are given, or none; the model is in training
                mode; or in some layer the stream reads another, so that it cannot be computed
                alone.
        """
        self._check_eval("encode")
        if (audio is None) == (video is None):
            raise ValueError(
                f"Zorro.encode: got {'neither' if audio is None else 'both'} of audio and video, "
                "wanted one; encode each by itself, fuse(…) brings them together"
            )
        streams, key_masks = self._embed(audio, video, audio_lengths, video_lengths)
        ((name, tokens),) = streams.items()
        for index, trunk in enumerate(self.trunk):
            if trunk.reads[name] != (name,):
                raise ValueError(
                    f"Zorro.encode: in layer {index} {name} reads {', '.join(trunk.reads[name])}, "
                    f"wanted {name} alone; a stream that reads others needs the joint pass, "
                    "model(…)"
                )
        return self._stream(name, tokens, key_masks.get(name))

    @torch.no_grad()
    def fuse(
        self, *caches: StreamCache, return_token_indices: Sequence[int] | None = None
    ) -> Float[Tensor, "b returned d"]:
        """What `forward` gives for clips whose streams were encoded before, to rounding.

        Only the fusion tokens and the readout are computed.

        Args:
            caches: of audio, of video or of both, in any order, for the same clips.
            return_token_indices: as in `forward`.

        Raises:
            TypeError, ValueError: no caches, two of one modality, caches of a model of another size
                or kind, of another precision or device, or of unlike batches; indices as in
                `forward`; the model is in training mode. (Caches of the same model with other
                weights cannot be told apart.)
        """
        self._check_caches("fuse", caches)
        if len({cache.batch for cache in caches}) > 1:
            raise ValueError(
                f"Zorro.fuse: the caches hold {' and '.join(str(len(c)) for c in caches)} clips, "
                "wanted the same clips; fuse_pairs(…) takes each with each"
            )
        return self._fuse(caches, return_token_indices)

    @torch.no_grad()
    def fuse_pairs(
        self,
        first: StreamCache,
        second: StreamCache,
        *,
        score: Callable[[Tensor], Tensor] = lambda out: out,
        return_token_indices: Sequence[int] | None = None,
        pairs_at_once: int = 64,
        progress: bool = True,
    ) -> Shaped[Tensor, "k l *score"]:
        """Fuse each clip of one cache with each clip of another.

        All pairs that share a clip read its one copy of keys and values. Beyond the caches and what
        comes back, memory is that of `pairs_at_once` pairs: about
        num_fusion_tokens · (heads · all tokens + 10 · dim) numbers each, and in half precision a
        float32 copy of the keys of one layer for the clips at hand.

        Args:
            first, second: an audio and a video cache, in either order, of K and L clips.
            score: what to keep of each pair: from (k, l, returned, dim) to (k, l, …). All of it by
                default.
            return_token_indices: as in `forward`.
            pairs_at_once: the more, the fewer times the caches are read.
            progress: show a bar.

        Returns:
            The scores of clip i of the first cache with clip j of the second, at [i, j].

        Raises:
            ValueError: as `fuse`; score does not keep the first two axes.
        """
        check_counts("Zorro.fuse_pairs", pairs_at_once=pairs_at_once)
        self._check_caches("fuse_pairs", (first, second))

        from tqdm.auto import tqdm  # not before it is needed: in a notebook it loads ipywidgets

        # A square reads the fewest clips for its pairs.
        rows = max(1, min(len(first), isqrt(pairs_at_once)))
        columns = max(1, min(len(second), pairs_at_once // rows))
        rows = max(1, min(len(first), pairs_at_once // columns))
        out: Tensor | None = None
        with tqdm(total=len(first) * len(second), unit="pair", disable=not progress) as bar:
            for i, j in product(range(0, len(first), rows), range(0, len(second), columns)):
                one = first[i : i + rows].map(lambda tensor: tensor[:, None])
                other = second[j : j + columns].map(lambda tensor: tensor[None])
                scores = score(self._fuse((one, other), return_token_indices))
                shape = one.batch[0], other.batch[1]
                if not isinstance(scores, Tensor) or tuple(scores.shape[:2]) != shape:
                    made = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores)
                    raise ValueError(
                        f"Zorro.fuse_pairs: score made {made} of {shape} pairs; return a tensor "
                        "and keep the first two axes, as in score=lambda out: out[:, :, 0]"
                    )
                if out is None:
                    out = scores.new_empty(len(first), len(second), *scores.shape[2:])
                if (scores.dtype, scores.shape[2:]) != (out.dtype, out.shape[2:]):
                    raise ValueError(
                        f"Zorro.fuse_pairs: score made {scores.dtype} {tuple(scores.shape[2:])} "
                        f"of a pair, and of those before {out.dtype} {tuple(out.shape[2:])}; "
                        "return the same for all"
                    )
                out[i : i + rows, j : j + columns] = scores
                bar.update(shape[0] * shape[1])
        assert out is not None
        return out

    def _fuse(
        self, caches: Sequence[StreamCache], return_token_indices: Sequence[int] | None
    ) -> Tensor:
        asked = check_indices(return_token_indices, len(self.return_token_types))
        readout = self._readable(asked, (*(cache.name for cache in caches), "fusion"))
        batch = torch.broadcast_shapes(*(cache.batch for cache in caches))
        tokens = self.fusion_tokens.repeat(*batch, 1, 1)
        there = (*caches, self._stream("fusion", tokens, None, caches))
        read = {cache.name: cache.readout for cache in there}
        return self._pool(read, _key_masks(there), asked, readout, batch)

    def _stream(
        self, name: str, tokens: Tensor, real: Tensor | None, caches: Sequence[StreamCache] = ()
    ) -> StreamCache:
        """One stream through all layers, reading itself and, as the rules say, those of caches."""
        names = (name, *(cache.name for cache in caches))
        key_masks = _key_masks(caches) if real is None else {name: real}
        state = halved({name: tokens}) if self.reversible else {name: tokens}
        layers = []
        for index, (layer, trunk) in enumerate(zip(self.layers, self.trunk, strict=True)):
            rules = trunk.only(names, readers=[name])
            read_from = state[f"{name} 2" if self.reversible else name]
            layers.append(_keys_values(layer.attention, layer.attention.norm(read_from)))
            kept = {cache.name: cache.layers[index] for cache in caches} | {name: layers[-1]}
            if self.reversible:
                state = ReversibleSequence([layer.couplings(rules, key_masks, kept)])(state)
            else:
                state = layer(state, rules, key_masks, kept)
        stream = (mean_of_halves(state) if self.reversible else state)[name]
        readout = _keys_values(self.pool, self.norm(stream))
        return StreamCache(name, tuple(layers), readout, real, self.reversible)

    def _check_eval(self, where: str) -> None:
        if any(module.training for module in self.modules()):
            raise ValueError(
                f"Zorro.{where}: the model is in training mode, in which dropout would differ "
                "between what is kept and what is fused; call model.eval() first"
            )

    def _check_caches(self, where: str, caches: Sequence[StreamCache]) -> None:
        """Refuse no caches, two of one modality, and those of a model of another kind."""
        self._check_eval(where)
        where = f"Zorro.{where}"
        _check_type(where, caches)
        names = [cache.name for cache in caches]
        if len(set(names)) != len(names) or not names:
            raise ValueError(
                f"{where}: got caches of {names}, wanted different modalities; use "
                "encode(audio=…) and encode(video=…)"
            )
        weight, heads = self.pool.to_kv.weight, self.pool.heads
        dtype, device = weight.dtype, weight.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        features = len(weight) // 2 // heads
        wanted = len(self.layers), heads, features, self.reversible, dtype, device
        for cache in caches:
            if len(cache.batch) != 1 or len(cache) == 0:
                raise ValueError(
                    f"{where}: the {cache.name} cache has the batch {cache.batch}, wanted one axis "
                    "with at least one clip; encode some, or cut less away"
                )
            if cache.kind != wanted:
                raise ValueError(
                    f"{where}: the {cache.name} cache has {cache.kind} as (layers, heads, "
                    f"features, reversible, precision, device), this model has {wanted}; encode "
                    "the clips with this model, and both under the same autocast"
                )


def _check_type(where: str, caches: Sequence[Any]) -> None:
    for cache in caches:
        if not isinstance(cache, StreamCache):
            raise TypeError(
                f"{where}: got a {type(cache).__name__}, wanted caches; make them with "
                "encode(audio=…) and encode(video=…)"
            )


def _keys_values(attention: Attention, normed: Tensor) -> KeysValues:
    """Keys and values in one piece each: many queries are going to read them."""
    key, value = attention.keys_values(normed)
    return key.contiguous(), value.contiguous()


def _key_masks(caches: Sequence[StreamCache]) -> dict[str, Tensor]:
    return {cache.name: cache.real for cache in caches if cache.real is not None}
