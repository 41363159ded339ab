"""Zorro: one transformer, streams that stay pure, and a fusion stream that reads them all.

Recasens et al. 2023, "Zorro: the masked multimodal transformer", arXiv:2301.09595.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from functools import reduce
from operator import matmul
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from avlib.attention import Attention, FeedForward
from avlib.checks import (
    check_audio,
    check_batch,
    check_indices,
    check_lengths,
    check_positive,
    check_rules,
    check_video,
)
from avlib.coupling import Coupling
from avlib.masks import Visibility, zorro_readout, zorro_trunk
from avlib.published import translate
from avlib.reversible import ReversibleSequence
from avlib.tokens import (
    FactorisedPositions,
    LogMelSpectrogram,
    Pair,
    TokenType,
    pair,
    patchify_audio,
    patchify_video,
    triple,
)


class Layer(nn.Module):
    """One masked layer: attention, then feed-forward, each added to its stream."""

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, ff_mult: float, dropout: float
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.feed_forward = FeedForward(dim, mult=ff_mult, dropout=dropout)

    def forward(
        self,
        streams: Mapping[str, Float[Tensor, "b _n d"]],
        visibility: Visibility,
        key_masks: Mapping[str, Bool[Tensor, "b _n"]] | None = None,
    ) -> dict[str, Float[Tensor, "b _n d"]]:
        """The streams after this layer, each the shape it had."""
        read = self.attention(streams, visibility, key_masks=key_masks)
        streams = {name: stream + read[name] for name, stream in streams.items()}
        return {name: stream + self.feed_forward(stream) for name, stream in streams.items()}

    def couplings(
        self,
        names: Sequence[str],
        visibility: Visibility,
        key_masks: Mapping[str, Bool[Tensor, "b _n"]] | None = None,
    ) -> list[Coupling]:
        """The same layer over two halves of each stream, "audio 1" and "audio 2".

        First half += attention(second half), for all streams at once; then second half +=
        feed_forward(first half).
        """
        first, second = ([f"{name} {half}" for name in names] for half in (1, 2))
        attention = _OneByOne(self.attention, names, visibility, key_masks)
        return [
            Coupling(first, second, attention),
            *(Coupling(b, a, self.feed_forward) for a, b in zip(first, second, strict=True)),
        ]


class _OneByOne(nn.Module):
    """An `Attention` that takes its streams, and gives what they read, in the order of `names`."""

    def __init__(
        self,
        attention: Attention,
        names: Sequence[str],
        visibility: Visibility,
        key_masks: Mapping[str, Tensor] | None,
    ) -> None:
        super().__init__()
        self.attention, self.names = attention, names
        self.visibility, self.key_masks = visibility, key_masks

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, streams, strict=True))
        read = self.attention(named, self.visibility, key_masks=self.key_masks)
        return tuple(read[name] for name in self.names)


class Zorro(nn.Module):
    """The complete model: audio and video in, one vector for each readout query out.

    The keywords down to `return_token_types` are those of `zorro-pytorch`. Audio outputs do not
    depend on a bit of the video, nor video outputs on the audio: neither values, nor size, nor
    NaN, nor absence. Two things weaken this to rounding or to another draw, with gradients across
    still zero: dropout, since both streams draw from one generator, and comparing a compiled run
    with an eager one (which torch.compile falls back to when it has recompiled too often).

    Args:
        dim: features of a token (768 in the paper).
        depth: masked layers.
        heads, dim_head: attention heads and features of each.
        ff_mult: inner size of the feed-forward, see `FeedForward`.
        num_fusion_tokens: learned tokens that start the fusion stream.
        audio_patch_size: of the spectrogram; a number, or (bins, frames).
        video_patch_size: in pixels; a number, or (height, width).
        video_temporal_patch_size: frames in a patch (1 in the paper).
        video_channels: 3 for RGB.
        return_token_types: the kind of each readout query: a TokenType, its number or its name.
            Types may repeat.
        num_classes: with it each readout query has a linear head and the output holds logits.
        dropout: probability of dropping attention weights and inner features while training.
        reversible: keep two halves of each stream and add to one what the other gives, so that no
            layer stores activations for the backward pass. The parameters are the same, the
            function is another.
        checkpoint: store only what enters each layer, and compute the layer again for the
            backward pass (`torch.utils.checkpoint`). The function is the same.
        front_end: waveform (batch, samples) → spectrogram (batch, bins, frames) in whole patches;
            for `audio_lengths` it also needs `num_frames(samples)`. By default a
            `LogMelSpectrogram` at 16 kHz.
        spec_augment: applied to the spectrogram, for example `SpecAugment()`; by default nothing.
        positions: add learned positions to audio and video tokens.
        max_audio_bins, max_audio_frames, max_video_frames, max_video_size: the largest
            spectrogram and video that have positions; the size is a number or (height, width).
        trunk: who reads whom in the layers: one Visibility, or one for each layer.
        readout: who reads whom in the readout.

    Raises:
        ValueError: no or unknown return_token_types, trunks that do not number `depth`, or both
            reversible and checkpoint.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        heads: int = 8,
        dim_head: int = 64,
        ff_mult: float = 4,
        num_fusion_tokens: int = 16,
        audio_patch_size: Pair = 16,
        video_patch_size: Pair = 16,
        video_temporal_patch_size: int = 2,
        video_channels: int = 3,
        return_token_types: Sequence[Enum | int | str] = (
            TokenType.AUDIO,
            TokenType.VIDEO,
            TokenType.FUSION,
        ),
        num_classes: int | None = None,
        dropout: float = 0.0,
        reversible: bool = False,
        checkpoint: bool = False,
        front_end: nn.Module | None = None,
        spec_augment: nn.Module | None = None,
        positions: bool = True,
        max_audio_bins: int = 128,
        max_audio_frames: int = 1024,
        max_video_frames: int = 32,
        max_video_size: Pair = 224,
        trunk: Visibility | Sequence[Visibility] | None = None,
        readout: Visibility | None = None,
    ) -> None:
        super().__init__()
        check_positive(
            "Zorro",
            dim=dim,
            heads=heads,
            dim_head=dim_head,
            ff_mult=ff_mult,
            num_fusion_tokens=num_fusion_tokens,
            num_classes=1 if num_classes is None else num_classes,
        )
        if isinstance(return_token_types, str):
            return_token_types = (return_token_types,)
        self.return_token_types = tuple(_token_type(kind) for kind in return_token_types)
        if not self.return_token_types:
            raise ValueError(
                "Zorro: return_token_types is empty; ask for at least one, as in "
                "(TokenType.AUDIO, TokenType.GLOBAL)"
            )
        trunk = zorro_trunk("audio", "video") if trunk is None else trunk
        self.trunk = [trunk] * depth if isinstance(trunk, Visibility) else list(trunk)
        self.readout = zorro_readout("audio", "video") if readout is None else readout
        check_rules(self.trunk, self.readout, depth, self.return_token_types)

        self.audio_patch_size = bins, frames = pair(audio_patch_size, "audio_patch_size")
        height, width = pair(video_patch_size, "video_patch_size")
        self.video_patch_size = triple(
            (video_temporal_patch_size, height, width),
            "video_temporal_patch_size and video_patch_size",
        )
        self.video_channels = video_channels
        self.front_end: Any = front_end
        if front_end is None:
            self.front_end = LogMelSpectrogram(patch_frames=frames)
        self.spec_augment = nn.Identity() if spec_augment is None else spec_augment
        self.audio_to_tokens = _to_tokens(bins * frames, dim)
        self.video_to_tokens = _to_tokens(
            video_channels * video_temporal_patch_size * height * width, dim
        )
        self.audio_positions = self.video_positions = None
        if positions:
            max_height, max_width = pair(max_video_size, "max_video_size")
            self.audio_positions = FactorisedPositions(
                dim,
                {
                    "max_audio_bins": -(-max_audio_bins // bins),
                    "max_audio_frames": -(-max_audio_frames // frames),
                },
            )
            self.video_positions = FactorisedPositions(
                dim,
                {
                    "max_video_frames": -(-max_video_frames // video_temporal_patch_size),
                    "max_video_size (height)": -(-max_height // height),
                    "max_video_size (width)": -(-max_width // width),
                },
            )
        if reversible and checkpoint:
            raise ValueError(
                "Zorro: got reversible=True and checkpoint=True, and a reversible layer keeps "
                "nothing to be checkpointed; choose one of them"
            )
        self.reversible, self.checkpoint = reversible, checkpoint
        self.fusion_tokens = nn.Parameter(torch.randn(num_fusion_tokens, dim))
        self.layers: Any = nn.ModuleList(
            Layer(dim, heads=heads, dim_head=dim_head, ff_mult=ff_mult, dropout=dropout)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, bias=False)
        self.return_tokens = nn.Parameter(torch.randn(len(self.return_token_types), dim))
        self.pool = Attention(dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.class_heads = None
        if num_classes is not None:
            self.class_heads = nn.ModuleList(
                nn.Linear(dim, num_classes) for _ in self.return_token_types
            )

    @property
    def promise(self) -> Visibility:
        """What may influence what, from the inputs through all layers to the readout."""
        return reduce(matmul, [self.readout, *(layer.after(1) for layer in reversed(self.trunk))])

    def forward(
        self,
        *,
        audio: Float[Tensor, "b samples"] | None = None,
        video: Float[Tensor, "b c t y x"] | None = None,
        audio_lengths: Integer[Tensor, " b"] | Sequence[int] | None = None,
        video_lengths: Integer[Tensor, " b"] | Sequence[int] | None = None,
        return_token_indices: Sequence[int] | None = None,
    ) -> Float[Tensor, "b returned d"]:
        """One vector (or, with `num_classes`, one row of logits) for each readout query.

        Args:
            audio: waveform, about in [-1, 1]. Leave it out where there is none.
            video: in [0, 1]. Leave it out where there is none.
            audio_lengths: real samples of each waveform; what follows is padding and may hold
                anything.
            video_lengths: real frames of each video, in whole temporal patches.
            return_token_indices: which readout queries to answer, in the order wanted; all by
                default. A query whose keys are all padding keeps its learned value.

        Raises:
            ValueError: wrong shapes, dtypes, lengths or indices; an input beyond the positions;
                a readout that may read only what was left out.
        """
        asked = check_indices(return_token_indices, len(self.return_token_types))
        streams, key_masks = {}, {}
        for name, tensor, lengths, embed in (
            ("audio", audio, audio_lengths, self._embed_audio),
            ("video", video, video_lengths, self._embed_video),
        ):
            if tensor is None:
                if lengths is not None:
                    raise ValueError(f"Zorro: got {name}_lengths without {name}; give both")
                continue
            streams[name], real = embed(tensor, lengths)
            if real is not None:
                key_masks[name] = real
        batch = check_batch(audio, video)
        streams["fusion"] = repeat(self.fusion_tokens, "n d -> b n d", b=batch)
        readout = self._readable(asked, streams)

        names = tuple(streams)
        if self.reversible:
            halves = {f"{name} {half}": streams[name] for half in (1, 2) for name in names}
            blocks = [
                layer.couplings(names, trunk.only(names), key_masks)
                for layer, trunk in zip(self.layers, self.trunk, strict=True)
            ]
            halves = ReversibleSequence(blocks)(halves)
            streams = {name: (halves[f"{name} 1"] + halves[f"{name} 2"]) / 2 for name in names}
        else:
            for layer, trunk in zip(self.layers, self.trunk, strict=True):
                arguments = (streams, trunk.only(names), key_masks)
                streams = (
                    checkpointed(layer, *arguments, use_reentrant=False)
                    if self.checkpoint
                    else layer(*arguments)
                )
        streams = {name: self.norm(stream) for name, stream in streams.items()}
        return self._pool(streams, key_masks, asked, readout)

    # Tokens

    def _embed_audio(
        self, audio: Tensor, lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, Tensor | None]:
        check_audio(audio)
        if lengths is not None:
            lengths = check_lengths("audio_lengths", "samples", lengths, audio, axis=1)
            if not hasattr(self.front_end, "num_frames"):
                raise ValueError(
                    f"Zorro: got audio_lengths, and the front end {type(self.front_end).__name__} "
                    "has no num_frames(samples) to say where padding begins; add it, or pass clips "
                    "alone"
                )
            audio = torch.where(_before(lengths, audio.shape[1]), audio, 0)
        spectrogram = self.spec_augment(self.front_end(audio))
        patches = patchify_audio(spectrogram, self.audio_patch_size)
        bins, frames = self.audio_patch_size
        grid = spectrogram.shape[1] // bins, spectrogram.shape[2] // frames
        real = None
        if lengths is not None:
            columns = -(-self.front_end.num_frames(lengths) // frames)
            real = repeat(_before(columns, grid[1]), "b t -> b (f t)", f=grid[0])
        return self._tokens(self.audio_to_tokens, patches, self.audio_positions, grid, real), real

    def _embed_video(
        self, video: Tensor, lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, Tensor | None]:
        check_video(video, self.video_channels)
        frames, height, width = self.video_patch_size
        if lengths is not None:
            lengths = check_lengths("video_lengths", "frames", lengths, video, axis=2)
            if (lengths % frames).any():
                raise ValueError(
                    f"Zorro: video_lengths {lengths.tolist()} are not all multiples of the "
                    f"temporal patch {frames}; repeat a last frame or drop one"
                )
        patches = patchify_video(video, self.video_patch_size)
        grid = video.shape[2] // frames, video.shape[3] // height, video.shape[4] // width
        real = None
        if lengths is not None:
            times = _before(lengths // frames, grid[0])
            real = repeat(times, "b t -> b (t y x)", y=grid[1], x=grid[2])
        return self._tokens(self.video_to_tokens, patches, self.video_positions, grid, real), real

    def _tokens(
        self,
        to_tokens: nn.Module,
        patches: Tensor,
        positions: FactorisedPositions | None,
        grid: tuple[int, ...],
        real: Tensor | None,
    ) -> Tensor:
        if real is not None:  # padding may hold NaN, and a hidden key is multiplied by zero
            patches = torch.where(real[..., None], patches, 0)
        tokens = to_tokens(patches.to(self.fusion_tokens.dtype))
        return tokens if positions is None else tokens + positions(*grid)

    # Readout

    def _readable(self, asked: tuple[int, ...], streams: Mapping[str, Tensor]) -> Visibility:
        """What the queries asked for may read of the streams that are there."""
        reads = {}
        for index in asked:
            kind = self._kind(index)
            reads[kind] = [key for key in self.readout.reads[kind] if key in streams]
            if not reads[kind]:
                seeing = tuple(
                    i
                    for i in range(len(self.return_token_types))
                    if set(self.readout.reads[self._kind(i)]) & set(streams)
                )
                others = f", or ask for others with return_token_indices={seeing}" if seeing else ""
                raise ValueError(
                    f"Zorro: readout {index} ({kind}) may read only what was left out, there is "
                    f"{' and '.join(streams)}; give {' or '.join(self.readout.reads[kind])}"
                    f"{others}"
                )
        return Visibility(reads, tuple(streams))

    def _pool(
        self,
        streams: Mapping[str, Tensor],
        key_masks: Mapping[str, Tensor],
        asked: tuple[int, ...],
        readout: Visibility,
    ) -> Tensor:
        batch = len(streams["fusion"])
        members = {
            kind: [index for index in asked if self._kind(index) == kind]
            for kind in readout.readers
        }
        # Row by row: an index that is a list would be copied to the GPU, and the CPU would wait.
        queries = {
            kind: repeat([self.return_tokens[index] for index in indices], "n d -> b n d", b=batch)
            for kind, indices in members.items()
        }
        read = self.pool(queries, readout, context=streams, key_masks=key_masks)
        pooled = {
            index: queries[kind][:, i] + read[kind][:, i]
            for kind, indices in members.items()
            for i, index in enumerate(indices)
        }
        if self.class_heads is not None:
            pooled = {index: self.class_heads[index](vector) for index, vector in pooled.items()}
        return torch.stack([pooled[index] for index in asked], 1)

    def _kind(self, index: int) -> str:
        return self.return_token_types[index].name.lower()

    @classmethod
    def from_zorro_pytorch(
        cls, source: nn.Module | Mapping[str, Tensor], **settings: Any
    ) -> "Zorro":
        """The same weights and the same function as a `zorro-pytorch` 0.1.1 model.

        That is its function with the pooling mask mended: as published, `pool_mask | types ==
        GLOBAL` compares before it means to, and audio queries read the video too. Its linear
        power spectrogram, its cropping and its lack of positions are kept.

        Args:
            source: the model, or its state dict.
            settings: for a state dict, the keywords the model was made with, where they were not
                the defaults (the weights do not tell heads, patch sizes, `spec_*` or
                `return_token_types`).

        Raises:
            ValueError: the weights do not fit the settings, or a model comes with settings.
        """
        keywords, weights = translate(source, settings)
        model = cls(**keywords).to(weights["fusion_tokens"].dtype)
        own = {name: tensor.shape for name, tensor in model.state_dict().items()}
        theirs = {name: tensor.shape for name, tensor in weights.items()}
        if own != theirs:
            wrong = min(name for name, _ in own.items() ^ theirs.items())
            raise ValueError(
                f"from_zorro_pytorch: {wrong!r} does not fit these settings; pass the keywords "
                "that the published model was made with"
            )
        model.load_state_dict(weights)
        return model


def _token_type(kind: Enum | int | str) -> TokenType:
    try:
        name = kind.name if isinstance(kind, Enum) else kind
        return TokenType[name.upper()] if isinstance(name, str) else TokenType(name)
    except (KeyError, ValueError):
        raise ValueError(
            f"Zorro: return_token_types has {kind!r}; wanted AUDIO, VIDEO, FUSION or GLOBAL"
        ) from None


def _to_tokens(values: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(values), nn.Linear(values, dim), nn.LayerNorm(dim))


def _before(lengths: Tensor, size: int) -> Bool[Tensor, "b size"]:
    """True at the positions before each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
