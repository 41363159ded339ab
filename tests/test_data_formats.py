"""Clocks: in every format, what was written when is seen and heard then."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import (
    RATE,
    flashes,
    grey,
    levels,
    seen_and_heard,
    sound_block,
    write_clip,
    write_pictures,
    write_sound,
)

from avlib.data import Clip, load_clip

CODECS = {
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "pcm_s16le"),
    "mkv": ("libx264", "flac"),
    "webm": ("libvpx-vp9", "libopus"),
    "avi": ("mpeg4", "pcm_s16le"),
}


# Opus has few rates, and whatever it is given, it is decoded at 48 kHz.
OPUS = {22_050: 12_000, 44_100: 24_000}


# Pictures and sound in step


@pytest.mark.parametrize(
    ("sample_rate", "layout"),
    [(8000, "mono"), (22_050, "stereo"), (44_100, "mono"), (48_000, "stereo")],
)
@pytest.mark.parametrize("fps", [10.0, 24.0, 30_000 / 1001, 60.0])
@pytest.mark.parametrize("suffix", CODECS)
def test_flash_and_click_stay_together(
    tmp_path: Path, suffix: str, fps: float, sample_rate: int, layout: str
) -> None:
    webm = suffix == "webm"
    sample_rate = OPUS.get(sample_rate, sample_rate) if webm else sample_rate
    events = [round(t * fps) / fps for t in (0.3, 1.7)]
    truth = flashes(2.0, events, fps, sample_rate)
    path = tmp_path / f"a.{suffix}"
    settings = {"crf": "20", "cpu-used": "8"} if webm else {"g": "10"}
    write_clip(path, truth, CODECS[suffix], layout=layout, settings=settings)
    whole = load_clip(path)
    assert whole.fps == pytest.approx(fps, rel=1e-4)
    assert whole.sample_rate == (48_000 if webm else sample_rate)
    assert whole.video.shape == truth.video.shape
    assert len(whole.audio) / whole.sample_rate == pytest.approx(2.0, abs=0.07)
    for start in (0.0, 1.0 + 1 / fps):
        seen, heard = seen_and_heard(load_clip(path, start=start, duration=0.9, fps=fps))
        event = next(t for t in events if t > start) - start
        assert heard == pytest.approx([event], abs=0.002)
        assert len(seen) == 1
        assert event - 0.001 <= seen[0] < event + 1 / fps  # the next time that is looked at


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_flash_and_click_stay_together_while_the_rate_varies(tmp_path: Path, suffix: str) -> None:
    steps = [0.04, 0.04, 0.02, 0.3, 0.017, 0.5, 0.033, 0.1] * 5
    times = np.cumsum([0.0, *steps]).round(3).tolist()
    events = [times[n] for n in (3, 12, 21, 30, 39)]
    truth = flashes(times[-1] + 0.1, events, fps=25.0)
    video = torch.full((3, len(times), 32, 32), 0.1)
    video[:, [3, 12, 21, 30, 39]] = 0.9
    path = tmp_path / f"a.{suffix}"
    write_clip(path, truth._replace(video=video), CODECS[suffix], times=times)
    for start in (0.0, 2.5):
        clip = load_clip(path, start=start, fps=100.0)
        seen, heard = seen_and_heard(clip)
        expected = [t - start for t in events if t > start]
        assert heard == pytest.approx(expected, abs=0.002)
        assert seen == pytest.approx(expected, abs=0.01)
    # Without a rate it is the average one; what is on screen is still placed by its time.
    seen, _ = seen_and_heard(load_clip(path))
    assert all(min(abs(a - b) for b in events) < 2 * times[-1] / len(times) for a in seen)


def test_frames_of_a_varying_rate_are_shown_at_their_times(tmp_path: Path) -> None:
    ticks = [0, 10, 12, 14, 60, 61, 90]  # hundredths of a second
    write_pictures(tmp_path / "a.mkv", ticks)
    clip = load_clip(tmp_path / "a.mkv", duration=0.9, fps=20.0)
    on_screen = [max(n for n, tick in enumerate(ticks) if tick <= 5 * k) for k in range(18)]
    assert levels(clip.video) == on_screen
    middle = load_clip(tmp_path / "a.mkv", start=0.35, duration=0.3, fps=20.0)
    assert levels(middle.video) == on_screen[7:13]


def test_thirty_frames_a_second_survive_millisecond_time_stamps(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.mkv", list(range(25)), per=30)
    assert levels(load_clip(tmp_path / "a.mkv", fps=30.0).video) == list(range(25))


def test_a_time_between_two_frames_in_milliseconds_shows_the_first(tmp_path: Path) -> None:
    # Frame 129 of 16 a second is at 8.0625 s, which the file rounds to 8.063 s.
    ticks = list(range(140))
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=16)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for n in ticks:
            frame = grey(250 if n % 2 else 5)
            frame.pts, frame.time_base = n, Fraction(1, 16)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video = load_clip(tmp_path / "a.mkv", start=7.75, duration=0.9).video
    assert (video.mean((0, 2, 3)) > 0.5).tolist() == [n % 2 == 1 for n in range(124, 138)]


def test_before_the_first_picture_it_is_the_first(tmp_path: Path) -> None:
    clip = flashes(1.0, [])
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 16, 16, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for n in range(5):
            frame = grey(50 * n)
            frame.pts, frame.time_base = 5 + n, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        block = (clip.audio.numpy() * 32767).astype(np.int16)[None]
        container.mux(sound.encode(sound_block(block, RATE, 0, "mono")))
    video = load_clip(tmp_path / "a.mkv", fps=10.0).video
    assert [level // 5 for level in levels(video)] == [0, 0, 0, 0, 0, 0, 1, 2, 3, 4]


# Sound


def test_late_sound_and_holes_are_silence(tmp_path: Path) -> None:
    loud = np.full((1, 4000), 16_384, np.int16)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 16, 16, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for n in range(20):
            frame = grey(100)
            frame.pts, frame.time_base = n, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        for position in (8000, 24_000):  # half a second late, then a hole of three quarters
            container.mux(sound.encode(sound_block(loud, RATE, position, "mono")))
    expected = torch.zeros(28_000)
    expected[8000:12_000] = expected[24_000:28_000] = 0.5
    assert torch.equal(load_clip(path).audio, expected)
    assert torch.equal(load_clip(path, start=0.625, duration=1.0).audio, expected[10_000:26_000])
    assert load_clip(path, duration=0.25).audio.tolist() == [0.0] * 4000


def test_sound_with_millisecond_time_stamps_has_no_seams(tmp_path: Path) -> None:
    samples = (torch.arange(22_050) * 37 % 20_000).numpy().astype(np.int16)[None]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=22_050, layout="mono")
        for at in range(0, 22_050, 441 + 7):
            block = np.ascontiguousarray(samples[:, at : at + 441 + 7])
            container.mux(stream.encode(sound_block(block, 22_050, at, "mono")))
        container.mux(stream.encode(None))
    assert torch.equal(load_clip(path).audio, torch.from_numpy(samples[0]) / 32_768)


@pytest.mark.parametrize(
    ("codec", "left", "right"),
    [
        ("pcm_s16le", np.int16(32_767), np.int16(0)),
        ("pcm_u8", np.uint8(255), np.uint8(128)),
        ("pcm_s32le", np.int32(2**31 - 1), np.int32(0)),
    ],
)
def test_channels_are_averaged_and_scaled(
    tmp_path: Path, codec: str, left: np.generic, right: np.generic
) -> None:
    samples = np.tile(np.array([left, right]), 1000)[None]
    write_sound(tmp_path / "a.wav", [(0, samples)], codec, "stereo")
    audio = load_clip(tmp_path / "a.wav").audio
    assert audio.shape == (1000,)
    assert (audio - 0.5).abs().max() < 0.005


def test_sound_beyond_the_range_is_clipped(tmp_path: Path) -> None:
    samples = np.array([[0.5, 1.5, -2.0]], np.float32)
    write_sound(tmp_path / "a.wav", [(0, samples)], "pcm_f32le", "mono")
    assert load_clip(tmp_path / "a.wav").audio.tolist() == [0.5, 1.0, -1.0]


def test_loud_stereo_does_not_clip(tmp_path: Path) -> None:
    samples = np.tile(np.array([[20_000, 20_000]], np.int16), 1000)
    write_sound(tmp_path / "a.wav", [(0, samples)], "pcm_s16le", "stereo")
    assert (load_clip(tmp_path / "a.wav").audio - 20_000 / 32_768).abs().max() < 1e-5


@pytest.mark.parametrize(
    "codec", ["pcm_s16le", "pcm_u8", "pcm_s24le", "pcm_f32le", "pcm_mulaw", "adpcm_ima_wav"]
)
@pytest.mark.parametrize("sample_rate", [8000, 44_100])
def test_a_wav_file_is_sound_alone(tmp_path: Path, codec: str, sample_rate: int) -> None:
    path = tmp_path / "a.wav"
    time = torch.arange(3 * sample_rate, dtype=torch.float64) / sample_rate
    tone = (0.5 * torch.sin(2 * torch.pi * (200 + 100 * time) * time)).float()
    write_clip(path, Clip(None, tone, None, sample_rate), (None, codec), layout="stereo")
    clip = load_clip(path, start=1.5, duration=1.0)
    assert clip.video is clip.fps is None
    assert clip.sample_rate == sample_rate
    truth = tone[3 * sample_rate // 2 :][:sample_rate]
    assert (clip.audio - truth).abs().max() < (0.06 if codec == "adpcm_ima_wav" else 0.02)


@pytest.mark.parametrize("rate", [1000, 8000, 44_100])
def test_resampling_in_pieces_is_resampling_the_whole(tmp_path: Path, rate: int) -> None:
    samples = (torch.rand(1, RATE * 3) - 0.5).numpy()
    write_sound(tmp_path / "a.wav", [(0, samples)], "pcm_f32le", "mono")
    clip = load_clip(tmp_path / "a.wav", sample_rate=rate)
    after_silence = np.concatenate([np.zeros((1, RATE), np.float32), samples], axis=1)
    resampler = av.AudioResampler(rate=rate)
    parts = resampler.resample(sound_block(after_silence, RATE, 0, "mono"))
    whole = np.concatenate([p.to_ndarray()[0] for p in parts + resampler.resample(None)])
    assert len(clip.audio) == 3 * rate
    assert np.abs(clip.audio.numpy() - whole[rate:][: 3 * rate]).max() < 1e-6


def test_sound_of_64_bits_is_refused(tmp_path: Path) -> None:
    samples = np.zeros((1, 100), np.int32)
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s64le", rate=RATE, layout="mono")
        stream.format = "s64"
        convert = av.AudioResampler(format="s64")
        for frame in convert.resample(sound_block(samples, RATE, 0, "mono")):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"has samples of 64 bits, .*; convert it to 32"):
        load_clip(tmp_path / "a.wav")
