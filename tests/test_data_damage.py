"""Files that are cut off, damaged or hostile: the right answer or a clear error."""

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import FPS, RATE, scene, write_clip, write_pictures, write_sound

from avlib import decode
from avlib.data import Clip, load_clip, save_clip

LOSSLESS = {"g": "8", "crf": "1", "cpu-used": "8"}


def moving(seconds: float) -> Clip:
    """Noise that moves and noise that sounds, so that every byte of a file counts."""
    frames = [torch.rand(3, 1, 32, 48).roll(n, 3) for n in range(round(seconds * FPS))]
    return Clip(torch.cat(frames, 1), torch.rand(round(seconds * 48_000)) - 0.5, FPS, 48_000)


def damage(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    damaged = path.with_name("damaged.mp4")
    damaged.write_bytes(content.replace(old, new))
    return damaged


# Cut off


def test_an_mp4_that_lost_its_index_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", scene(2.0), ("libx264", "aac"))
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"mdat") < content.index(b"moov")  # it is written last
    (tmp_path / "b.mp4").write_bytes(content[: content.index(b"moov") - 4])
    with pytest.raises(ValueError, match=r"b.mp4' cannot be decoded .*: it is damaged, cut off or"):
        load_clip(tmp_path / "b.mp4")


CUT = {
    "mp4": ("libx264", "aac", "yuv420p"),
    "mov": ("mjpeg", "pcm_s16le", "yuvj420p"),
    "mkv": ("libx264", "flac", "yuv420p"),
    "webm": ("libvpx-vp9", "libopus", "yuv420p"),
    "flac": (None, "flac", "yuv420p"),
    "aiff": (None, "pcm_s16be", "yuv420p"),
}


@pytest.mark.parametrize("suffix", CUT)
def test_a_file_that_is_cut_off_is_refused_but_for_a_piece_before(
    tmp_path: Path, suffix: str
) -> None:
    picture_code, sound_code, pix_fmt = CUT[suffix]
    clip = moving(6.0) if picture_code else Clip(None, moving(6.0).audio, None, 48_000)
    path, cut = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    index_first = {"movflags": "faststart"} if suffix in ("mp4", "mov") else {}
    codecs = (picture_code, sound_code)
    write_clip(path, clip, codecs, pix_fmt=pix_fmt, settings=LOSSLESS, muxer=index_first)
    truth = load_clip(path, duration=1.0)
    content = path.read_bytes()
    for share in (0.5, 0.61, 0.7003, 0.8):
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="cut off") as raised:
            load_clip(cut)
        assert "a piece" in str(raised.value)
        piece = load_clip(cut, duration=1.0)
        assert torch.equal(piece.audio, truth.audio)
        assert truth.video is None or torch.equal(piece.video, truth.video)


def test_a_wav_file_that_is_cut_off_gives_what_there_is(tmp_path: Path) -> None:
    samples = torch.arange(-16_000, 16_000).numpy().astype(np.int16)[None]
    write_sound(tmp_path / "a.wav", [(0, samples)], "pcm_s16le", "mono")
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:40_001])
    audio = load_clip(tmp_path / "b.wav").audio
    assert 19_900 < len(audio) < 20_000
    assert torch.equal(audio, torch.from_numpy(samples[0, : len(audio)]) / 32_768)


# Damaged within


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("mkv", "mjpeg", "yuvj420p"),
        ("mov", "png", "rgb24"),
    ],
)
def test_pictures_that_a_decoder_makes_up_are_refused(
    tmp_path: Path, suffix: str, codec: str, pix_fmt: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    clip = moving(6.0)._replace(audio=None, sample_rate=None)
    write_clip(path, clip, (codec, None), pix_fmt=pix_fmt, settings=LOSSLESS)
    truth = load_clip(path).video
    content = bytearray(path.read_bytes())
    at = len(content) * 5 // 8
    content[at : at + 30] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged or cut off after [23]\.\d\d s .*; choose"):
        load_clip(path)
    assert torch.equal(load_clip(path, duration=1.0).video, truth[:, :16])
    assert torch.equal(load_clip(path, start=5.5).video, truth[:, 88:])


def test_sound_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    noise = moving(2.0).audio
    path = tmp_path / "a.mkv"
    write_clip(path, Clip(None, noise, None, 48_000), (None, "flac"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"audio of .* is damaged or cut off after 0\.\d\d s"):
        load_clip(path)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -3e38])
def test_samples_that_are_no_sound_are_refused(tmp_path: Path, wrong: float) -> None:
    samples = np.zeros((1, 1000), np.float32)
    samples[0, 700] = wrong
    write_sound(tmp_path / "a.wav", [(0, samples)], "pcm_f32le", "mono")
    with pytest.raises(ValueError, match=r"has samples up to (nan|inf|3e\+38), wanted \[-1, 1\]"):
        load_clip(tmp_path / "a.wav")


