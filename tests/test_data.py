"""Clips come back as they were saved; what the arguments of `load_clip` and `save_clip` mean."""

import os
import runpy
from pathlib import Path

import pytest
import torch
from clips import FPS, RATE, flashes, scene, seen_and_heard

from avlib.data import EXAMPLE_CLIP, Clip, load_clip, save_clip


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
    for name in ("x" * 300, "x" * 5000, "a\0b.mp4", "\ud800", "a.mp4/b.mp4"):
        with pytest.raises(FileNotFoundError, match=r"load_clip: no file at .* check the path"):
            load_clip(name)
    (tmp_path / "circle.mp4").symlink_to("circle.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere.mp4")
    for name in ("circle.mp4", "gone.mp4"):
        with pytest.raises(FileNotFoundError, match=f"no file at '{name}'; check the path"):
            load_clip(name)


def test_a_file_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ['it\'s a "b".mp4', "日本 é.mp4", "%03d.mp4", "-i.mp4", "-", "~", "x" * 250]
    names += ["file:a.mp4", "http:a.mp4", "pipe:0", "concat:a|b.mp4", "a?b#c.mp4", "*.mp4"]
    names += ["a.m3u8", "a.png", "a\nb.mp4", os.fsdecode(b"\xff.mp4")]
    truth = load_clip(EXAMPLE_CLIP, duration=0.1, size=8)
    for name in names:
        try:
            (tmp_path / name).write_bytes(EXAMPLE_CLIP.read_bytes())
        except OSError:  # this system allows no such name
            continue
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(name)
        for path in (name, tmp_path / name, "link"):
            clip = load_clip(path, duration=0.1, size=8)
            assert torch.equal(clip.video, truth.video)
            assert torch.equal(clip.audio, truth.audio)


def test_what_is_no_file_of_sound_or_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no film\n" * 100)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "endless.mp4").symlink_to("/dev/zero")
    for path, message in [
        (tmp_path / "endless.mp4", "is a device or pipe, wanted"),
        (tmp_path, "is a folder, wanted a video or sound file"),
        (tmp_path / "empty.mp4", "empty.mp4' is empty, wanted"),
        (tmp_path / "pipe.mp4", "is a device or pipe, wanted"),
        (tmp_path / "text.mp4", "text.mp4' cannot be decoded .*convert it to mp4"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_clip(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"start": -1.0},
            r"start is -1.0, wanted seconds above 0, at most 1e\+09; or leave",
        ),
        ({"start": float("nan")}, "start is nan, wanted seconds"),
        ({"start": 1e300}, r"start is 1e\+300, wanted seconds above 0, at most 1e\+09"),
        ({"start": 1e9}, "before start 1000000000.0 s; start earlier"),
        ({"duration": 10**400}, "duration is 10+, wanted seconds above 0, at most"),
        ({"start": 20.5}, "video of .* ends at 20.000 s, before start 20.5 s; start earlier"),
        ({"duration": 0.0}, "duration is 0.0, wanted seconds above 0"),
        ({"duration": float("inf")}, "duration is inf, wanted seconds above 0, at most"),
        ({"fps": 1e12}, "fps is 1000000000000.0, wanted 0.001 to 10000"),
        ({"sample_rate": 10**10}, "sample_rate is 10000000000, wanted 1000 to 384000 Hz"),
        ({"size": 10**12}, "size is 1000000000000; give at most 8192 pixels a side"),
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
        ({"sample_rate": True}, "sample_rate is True, wanted a whole number of Hz"),
        ({"start": True}, "start is True, wanted a number of seconds"),
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
