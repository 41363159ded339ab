"""Clips: files are made with PyAV in a temporary folder, so the truth is known."""

import os
import runpy
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from avlib import data
from avlib.data import EXAMPLE_CLIP, Clip, load_clip, save_clip

torch.set_num_threads(1)
FPS, RATE = 16.0, 16_000


def scene(seconds: float, height: int = 32, width: int = 48) -> Clip:
    """Slowly changing colours and a tone that rises, so that each moment differs."""
    time = torch.arange(round(seconds * FPS)) / FPS
    video = torch.empty(3, len(time), height, width)
    video[0], video[1], video[2] = 0.2, (time / seconds)[:, None, None], 0.7
    video[0, :, :, : width // 2] = 0.9
    moment = torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE
    audio = 0.5 * torch.sin(2 * torch.pi * (300 * moment + 150 * moment**2 / seconds))
    return Clip(video, audio.float(), FPS, RATE)


def flashes(seconds: float, events: list[float], fps: float = FPS, rate: int = RATE) -> Clip:
    """A dark silent room where a flash and a click fall together at each event."""
    video = torch.full((3, round(seconds * fps), 32, 32), 0.1)
    audio = torch.zeros(round(seconds * rate))
    for event in events:
        video[:, round(event * fps)] = 0.9
        audio[round(event * rate) :][: rate // 200] = 0.8
    return Clip(video, audio, fps, rate)


def seen_and_heard(clip: Clip) -> tuple[list[float], list[float]]:
    """When the picture turns bright, and when a sound begins, in seconds after the clip's start."""
    bright = clip.video.mean((0, 2, 3)) > 0.5
    onsets = torch.diff(bright.int(), prepend=torch.zeros(1).int()) == 1
    loud = (clip.audio.abs() > 0.3).nonzero().flatten()
    quiet_before = torch.diff(loud, prepend=torch.tensor([-RATE])) > clip.sample_rate // 20
    return (onsets.nonzero().flatten() / clip.fps).tolist(), (
        loud[quiet_before] / clip.sample_rate
    ).tolist()


def grey(level: int, size: int = 16) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8))