def test_damaged_time_stamps_do_not_fill_the_memory(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.mkv", [0, 10, 200_000_000])
    with pytest.raises(ValueError, match=r"no usable time stamps .* convert it again"):
        load_clip(tmp_path / "a.mkv", fps=10.0)


def test_a_last_picture_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_pictures(path, [0, 10, 20])
    content = bytearray(path.read_bytes())
    steps = content.index(b"stts") + 12  # how many frames, and how long they last
    content[steps + 12 : steps + 16] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no usable time stamps"):
        load_clip(path, fps=10.0)


def test_a_stated_rate_of_1000_needs_a_choice(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.mp4", [0, 1, 2, 3], per=1000)
    with pytest.raises(ValueError, match="states 1000 frames per second; choose"):
        load_clip(tmp_path / "a.mp4")
    assert load_clip(tmp_path / "a.mp4", fps=1000.0).video.shape[1] == 4


def test_an_error_that_is_kept_keeps_nothing_open(tmp_path: Path) -> None:
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        pytest.skip("counts open files and threads where Linux lists them")
    path = tmp_path / "a.mp4"
    save_clip(path, scene(3.0))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    write_pictures(tmp_path / "b.mkv", [0, 10, 200_000_000])
    kept, opened = [], []
    for _ in range(5):
        for file in (path, tmp_path / "b.mkv"):
            with pytest.raises(ValueError, match=r"choose a piece|time stamps") as raised:
                load_clip(file, fps=10.0, sample_rate=8000)
            kept.append(raised.value)
        lists = ("/proc/self/fd", "/proc/self/task")
        opened.append([len(os.listdir(each)) for each in lists])  # noqa: PTH208
    assert opened[0] == opened[-1]


# Claims


def test_more_than_the_most_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    save_clip(path, scene(1.0))
    monkeypatch.setattr(decode, "MOST_BYTES", 2**16)  # 16,384 values
    with pytest.raises(ValueError, match=r"video of .* takes more than 6\.1\d*e-05 GiB; choose"):
        load_clip(path)
    with pytest.raises(ValueError, match=r"audio of .* takes more .* or a smaller sample_rate"):
        load_clip(path, size=4, sample_rate=48_000)
    assert load_clip(path, size=4, duration=0.02).video.shape == (3, 1, 4, 4)


def gif(width: int, height: int) -> bytes:
    """One black pixel in the corner of a picture of any size, in 40 bytes."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return screen + b"\x21\xf9\x04\0\x0a\0\0\0" + image + b";"


def test_a_picture_of_billions_of_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(gif(64, 48))
    assert load_clip(path).video.shape == (3, 1, 48, 64)
    for side in (9000, 65_535):
        path.write_bytes(gif(side, side))
        with pytest.raises(ValueError, match=r"a.gif' is damaged or cut off after 0.00 s"):
            load_clip(path)
    path.write_bytes(gif(1, 60_000))
    assert load_clip(path).video.shape == (3, 1, 60_000, 1)
    with pytest.raises(ValueError, match=r"60000×1, to cover size 64×64 .* 3840000×64; choose"):
        load_clip(path, size=64)


@pytest.mark.parametrize("rate", [1, 999, 400_000])
def test_a_sample_rate_out_of_range_is_refused(tmp_path: Path, rate: int) -> None:
    write_sound(tmp_path / "a.wav", [(0, np.zeros((1, 1000), np.int16))], "pcm_s16le", "mono")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:32] = struct.pack("<II", rate, 2 * rate)
    (tmp_path / "a.wav").write_bytes(content)
    wanted = f"has a sample rate of {rate} Hz, wanted 1000 to 384000 Hz; convert it again"
    with pytest.raises(ValueError, match=wanted):
        load_clip(tmp_path / "a.wav", sample_rate=RATE)


# Hostile


def test_playlists_that_point_at_other_files_are_refused(tmp_path: Path) -> None:
    save_clip(tmp_path / "a.mp4", scene(0.5))
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile 'a.mp4'\n")
    with av.open(str(tmp_path / "b.mp4")) as container:  # FFmpeg by itself follows it
        assert container.format.name == "concat"
    with pytest.raises(ValueError, match=r"b.mp4' cannot be decoded"):
        load_clip(tmp_path / "b.mp4")


def test_thousands_of_tracks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    save_clip(path, scene(0.5)._replace(video=None, fps=None))
    content = path.read_bytes()
    at = content.index(b"trak") - 4
    length = struct.unpack_from(">I", content, at)[0]
    head = content.index(b"moov") - 4
    longer = struct.pack(">I", struct.unpack_from(">I", content, head)[0] + 5000 * length)
    tracks = content[at : at + length] * 5000
    path.write_bytes(content[:head] + longer + content[head + 4 : at] + tracks + content[at:])
    with pytest.raises(ValueError, match=r"a.mp4' cannot be decoded"):
        load_clip(path)


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
    with pytest.raises(ValueError, match=r"b.mp4' is damaged or cut off after 0\.\d\d s"):
        load_clip(tmp_path / "b.mp4")
