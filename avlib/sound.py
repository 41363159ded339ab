"""From a waveform to a spectrogram, a picture that can be cut into patches."""

from collections.abc import Callable

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from avlib.checks import check_audio, check_counts, check_positive


class FrontEnd(nn.Module):
    """From waveforms to spectrograms, in float32 also within half-precision models.

    No CPU has a Fourier transform for less.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrontEnd":
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype.itemsize >= 4 else tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)


class LogMelSpectrogram(FrontEnd):
    """Waveform → log-mel spectrogram, padded with silence to whole patches.

    Column i is centred on sample i·hop_length. The padding is silence, never a reflection, so a
    clip padded in a batch has the spectrogram that it has alone. Half-precision models keep this
    part in float32.

    Args:
        sample_rate: Hz.
        n_fft: samples in a window; at least two hops, so that no sample falls between windows.
        hop_length: samples from one column to the next (160 at 16 kHz is 10 ms).
        num_mels: frequency bins, from 0 to sample_rate / 2 on the mel scale.
        patch_frames: the number of columns is rounded up to a multiple of this.
        floor: added to the power before the logarithm; silence becomes log(floor).
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        n_fft: int = 1024,
        hop_length: int = 160,
        num_mels: int = 128,
        patch_frames: int = 16,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        check_counts(
            "LogMelSpectrogram",
            sample_rate=sample_rate,
            hop_length=hop_length,
            num_mels=num_mels,
            patch_frames=patch_frames,
        )
        check_positive("LogMelSpectrogram", floor=floor)
        if n_fft < 2 * hop_length:
            raise ValueError(
                f"LogMelSpectrogram: n_fft {n_fft} is under two hops of {hop_length}, samples "
                f"would be skipped; raise n_fft to {2 * hop_length} or more"
            )
        self.n_fft, self.hop_length, self.patch_frames = n_fft, hop_length, patch_frames
        self.num_mels, self.sample_rate, self.floor = num_mels, sample_rate, floor
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate, n_fft=n_fft, hop_length=hop_length, n_mels=num_mels, center=False
        )

    def num_frames(self, samples: Tensor) -> Tensor:
        """Columns that hold sound, for lengths in samples; what follows is padding."""
        return -(-samples // self.hop_length)

    def forward(self, audio: Float[Tensor, "b samples"]) -> Float[Tensor, "b f t"]:
        """Log-mel power; (batch, num_mels, columns), columns a multiple of patch_frames."""
        check_audio(audio, "LogMelSpectrogram")
        samples = audio.shape[-1]
        columns = -(-samples // self.hop_length)
        columns = -(-columns // self.patch_frames) * self.patch_frames
        left = self.n_fft // 2
        right = (columns - 1) * self.hop_length + self.n_fft - left - samples
        window = self.mel.spectrogram.window
        with torch.autocast(audio.device.type, enabled=False):
            padded = nn.functional.pad(audio.to(window.dtype), (left, right))
            return (self.mel(padded) + self.floor).log()

    def to_waveform(
        self, spectrogram: Float[Tensor, "b f t"], iterations: int = 32
    ) -> Float[Tensor, "b samples"]:
        """A sound with about this spectrogram: phases are guessed by the Griffin–Lim algorithm.

        Phase and detail between the mel bins are lost, so this is for listening only. Uses and
        advances the global random generator.
        """
        power = (spectrogram.exp() - self.floor).clamp(min=0)
        unmel = torchaudio.transforms.InverseMelScale(
            self.n_fft // 2 + 1, self.num_mels, self.sample_rate
        )
        phases = torchaudio.transforms.GriffinLim(
            self.n_fft, n_iter=iterations, hop_length=self.hop_length
        )
        return phases(unmel(power))


class SpecAugment(nn.Module):
    """Blank random stripes of a spectrogram while training (Park et al. 2019, arXiv:1904.08779).

    Each sample loses `stripes` bands of frequency and as many of time; a width is drawn evenly
    from 0 to `width` of the axis. With the defaults an eighth of each axis is blank on average,
    a quarter at most. In eval mode the spectrogram passes unchanged.

    Args:
        stripes: per axis.
        width: the widest stripe, as a share of the axis, in (0, 1].
    """

    def __init__(self, stripes: int = 2, width: float = 0.125) -> None:
        super().__init__()
        if stripes < 1 or not 0 < width <= 1:
            raise ValueError(
                f"SpecAugment: got {stripes} stripes of width {width}; give at least one stripe "
                "and a width in (0, 1]"
            )
        self.stripes, self.width = stripes, width

    def forward(self, spectrogram: Float[Tensor, "b f t"]) -> Float[Tensor, "b f t"]:
        """The same spectrogram with stripes set to its own minimum, which is silence."""
        if not self.training:
            return spectrogram
        silence = spectrogram.amin(dim=(1, 2), keepdim=True)
        keep = torch.ones_like(spectrogram)
        for axis in (1, 2):
            widest = int(spectrogram.shape[axis] * self.width)
            for _ in range(self.stripes):
                keep = torchaudio.functional.mask_along_axis_iid(keep, widest + 1, 0.0, axis)
        return torch.where(keep.bool(), spectrogram, silence)
