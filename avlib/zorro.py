"""Zorro: one transformer, streams that stay pure, and a fusion stream that reads them all.

Recasens et al. 2023, "Zorro: the masked multimodal transformer", arXiv:2301.09595.
"""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from functools import reduce
from operator import matmul
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from avlib.attention import Attention, KeysValues
from avlib.checks import (
    check_batch,
    check_counts,
    check_indices,
    check_positive,
    check_rules,
)
from avlib.embedding import AudioEmbedding, Lengths, VideoEmbedding
from avlib.late_fusion import LateFusion
from avlib.layer import Layer, halved, mean_of_halves
from avlib.masks import Visibility, zorro_readout, zorro_trunk
from avlib.published import check_fit, translate
from avlib.reversible import ReversibleSequence
from avlib.sound import LogMelSpectrogram
from avlib.tokens import Pair, TokenType, pair, triple


class Zorro(LateFusion):
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
        return_token_types: the kind of each readout query, or of one: a TokenType, its number or
            its name. Types may repeat.
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
        return_token_types: Enum | int | str | Sequence[Enum | int | str] = (
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
        check_counts(
            "Zorro",
            dim=dim,
            heads=heads,
            dim_head=dim_head,
            num_fusion_tokens=num_fusion_tokens,
            video_channels=video_channels,
            num_classes=1 if num_classes is None else num_classes,
        )
        check_positive("Zorro", ff_mult=ff_mult)
        check_counts("Zorro", least=0, depth=depth)
        if isinstance(return_token_types, str | int | Enum):
            return_token_types = (return_token_types,)
        self.return_token_types = tuple(_token_type(kind) for kind in return_token_types)
        self.kinds = tuple(kind.name.lower() for kind in self.return_token_types)
        if not self.return_token_types:
            raise ValueError(
                "Zorro: return_token_types is empty; ask for at least one, as in "
                "(TokenType.AUDIO, TokenType.GLOBAL)"
            )
        trunk = zorro_trunk("audio", "video") if trunk is None else trunk
        self.trunk = [trunk] * depth if isinstance(trunk, Visibility) else list(trunk)
        self.readout = zorro_readout("audio", "video") if readout is None else readout
        check_rules(self.trunk, self.readout, depth, self.kinds)

        audio_patch = pair(audio_patch_size, "audio_patch_size")
        video_patch = triple(
            (video_temporal_patch_size, *pair(video_patch_size, "video_patch_size")),
            "video_temporal_patch_size and video_patch_size",
        )
        video_limits = (max_video_frames, *pair(max_video_size, "max_video_size"))
        self.audio_embedding = AudioEmbedding(
            dim,
            audio_patch,
            LogMelSpectrogram(patch_frames=audio_patch[1]) if front_end is None else front_end,
            nn.Identity() if spec_augment is None else spec_augment,
            (max_audio_bins, max_audio_frames) if positions else None,
        )
        self.video_embedding = VideoEmbedding(
            dim, video_patch, video_channels, video_limits if positions else None
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
        audio_lengths: Lengths = None,
        video_lengths: Lengths = None,
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
        streams, key_masks = self._embed(audio, video, audio_lengths, video_lengths)
        batch = check_batch(audio, video)
        streams["fusion"] = self.fusion_tokens.repeat(batch, 1, 1)
        readout = self._readable(asked, streams)

        rules = [trunk.only(tuple(streams)) for trunk in self.trunk]
        if self.reversible:
            blocks = [
                layer.couplings(visibility, key_masks)
                for layer, visibility in zip(self.layers, rules, strict=True)
            ]
            streams = mean_of_halves(ReversibleSequence(blocks)(halved(streams)))
        else:
            for layer, visibility in zip(self.layers, rules, strict=True):
                arguments = (streams, visibility, key_masks)
                streams = (
                    checkpointed(layer, *arguments, use_reentrant=False)
                    if self.checkpoint
                    else layer(*arguments)
                )
        read = {name: self.pool.keys_values(self.norm(s)) for name, s in streams.items()}
        return self._pool(read, key_masks, asked, readout, (batch,))

    def _embed(
        self,
        audio: Tensor | None,
        video: Tensor | None,
        audio_lengths: Lengths,
        video_lengths: Lengths,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tokens of each modality that is there, and which of them are real where some are not."""
        streams, key_masks = {}, {}
        for name, clips, lengths, embed in (
            ("audio", audio, audio_lengths, self.audio_embedding),
            ("video", video, video_lengths, self.video_embedding),
        ):
            if clips is not None:
                streams[name], real = embed(clips, lengths)
                if real is not None:
                    key_masks[name] = real
            elif lengths is not None:
                raise ValueError(f"Zorro: got {name}_lengths without {name}; give both")
        return streams, key_masks

    # Readout

    def _readable(self, asked: tuple[int, ...], streams: Collection[str]) -> Visibility:
        """What the queries asked for may read of the streams that are there."""
        there = [key for key in self.readout.keys if key in streams]
        for index in asked:
            kind = self.kinds[index]
            if not set(self.readout.reads[kind]) & set(there):
                seeing = tuple(
                    i
                    for i in range(len(self.return_token_types))
                    if set(self.readout.reads[self.kinds[i]]) & set(there)
                )
                others = f", or ask for others with return_token_indices={seeing}" if seeing else ""
                raise ValueError(
                    f"Zorro: readout {index} ({kind}) may read only what was left out, there is "
                    f"{' and '.join(there)}; give {' or '.join(self.readout.reads[kind])}"
                    f"{others}"
                )
        return self.readout.only(there, readers=[self.kinds[index] for index in asked])

    def _pool(
        self,
        read: Mapping[str, KeysValues],
        key_masks: Mapping[str, Tensor],
        asked: tuple[int, ...],
        readout: Visibility,
        batch: Sequence[int],
    ) -> Tensor:
        """One vector for each query asked for, from the streams' keys and values."""
        members = {
            kind: [index for index in asked if self.kinds[index] == kind]
            for kind in readout.readers
        }
        # Row by row: an index that is a list would be copied to the GPU, and the CPU would wait.
        queries = {
            kind: torch.stack([self.return_tokens[i] for i in indices]).expand(*batch, -1, -1)
            for kind, indices in members.items()
        }
        answers = self.pool(queries, readout, kept=read, key_masks=key_masks)
        pooled = {
            index: queries[kind][..., i, :] + answers[kind][..., i, :]
            for kind, indices in members.items()
            for i, index in enumerate(indices)
        }
        if self.class_heads is not None:
            pooled = {index: self.class_heads[index](vector) for index, vector in pooled.items()}
        return torch.stack([pooled[index] for index in asked], -2)

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
        check_fit(model, weights)
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