def sound_block(samples: np.ndarray, rate: int, position: int, layout: str) -> av.AudioFrame:
    code = {"float32": "fltp", "int16": "s16", "uint8": "u8", "int32": "s32"}[samples.dtype.name]
    frame = av.AudioFrame.from_ndarray(samples, code, layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
    return frame


def write_sound(path: Path, blocks: list[tuple[int, np.ndarray]], codec: str, layout: str) -> None:
    """Blocks of samples at positions, so that a file can start late or have a hole."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout=layout)
        for position, samples in blocks:
            container.mux(stream.encode(sound_block(samples, RATE, position, layout)))
        container.mux(stream.encode(None))


def write_pictures(path: Path, ticks: list[int], codec: str = "libx264", per: int = 100) -> None:
    """Frame n has grey level 10 · n and is shown from `ticks[n]` / `per` seconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=per, options={"crf": "1"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for n, tick in enumerate(ticks):
            frame = grey(10 * n)
            frame.pts, frame.time_base = tick, Fraction(1, per)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def levels(video: Tensor) -> list[int]:
    """Which frame of `write_pictures` is seen."""
    return (video.mean((0, 2, 3)) * 25.5).round().int().tolist()


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    save_clip(path, flashes(20.0, [1.0, 5.5, 12.25, 19.5]))
    return path


# Round trip


def test_a_saved_clip_comes_back(tmp_path: Path) -> None:
    clip = scene(1.5)
    save_clip(tmp_path / "a.mp4", clip)
    back = load_clip(tmp_path / "a.mp4")
    assert back.video.shape == clip.video.shape
    assert back.audio.shape == clip.audio.shape
    assert (back.fps, back.sample_rate) == (FPS, RATE)
    assert back.video.dtype == back.audio.dtype == torch.float32
    assert back.video.min() >= 0
    assert back.video.max() <= 1
    assert back.audio.abs().max() <= 1
    # H.264 shares colour between neighbours, so the border in the middle is left out.
    inner = [*range(20), *range(28, 48)]
    assert (back.video - clip.video)[..., inner].abs().max() < 0.04
    assert torch.corrcoef(torch.stack([back.audio, clip.audio]))[0, 1] > 0.999


@pytest.mark.parametrize(
    ("fps", "sample_rate", "frames", "samples"),
    [
        (29.97, 44_100, 5, 4321),
        (12.5, 8000, 7, 1),
        (1 / 3, 48_000, 1, 1000),
        (60.0, 11_025, 61, 999),
    ],
)
def test_lengths_and_rates_come_back_exactly(
    tmp_path: Path, fps: float, sample_rate: int, frames: int, samples: int
) -> None:
    clip = Clip(torch.rand(3, frames, 16, 16), torch.rand(samples) - 0.5, fps, sample_rate)
    save_clip(tmp_path / "a.mp4", clip)
    back = load_clip(tmp_path / "a.mp4")
    assert back.video.shape == clip.video.shape
    assert back.audio.shape == clip.audio.shape
    assert back.fps == pytest.approx(fps)
    assert back.sample_rate == sample_rate


def test_black_is_0_and_white_is_1(tmp_path: Path) -> None:
    video = torch.zeros(3, 2, 32, 32)
    video[..., 16:] = 1.0
    save_clip(tmp_path / "a.mp4", Clip(video, None, FPS, None))
    back = load_clip(tmp_path / "a.mp4").video
    assert back[..., :8].max() == 0.0
    assert back[..., 24:].min() == 1.0


def test_video_alone_and_audio_alone(tmp_path: Path) -> None:
    clip = scene(0.5)
    save_clip(tmp_path / "video.mp4", Clip(clip.video, None, FPS, None))
    save_clip(tmp_path / "audio.mp4", Clip(None, clip.audio, None, RATE))
    video, audio = load_clip(tmp_path / "video.mp4"), load_clip(tmp_path / "audio.mp4", fps=5.0)
    assert video.audio is video.sample_rate is None
    assert video.video.shape == clip.video.shape
    assert audio.video is audio.fps is None
    assert audio.audio.shape == clip.audio.shape


def test_the_shipped_clip_loads_and_is_small() -> None:
    clip = load_clip(EXAMPLE_CLIP)
    assert clip.video.shape == (3, 64, 128, 128)
    assert clip.audio.shape == (64_000,)
    assert (clip.fps, clip.sample_rate) == (16.0, 16_000)
    assert EXAMPLE_CLIP.stat().st_size <= 300_000


def test_the_shipped_clip_is_what_its_script_draws() -> None:
    script = Path(__file__).parents[1] / "notebooks" / "assets" / "make_clip.py"
    make = runpy.run_path(str(script))
    clip = load_clip(EXAMPLE_CLIP)
    for k in (0, 4, 24, 45, 63):
        assert (make["draw"](k / 16) - clip.video[:, k]).abs().mean() < 0.01
    assert torch.corrcoef(torch.stack([make["sing"](), clip.audio]))[0, 1] > 0.99


# What the arguments mean


@pytest.mark.parametrize(
    ("fps", "sample_rate", "duration"),
    [(None, None, 1.0), (8.0, 8000, 0.7), (30.0, 44_100, 1.01), (29.97, 22_050, 0.5)],
)
def test_duration_gives_rounded_counts(
    long_file: Path, fps: float | None, sample_rate: int | None, duration: float
) -> None:
    clip = load_clip(
        long_file, start=3.3, duration=duration, fps=fps, sample_rate=sample_rate, size=8
    )
    assert clip.video.shape == (3, round(duration * (fps or FPS)), 8, 8)
    assert clip.audio.shape == (round(duration * (sample_rate or RATE)),)
    assert (clip.fps, clip.sample_rate) == (fps or FPS, sample_rate or RATE)


def test_a_file_that_ends_early_gives_what_there_is(long_file: Path) -> None:
    clip = load_clip(long_file, start=19.0, duration=5.0)
    assert clip.video.shape[1] == 16
    assert clip.audio.shape == (16_000,)


@pytest.mark.parametrize("start", [0.5, 1.0, 2.25])
def test_a_piece_is_a_slice_of_the_whole(tmp_path: Path, start: float) -> None:
    save_clip(tmp_path / "a.mp4", scene(4.0))
    for rate in (RATE, 12_000):
        whole = load_clip(tmp_path / "a.mp4", sample_rate=rate)
        piece = load_clip(tmp_path / "a.mp4", start=start, duration=1.0, sample_rate=rate)
        frame, sample = round(start * FPS), round(start * rate)
        assert torch.equal(piece.video, whole.video[:, frame : frame + 16])
        assert (piece.audio - whole.audio[sample : sample + rate]).abs().max() < 1e-5


@pytest.mark.parametrize("extra", [{}, {"fps": 25.0, "sample_rate": 44_100}, {"fps": 7.0}])
@pytest.mark.parametrize("start", [0.0, 4.8, 5.5, 12.1])
def test_flash_and_click_stay_together(
    long_file: Path, start: float, extra: dict[str, float]
) -> None:
    clip = load_clip(long_file, start=start, duration=7.0, **extra)
    seen, heard = seen_and_heard(clip)
    events = [t - start for t in (1.0, 5.5, 12.25, 19.5) if start <= t < start + 7]
    assert heard == pytest.approx(events, abs=0.002)
    # A frame on the grid may miss a flash that is shorter than its step.
    if clip.fps >= FPS:
        assert seen == pytest.approx(events, abs=1 / FPS)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mov", "avi"])
def test_other_formats_keep_flash_and_click_together(tmp_path: Path, suffix: str) -> None:
    codecs = {"webm": ("libvpx-vp9", "libopus"), "avi": ("mpeg4", "pcm_s16le")}
    codec, sound_codec = codecs.get(suffix, ("libx264", "aac"))
    clip = flashes(3.0, [0.5, 2.5], fps=25.0, rate=48_000)
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream(codec, rate=25)
        pictures.width = pictures.height = 32
        pictures.pix_fmt = "yuv420p"
        sound = container.add_stream(sound_codec, rate=48_000, layout="mono")
        for frame in [*data._video_frames(clip.video, Fraction(25)), None]:
            container.mux(pictures.encode(frame))
        block = (clip.audio.numpy() * 32767).astype(np.int16)[None]
        if suffix != "avi":
            block = clip.audio.numpy()[None]
        for frame in [sound_block(block, 48_000, 0, "mono"), None]:
            container.mux(sound.encode(frame))
    for start in (0.0, 2.0):
        seen, heard = seen_and_heard(load_clip(path, start=start, duration=1.0))
        assert heard == pytest.approx([0.5], abs=0.02)
        assert seen == pytest.approx(heard, abs=1 / 25 + 0.02)


def test_size_covers_and_keeps_the_centre(tmp_path: Path) -> None:
    video = torch.zeros(3, 2, 40, 80)
    video[0, :, :, 20:60] = 1.0  # the middle half is red
    video[2, :, 10:30] = 1.0  # so is the middle half of the height, in blue
    save_clip(tmp_path / "a.mp4", Clip(video, None, FPS, None))
    square = load_clip(tmp_path / "a.mp4", size=20).video[:, 0]
    assert square.shape == (3, 20, 20)
    assert square[0].min() > 0.7  # only the middle half of the width is left
    assert square[2, :4].max() < 0.2  # and all of the height
    assert square[2, 7:13].min() > 0.7
    wide = load_clip(tmp_path / "a.mp4", size=(10, 40)).video[:, 0]
    assert wide.shape == (3, 10, 40)
    assert wide[0, :, :8].max() < 0.2  # all of the width is left
    assert wide[2].min() > 0.7  # only the middle half of the height
    assert load_clip(tmp_path / "a.mp4", size=(90, 70)).video.shape == (3, 2, 90, 70)


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


def test_a_picture_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    video = torch.zeros(3, 4, 32, 64)
    video[:, :, :16, :32] = 1.0  # top left
    save_clip(tmp_path / "a.mp4", Clip(video, None, FPS, None))
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44  # says how a player has to turn the pictures
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = quarter  # clockwise, as a phone writes when held upright
    (tmp_path / "b.mp4").write_bytes(content)
    for size, shape in ((None, (64, 32)), ((32, 16), (32, 16))):
        picture = load_clip(tmp_path / "b.mp4", size=size).video[:, 0]
        height, width = picture.shape[1:]
        assert (height, width) == shape
        assert picture[:, : height // 2 - 4, width // 2 + 4 :].min() > 0.8  # now top right
        assert picture[:, height // 2 + 4 :].max() < 0.2


def test_a_cover_image_is_no_picture(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.mp3", [(0, np.zeros((1, RATE), np.float32))], "libmp3lame", "mono")
    grey(100).save(tmp_path / "cover.jpg")
    cover = b"\0image/jpeg\0\x03\0" + (tmp_path / "cover.jpg").read_bytes()
    cover = b"APIC" + struct.pack(">I", len(cover)) + b"\0\0" + cover
    length = bytes(len(cover) >> shift & 127 for shift in (21, 14, 7, 0))
    sound = (tmp_path / "a.mp3").read_bytes()
    if sound[:3] == b"ID3":
        sound = sound[10 + int.from_bytes(sound[6:10], "big") :]
    (tmp_path / "b.mp3").write_bytes(b"ID3\3\0\0" + length + cover + sound)
    with av.open(str(tmp_path / "b.mp3")) as container:
        assert len(container.streams.video) == 1
    clip = load_clip(tmp_path / "b.mp3")
    assert clip.video is clip.fps is None
    assert clip.audio.shape == (RATE,)


@pytest.mark.parametrize("fault", ["late", "error"])
def test_a_seek_that_goes_wrong_is_made_up_for(
    long_file: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    truth = load_clip(long_file, start=5.0, duration=1.0)
    frames = data._frames

    def faulty(stream: av.stream.Stream, seconds: float | None) -> Iterator[av.frame.Frame]:
        if seconds is not None and fault == "error":
            raise av.error.InvalidDataError(1, "within a frame")
        yield from frames(stream, None if seconds is None else seconds + 3)

    monkeypatch.setattr(data, "_frames", faulty)
    clip = load_clip(long_file, start=5.0, duration=1.0)
    assert torch.equal(clip.video, truth.video)
    assert torch.equal(clip.audio, truth.audio)


def test_a_size_that_changes_midway_is_fitted_to_the_first(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "b.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        for n, size in enumerate((16, 32)):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = size, size, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            frame = grey(200, size).reformat(format="yuvj420p")
            frame.pts, frame.time_base = n, Fraction(1, 10)
            for packet in encoder.encode(frame):
                packet.stream, packet.pts, packet.dts = stream, n, n
                packet.time_base = Fraction(1, 10)
                container.mux(packet)
    video = load_clip(tmp_path / "b.mkv").video
    assert video.shape == (3, 2, 16, 16)
    assert (video - 200 / 255).abs().max() < 0.02


# Cost


def test_only_the_piece_is_decoded(long_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: dict[str, list[float]] = {"video": [], "audio": []}
    decode = data._decode

    def watched(stream: av.stream.Stream, zero: float, start: float) -> Iterator[tuple]:
        for time, frame in decode(stream, zero, start):
            decoded[stream.type].append(time)
            yield time, frame

    monkeypatch.setattr(data, "_decode", watched)
    load_clip(long_file, start=12.0, duration=0.5)
    # One second of margin, one from key frame to key frame, one block of sound.
    assert 9.9 < min(decoded["video"]) <= 12.0
    assert max(decoded["video"]) <= 12.5
    assert 9.9 < min(decoded["audio"]) <= 11.0
    assert max(decoded["audio"]) <= 13.6


def test_files_are_closed(long_file: Path, tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        pytest.skip("counts open files where Linux lists them")
    text = tmp_path / "text.mp4"
    text.write_text("no film\n" * 100)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        load_clip(long_file, start=3.0, duration=0.25)
        with pytest.raises(ValueError, match="ends at"):
            load_clip(long_file, start=30.0)
        with pytest.raises(ValueError, match="cannot be decoded"):
            load_clip(text)
        save_clip(tmp_path / "a.mp4", scene(0.25))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# Bad input


def test_missing_files_and_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cwd = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file at 'x.mp4'; .* start at {cwd}"):
        load_clip("x.mp4")
    with pytest.raises(FileNotFoundError, match=r"https://a.b/x.mp4'; download the file"):
        load_clip("https://a.b/x.mp4")
    with pytest.raises(FileNotFoundError, match="no file at 'concat:a"):
        load_clip("concat:a.mp4|b.mp4")


def test_what_is_no_file_of_sound_or_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film\n" * 100)
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, message in [
        (tmp_path, "is a folder, wanted a video or sound file"),
        (tmp_path / "empty.mp4", "empty.mp4' is empty, wanted"),
        (tmp_path / "pipe.mp4", "is a device or pipe, wanted"),
        (tmp_path / "text.mp4", "text.mp4' cannot be decoded .*convert it to mp4"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_clip(path)


def test_playlists_that_point_at_other_files_are_refused(tmp_path: Path) -> None:
    save_clip(tmp_path / "a.mp4", scene(0.5))
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile 'a.mp4'\n")
    with av.open(str(tmp_path / "b.mp4")) as container:  # FFmpeg by itself follows it
        assert container.format.name == "concat"
    with pytest.raises(ValueError, match=r"b.mp4' cannot be decoded"):
        load_clip(tmp_path / "b.mp4")


def damage(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    damaged = path.with_name("damaged.mp4")
    damaged.write_bytes(content.replace(old, new))
    return damaged


def test_streams_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    save_clip(path, scene(1.0))
    with pytest.raises(ValueError, match="has neither pictures nor sound; pass another"):
        load_clip(damage(path, b"trak", b"skip"))
    with pytest.raises(ValueError, match=r"video of .* is in a code .* convert it to mp4"):
        load_clip(damage(path, b"avc1", b"zzzz"))
    content = path.read_bytes()
    middle = content.index(b"mdat") + 4 + (len(content) - content.index(b"mdat")) // 2
    (tmp_path / "b.mp4").write_bytes(content[:middle] + b"\xff" * (len(content) - middle))
    with pytest.raises(ValueError, match=r"b.mp4' cannot be decoded"):
        load_clip(tmp_path / "b.mp4")


def test_a_stated_rate_of_1000_needs_a_choice(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.mp4", [0, 1, 2, 3], per=1000)
    with pytest.raises(ValueError, match="states 1000 frames per second; choose"):
        load_clip(tmp_path / "a.mp4")
    assert load_clip(tmp_path / "a.mp4", fps=1000.0).video.shape[1] == 4


def test_damaged_time_stamps_do_not_fill_the_memory(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.mkv", [0, 10, 200_000_000])
    with pytest.raises(ValueError, match=r"no usable time stamps .* convert it again"):
        load_clip(tmp_path / "a.mkv", fps=10.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1.0}, "start is -1.0, wanted seconds above 0; or leave it out"),
        ({"start": float("nan")}, "start is nan, wanted seconds"),
        ({"start": 20.5}, "video of .* ends at 20.000 s, before start 20.5 s; start earlier"),
        ({"duration": 0.0}, "duration is 0.0, wanted seconds above 0"),
        ({"duration": float("inf")}, "duration is inf, wanted seconds above 0; or leave it out"),
        ({"fps": 1e12}, "fps is 1000000000000.0, wanted 0.001 to 10000"),
        ({"sample_rate": 10**10}, "sample_rate is 10000000000, wanted 1000 to 384000 Hz"),
        ({"size": 10**12}, "size is 1000000000000; give at most 16384 pixels a side"),
        ({"fps": 0.0}, "fps is 0.0, wanted 0.001 to 10000 frames per second; or leave"),
        ({"fps": -5.0}, "fps is -5.0"),
        ({"size": 0}, "load_clip: size: got 0; give a positive"),
        ({"size": (8, -8)}, r"load_clip: size: got \(8, -8\)"),
        ({"sample_rate": 0}, "sample_rate is 0, wanted 1000 to 384000 Hz"),
    ],
)
def test_arguments_out_of_range(long_file: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_clip(long_file, **arguments)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 3}, "path is of type int, wanted a str or a Path"),
        ({"start": "1"}, "start is '1', wanted a number of seconds"),
        ({"duration": [1.0]}, r"duration is \[1.0\], wanted a number of seconds"),
        ({"fps": "25"}, "fps is '25', wanted a number of frames per second"),
        ({"sample_rate": 8000.0}, "sample_rate is 8000.0, wanted a whole number of Hz"),
    ],
)
def test_arguments_of_another_type(long_file: Path, arguments: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        load_clip(**{"path": long_file, **arguments})


def test_sound_that_ends_before_the_pictures(tmp_path: Path) -> None:
    clip = scene(3.0)
    save_clip(tmp_path / "a.mp4", clip._replace(audio=clip.audio[:RATE]))
    assert load_clip(tmp_path / "a.mp4", start=0.5, duration=1.0).audio.shape == (8000,)
    with pytest.raises(ValueError, match=r"audio of .* ends at 1\.0.* before start 2.0 s"):
        load_clip(tmp_path / "a.mp4", start=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None, "audio": None}, "video and audio are both None"),
        (
            {"video": torch.rand(1, 3, 8, 8, 8)},
            r"\(1, 3, 8, 8, 8\), .* video\[0\]",
        ),
        ({"video": torch.rand(1, 8, 8, 8)}, r"make grey RGB with video.expand"),
        ({"video": torch.rand(3, 0, 8, 8)}, r"shape \(3, 0, 8, 8\)"),
        (
            {"video": torch.rand(3, 8, 9, 8)},
            r"height 9 .*crop with video\[:, :, :8, :8\]",
        ),
        ({"video": torch.rand(3, 8, 8, 8) * 255}, r"wanted floating point in \[0, 1\]; use"),
        ({"video": torch.full((3, 8, 8, 8), torch.nan)}, r"in \[nan, nan\]"),
        ({"video": torch.zeros(3, 8, 8, 8).byte()}, "video is torch.uint8"),
        ({"fps": None}, "fps is None, wanted a rate from"),
        ({"fps": 0.0}, "fps is 0.0, wanted a rate from"),
        ({"audio": torch.rand(1, 800)}, r"audio has shape \(1, 800\)"),
        ({"audio": torch.rand(0)}, r"audio has shape \(0,\)"),
        ({"audio": torch.full((800,), 3.0)}, r"up to 3, wanted floating point in \[-1, 1\]"),
        ({"audio": torch.ones(800).short()}, r"torch.int16 up to 1, .* audio / 32768"),
        ({"sample_rate": 12_345}, r"sample_rate is 12345, AAC has \[7350, 8000"),
        ({"sample_rate": None}, "sample_rate is None"),
    ],
)
def test_clips_that_cannot_be_saved(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_clip(tmp_path / "a.mp4", scene(0.25)._replace(**change))
    assert not (tmp_path / "a.mp4").exists()


def test_paths_that_cannot_be_saved_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*; make it first"):
        save_clip(tmp_path / "none" / "a.mp4", scene(0.25))
    with pytest.raises(ValueError, match=r"wanted a name ending in .mp4"):
        save_clip(tmp_path / "a.avi", scene(0.25))
