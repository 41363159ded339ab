"""From clips to the tokens of a stream: cut, project, add positions, blank the padding."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from avlib.checks import check_audio, check_lengths, check_video
from avlib.tokens import FactorisedPositions, patchify_audio, patchify_video

Lengths = Integer[Tensor, " b"] | Sequence[int] | None


class _Embedding(nn.Module):
    """Patches to tokens, as in `zorro-pytorch`: norm, linear map, norm; then positions.

    Args:
        values: numbers in a patch.
        dim: features of a token.
        limits: the patches allowed along each axis, see `FactorisedPositions`; None for no
            positions.
    """

    def __init__(self, values: int, dim: int, limits: dict[str, int] | None) -> None:
        super().__init__()
        self.to_tokens: Any = nn.Sequential(
            nn.LayerNorm(values), nn.Linear(values, dim), nn.LayerNorm(dim)
        )
        self.positions = None if limits is None else FactorisedPositions(dim, limits)

    def _tokens(
        self, patches: Tensor, grid: tuple[int, ...], real: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if real is not None:  # padding may hold NaN, and a hidden key is multiplied by zero
            patches = torch.where(real[..., None], patches, 0)
        tokens = self.to_tokens(patches.to(self.to_tokens[1].weight.dtype))
        return tokens if self.positions is None else tokens + self.positions(*grid), real


class AudioEmbedding(_Embedding):
    """Waveform → spectrogram → tokens, low frequencies first, each row from left to right.

    Args:
        dim: features of a token.
        patch_size: (bins, frames) of the spectrogram.
        front_end: waveform (batch, samples) → spectrogram (batch, bins, frames) in whole patches.
        spec_augment: applied to the spectrogram.
        limits: the largest (bins, frames) that have positions; None for no positions.
    """

    def __init__(
        self,
        dim: int,
        patch_size: tuple[int, int],
        front_end: nn.Module,
        spec_augment: nn.Module,
        limits: tuple[int, int] | None,
    ) -> None:
        names = ("max_audio_bins", "max_audio_frames")
        super().__init__(patch_size[0] * patch_size[1], dim, _in_patches(names, limits, patch_size))
        self.patch_size = patch_size
        self.front_end: Any = front_end
        self.spec_augment = spec_augment

    def forward(
        self, audio: Float[Tensor, "b samples"], lengths: Lengths = None
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"] | None]:
        """Tokens, and with lengths in samples which of them are real."""
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
        patches = patchify_audio(spectrogram, self.patch_size)
        bins, frames = self.patch_size
        grid = spectrogram.shape[1] // bins, spectrogram.shape[2] // frames
        real = None
        if lengths is not None:
            columns = -(-self.front_end.num_frames(lengths) // frames)
            real = repeat(_before(columns, grid[1]), "b t -> b (f t)", f=grid[0])
        return self._tokens(patches, grid, real)


class VideoEmbedding(_Embedding):
    """Video → tokens, first frames first, then rows, then columns.

    Args:
        dim: features of a token.
        patch_size: (frames, height, width).
        channels: 3 for RGB.
        limits: the largest (frames, height, width) that have positions; None for no positions.
    """

    def __init__(
        self,
        dim: int,
        patch_size: tuple[int, int, int],
        channels: int,
        limits: tuple[int, int, int] | None,
    ) -> None:
        frames, height, width = patch_size
        names = ("max_video_frames", "max_video_size (height)", "max_video_size (width)")
        limited = _in_patches(names, limits, patch_size)
        super().__init__(channels * frames * height * width, dim, limited)
        self.patch_size, self.channels = patch_size, channels

    def forward(
        self, video: Float[Tensor, "b c t y x"], lengths: Lengths = None
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"] | None]:
        """Tokens, and with lengths in frames which of them are real."""
        check_video(video, self.channels)
        frames, height, width = self.patch_size
        if lengths is not None:
            lengths = check_lengths("video_lengths", "frames", lengths, video, axis=2)
            if (lengths % frames).any():
                raise ValueError(
                    f"Zorro: video_lengths {lengths.tolist()} are not all multiples of the "
                    f"temporal patch {frames}; repeat a last frame or drop one"
                )
        patches = patchify_video(video, self.patch_size)
        grid = video.shape[2] // frames, video.shape[3] // height, video.shape[4] // width
        real = None
        if lengths is not None:
            times = _before(lengths // frames, grid[0])
            real = repeat(times, "b t -> b (t y x)", y=grid[1], x=grid[2])
        return self._tokens(patches, grid, real)


def _in_patches(
    names: Sequence[str], limits: Sequence[int] | None, patch_size: Sequence[int]
) -> dict[str, int] | None:
    """A limit for each axis, named by the keyword that sets it, rounded up to whole patches."""
    if limits is None:
        return None
    return {
        name: -(-limit // patch)
        for name, limit, patch in zip(names, limits, patch_size, strict=True)
    }


def _before(lengths: Tensor, size: int) -> Bool[Tensor, "b size"]:
    """True at the positions before each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
