"""Pictures: odd sizes, turned or mirrored ones, and what is no picture."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import FPS, RATE, grey, scene, write_clip, write_sound
from torch import Tensor

from avlib.data import Clip, load_clip, save_clip


@pytest.mark.parametrize(("fps", "ticks"), [(10.0, 10), (20.0, 5), (50.0, 2), (30.0, None)])
def test_a_gif_is_pictures_on_a_clock_of_hundredths(
    tmp_path: Path, fps: float, ticks: int | None
) -> None:
    video = (torch.arange(24) % 8 / 8)[None, :, None, None].expand(3, -1, 16, 16)
    write_clip(tmp_path / "a.gif", Clip(video, None, fps, None), ("gif", None), pix_fmt="gray")
    with av.open(str(tmp_path / "a.gif")) as container:
        stamps = [float(f.pts * f.time_base) for f in container.decode(video=0)]
    assert stamps == pytest.approx([round(100 * n / fps) / 100 for n in range(24)])
    for start in (0, 8):
        clip = load_clip(tmp_path / "a.gif", start=start / fps, fps=fps)
        assert clip.audio is clip.sample_rate is None
        assert (clip.video - video[:, start:]).abs().max() < 0.01
    if ticks:
        assert load_clip(tmp_path / "a.gif").fps == pytest.approx(fps)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv444p"),
        ("mov", "png", "rgb24"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("gif", "gif", "gray"),
    ],
)
@pytest.mark.parametrize("shape", [(33, 47), (1, 31), (7, 1)])
def test_odd_sizes_keep_every_row_and_column(
    tmp_path: Path, suffix: str, codec: str, pix_fmt: str, shape: tuple[int, int]
) -> None:
    height, width = shape
    video = torch.full((3, 4, height, width), 0.3)
    video[:, :, height // 2 :] = 0.7  # grey has no colour that a code could share
    video[:, :, :, width // 2 :] += 0.2
    settings = {"crf": "4", "cpu-used": "8"} if "lib" in codec else {}
    path = tmp_path / f"a.{suffix}"
    write_clip(
        path, Clip(video, None, 10.0, None), (codec, None), pix_fmt=pix_fmt, settings=settings
    )
    clip = load_clip(path)
    assert clip.video.shape == (3, 4, height, width)
    assert (clip.video - video).abs().max() < 0.04
    assert load_clip(path, size=(5, 9)).video.shape == (3, 4, 5, 9)


def player(path: Path, matrix: tuple[int, ...]) -> None:
    """Tell players how to turn the pictures: x' = a·x + c·y + tx, y' = b·x + d·y + ty."""
    content = bytearray(path.read_bytes())
    a, b, c, d, tx, ty = (value << 16 for value in matrix)
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, tx, ty, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0, 1, -1, 0, 32, 0), lambda video: video.rot90(-1, (2, 3))),  # phone held upright
        ((-1, 0, 0, -1, 64, 32), lambda video: video.rot90(2, (2, 3))),
        ((0, -1, 1, 0, 0, 64), lambda video: video.rot90(1, (2, 3))),
        ((-1, 0, 0, 1, 64, 0), lambda video: video.flip(3)),  # a mirror
        ((1, 0, 0, -1, 0, 32), lambda video: video.flip(2)),
        ((0, 1, 1, 0, 0, 0), lambda video: video.transpose(2, 3)),
    ],
)
def test_pictures_are_turned_upright(
    tmp_path: Path, suffix: str, matrix: tuple[int, ...], upright: Callable[[Tensor], Tensor]
) -> None:
    video = torch.zeros(3, 4, 32, 64)
    video[:, :, :16, :32] = 1.0  # top left
    video[:, :, 16:, :32] = 0.5  # bottom left
    path = tmp_path / "a.mp4"
    save_clip(path, Clip(video, None, FPS, None))
    player(path, matrix)
    if suffix == "mkv":
        with av.open(str(path)) as source, av.open(str(tmp_path / "a.mkv"), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = tmp_path / "a.mkv"
    truth = upright(video)
    back = load_clip(path).video
    assert back.shape == truth.shape
    assert (back - truth).abs().mean() < 0.01
    half = load_clip(path, size=(truth.shape[2] // 2, truth.shape[3] // 2)).video
    assert (half - truth[:, :, ::2, ::2]).abs().mean() < 0.05


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


def test_subtitles_are_no_picture_and_may_last_longer(tmp_path: Path) -> None:
    clip = scene(1.0)._replace(audio=None, sample_rate=None)
    save_clip(tmp_path / "a.mp4", clip)
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:01:00,000\nhello\n")
    with (
        av.open(str(tmp_path / "a.mp4")) as film,
        av.open(str(tmp_path / "a.srt")) as words,
        av.open(str(tmp_path / "b.mkv"), "w") as target,
    ):
        pairs = [(source, s) for source in (words, film) for s in source.streams]
        streams = {s: target.add_stream_from_template(s) for _, s in pairs}
        for source in (words, film):
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream]
                    target.mux(packet)
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert container.duration >= 60 * av.time_base
    back = load_clip(tmp_path / "b.mkv")
    assert back.video.shape == clip.video.shape
