import pytest
import torch
import torchaudio
import zorro_pytorch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.testing import assert_close

from avlib import (
    FactorisedPositions,
    LogMelSpectrogram,
    SpecAugment,
    TokenType,
    TokenTypes,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
)

few = st.integers(1, 3)


def small_front_end(**changes: int) -> LogMelSpectrogram:
    settings = {"sample_rate": 8000, "n_fft": 256, "hop_length": 80, "num_mels": 16}
    return LogMelSpectrogram(**{**settings, "patch_frames": 8, **changes})


# Patches


@given(batch=few, rows=few, columns=few, bins=few, frames=few)
def test_audio_patches_are_the_rectangles_in_reading_order(batch, rows, columns, bins, frames):
    spectrogram = torch.randn(batch, rows * bins, columns * frames)
    patches = patchify_audio(spectrogram, (bins, frames))
    assert patches.shape == (batch, rows * columns, bins * frames)
    for f in range(rows):
        for t in range(columns):
            cut = spectrogram[:, f * bins : (f + 1) * bins, t * frames : (t + 1) * frames]
            assert torch.equal(patches[:, f * columns + t], cut.reshape(batch, -1))
    assert torch.equal(unpatchify_audio(patches, (bins, frames), (rows, columns)), spectrogram)


@given(channels=few, grid=st.tuples(few, few, few), patch=st.tuples(few, few, few))
def test_video_patches_are_the_boxes_in_reading_order(channels, grid, patch):
    sizes = [n * p for n, p in zip(grid, patch, strict=True)]
    video = torch.randn(2, channels, *sizes)
    patches = patchify_video(video, patch)
    pt, py, px = patch
    number = 0
    for t in range(0, sizes[0], pt):
        for y in range(0, sizes[1], py):
            for x in range(0, sizes[2], px):
                box = video[:, :, t : t + pt, y : y + py, x : x + px]
                assert torch.equal(patches[:, number], box.reshape(2, -1))
                number += 1
    assert patches.shape[1] == number
    assert torch.equal(unpatchify_video(patches, patch, grid, channels), video)


def test_one_number_is_a_square_patch():
    spectrogram = torch.randn(1, 4, 6)
    assert torch.equal(patchify_audio(spectrogram, 2), patchify_audio(spectrogram, (2, 2)))


# Positions


def test_a_position_is_the_sum_of_one_entry_an_axis_in_patch_order():
    positions = FactorisedPositions(5, {"max_t": 4, "max_y": 3, "max_x": 6})
    t_table, y_table, x_table = positions.tables.values()
    expected = [
        t_table[t] + y_table[y] + x_table[x] for t in range(2) for y in range(3) for x in range(4)
    ]
    assert_close(positions(2, 3, 4), torch.stack(expected))


def test_a_grid_may_fill_the_tables_and_no_more():
    positions = FactorisedPositions(5, {"max_t": 4, "max_y": 3})
    assert positions(4, 3).shape == (12, 5)
    with pytest.raises(ValueError, match=r"4 patches along .* max_y allows 3; .* raise max_y"):
        positions(4, 4)


# Spectrogram


@example(samples=800, hop=80, patch=1)
@given(samples=st.integers(1, 3000), hop=st.sampled_from([50, 80, 128]), patch=st.integers(1, 9))
def test_columns_cover_every_sample_in_whole_patches(samples, hop, patch):
    front_end = small_front_end(hop_length=hop, patch_frames=patch)
    columns = front_end(torch.randn(1, samples)).shape[2]
    heard = len(range(0, samples, hop))
    assert front_end.num_frames(torch.tensor([samples])).tolist() == [heard]
    assert columns % patch == 0
    assert heard <= columns < heard + patch


@pytest.mark.parametrize("samples", [1, 79, 80, 81, 2000, 2001])
def test_spectrogram_is_torchaudios_with_silence_around_the_clip(samples):
    front_end, audio = small_front_end(patch_frames=1), torch.randn(2, samples)
    mel = torchaudio.transforms.MelSpectrogram(
        8000, n_fft=256, hop_length=80, n_mels=16, center=True, pad_mode="constant"
    )
    ours = front_end(audio)
    assert_close(ours, (mel(audio) + 1e-5).log()[..., : ours.shape[2]])


def test_a_clip_padded_with_silence_has_the_spectrogram_it_has_alone():
    front_end, clip = small_front_end(patch_frames=8), torch.randn(1, 1234)
    alone = front_end(clip)
    padded = front_end(torch.nn.functional.pad(clip, (0, 2000)))
    assert alone.shape[2] == 16
    assert_close(padded[..., :16], alone)
    assert_close(padded[..., 18:], torch.full((1, 16, padded.shape[2] - 18), 1e-5).log())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_modules_keep_the_spectrogram_in_float32(dtype):
    audio = torch.randn(1, 2000)
    expected = small_front_end()(audio)
    module = torch.nn.Sequential(small_front_end()).to(dtype)
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
    assert torch.equal(module(audio), expected)
    assert torch.equal(module(audio.to(dtype)), small_front_end()(audio.to(dtype).float()))
    with torch.autocast("cpu", dtype):
        assert torch.equal(module(audio), expected)


def test_double_modules_compute_in_double():
    audio = torch.randn(1, 2000, dtype=torch.float64)
    spectrogram = small_front_end().double()(audio)
    assert spectrogram.dtype == torch.float64
    assert_close(spectrogram, small_front_end()(audio).double(), rtol=1e-4, atol=1e-4)


def test_to_waveform_gives_a_sound_with_about_this_spectrogram():
    front_end = LogMelSpectrogram()
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 16_000)[None]
    before = front_end(tone)
    after = front_end(front_end.to_waveform(before))
    before, after = (log[..., 5:45].exp().mean(2) for log in (before, after))
    assert (after - before).norm() < 0.2 * before.norm()


# Augmentation


def stripes(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows and columns of each sample were set to its minimum; nothing else may change."""
    changed = (before != after).float()
    rows, columns = changed.mean(2) > 0.5, changed.mean(1) > 0.5
    silence = before.amin((1, 2), keepdim=True)
    assert torch.equal(after, torch.where(rows[:, :, None] | columns[:, None], silence, before))
    return rows, columns


def test_spec_augment_is_off_in_eval_mode():
    spectrogram = torch.randn(2, 32, 40)
    assert torch.equal(SpecAugment().eval()(spectrogram), spectrogram)


def test_spec_augment_blanks_other_rows_and_columns_in_each_sample():
    before = torch.randn(8, 64, 96)
    for which in stripes(before, SpecAugment()(before)):
        assert len({tuple(sample) for sample in which.tolist()}) > 4


@pytest.mark.parametrize("size", [8, 64])
def test_spec_augment_blanks_an_eighth_of_each_axis_on_average_and_a_quarter_at_most(size):
    before = torch.randn(2000, size, 2 * size)
    for which in stripes(before, SpecAugment()(before)):
        share = which.float().mean(1)
        assert 0.11 < share.mean() < 0.13  # a little less than 1/8, since stripes may overlap
        assert share.max() == 0.25


# Token types


def test_token_types_have_the_published_numbers_and_names():
    assert TokenTypes is TokenType
    published = zorro_pytorch.TokenTypes
    assert {t.name: t.value for t in TokenType} == {t.name: t.value for t in published}
