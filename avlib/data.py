"""Clips from files: pictures and sound as two tensors that share one clock.

PyAV brings its own FFmpeg, so nothing else has to be installed. Time 0 is the file's first picture
or sound, whichever comes first. Everything is placed by time stamp, never by counting frames, so a
file with a varying frame rate, a late start or a hole stays in step.
"""

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import Interpolation
from jaxtyping import Float, UInt8
from torch import Tensor

from avlib.tokens import pair

EXAMPLE_CLIP = Path(__file__).parent / "course" / "clip.mp4"

# FFmpeg chooses a reader by content, whatever the file is called. Playlists and scripts (HLS,
# concat, SDP, …) can point at other files and hosts, so only self-contained formats are let in,
# and of those none (MPEG-TS, FLV, …) where streams turn up midway, which PyAV 18 cannot follow.
FORMATS = "mov,mp4,matroska,webm,avi,asf,ogg,wav,aiff,flac,mp3,aac,gif"

# Sound is read from a second before the piece to a second after it: decoders need some blocks to
# settle, the resampler needs neighbours, and a second is a whole number of samples at any rate.
MARGIN = 1
JITTER = 0.02  # seconds; a sound block this close to the end of the last one continues it
LONGEST_GAP = 600  # seconds without a frame; beyond it the time stamps are taken to be damaged
LONGEST_CLIP = 1e9  # seconds; "to the end"
LOWEST_RATE, HIGHEST_RATE = 1000, 384_000  # Hz
LARGEST_SIDE = 16_384  # pixels
MOST_FPS = 10_000
HIGHEST_FPS = 500  # some recorders write their clock, 1000 Hz, where the frame rate belongs
BT709 = LIMITED = 1  # tell players how saved colours are coded, so that all show the same
SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT  # of the colours too
SCALING |= Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same on every CPU


class Clip(NamedTuple):
    """What was seen and what was heard, from one starting time.

    Args:
        video: RGB in [0, 1], float32; None when there are no pictures.
        audio: mono in [-1, 1], float32; None when there is no sound.
        fps: frames per second of `video`; None when that is.
        sample_rate: of `audio` in Hz; None when that is.
    """

    video: Float[Tensor, "c t y x"] | None
    audio: Float[Tensor, " samples"] | None
    fps: float | None
    sample_rate: int | None


def load_clip(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    size: int | tuple[int, int] | None = None,
    fps: float | None = None,
    sample_rate: int | None = None,
) -> Clip:
    """Read a piece of a video or sound file.

    Frame k is the picture on screen at `start + k / fps`; before the first picture it is the first
    one. Sample 0 is the sound at `start`; before the first sound, and in holes, there is silence.
    Where the file ends early, each tensor holds what there is. Only the piece is decoded (pictures
    from a key frame before it, sound with a second at each side), so memory follows what is asked
    for and not the length of the file.

    Args:
        path: a local file.
        start: seconds from the beginning of the file, at least 0.
        duration: seconds: `round(duration * fps)` frames and `round(duration * sample_rate)`
            samples, at least one of each. None reads to the end.
        size: (height, width) in pixels, or one number for both. The picture is scaled to cover
            them and its centre is kept. None keeps the file's size.
        fps: frames per second. None keeps the file's average rate.
        sample_rate: in Hz. None keeps the file's rate.

    Returns:
        The clip. A file without pictures gives `video` and `fps` None, a file without sound
        `audio` and `sample_rate` None; the cover image of a song is no picture. Sound channels are
        averaged. Pictures stored on their side, as phones do, are turned upright; pixels are taken
        to be square.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, `start` is past the end of the pictures or of the
            sound, or the file cannot be decoded.
    """
    file = _local_file(path)
    start = 0.0 if start == 0 else _number("start", start, "seconds")
    seconds = LONGEST_CLIP if duration is None else _number("duration", duration, "seconds")
    if fps is not None:
        fps = _number("fps", fps, "frames per second", least=0.001, most=MOST_FPS)
    if sample_rate is not None:
        rate = _number("sample_rate", sample_rate, "Hz", Integral, LOWEST_RATE, HIGHEST_RATE)
        sample_rate = int(rate)
    shape = None if size is None else pair(size, "load_clip: size")
    if shape is not None and max(shape) > LARGEST_SIDE:
        raise ValueError(f"load_clip: size is {size}; give at most {LARGEST_SIDE} pixels a side")

    video = audio = None
    try:
        with _open(file) as container:
            pictures, sound = container.streams.video, container.streams.audio
            seen = [s for s in pictures if not s.disposition & Disposition.attached_pic][:1]
            used: list[Any] = [*seen, *sound[:1]]
            if not used:
                raise ValueError(
                    f"load_clip: {str(file)!r} has neither pictures nor sound; pass another file"
                )
            zero = max(0.0, min(float((s.start_time or 0) * s.time_base) for s in used))
            if seen:
                video, fps = _read_video(seen[0], zero, start, seconds, fps, shape)
            if sound:
                audio, sample_rate = _read_audio(sound[0], zero, start, seconds, sample_rate)
    except av.error.FFmpegError as error:
        raise ValueError(
            f"load_clip: {str(file)!r} cannot be decoded ({error.strerror}), wanted video or sound "
            f"in a format of {FORMATS}; if a player opens it, convert it to mp4"
        ) from error
    return Clip(video, audio, fps if seen else None, sample_rate if sound else None)


def _local_file(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"load_clip: path is of type {type(path).__name__}, wanted a str or a Path")
    file = Path(path).resolve()
    if not file.exists():
        remedy = f"check the path, relative paths start at {Path.cwd()}"
        if "://" in str(path):
            remedy = "download the file and pass its path"
        raise FileNotFoundError(f"load_clip: no file at {str(path)!r}; {remedy}")
    if not file.is_file() or file.stat().st_size == 0:
        what = "empty" if file.is_file() else "a folder" if file.is_dir() else "a device or pipe"
        raise ValueError(f"load_clip: {str(path)!r} is {what}, wanted a video or sound file")
    return file


def _number(
    name: str,
    value: Any,
    unit: str,
    kind: type = Real,
    least: float = 0,
    most: float = math.inf,
) -> float:
    fits = isinstance(value, kind)
    if not fits:
        wanted = "whole number" if kind is Integral else "number"
        raise TypeError(f"load_clip: {name} is {value!r}, wanted a {wanted} of {unit}")
    if not (0 < value < math.inf and least <= value <= most):
        limits = f"{least} to {most} {unit}" if most < math.inf else f"{unit} above 0"
        raise ValueError(f"load_clip: {name} is {value}, wanted {limits}; or leave it out")
    return float(value)


def _fault(stream: Any, text: str) -> ValueError:
    return ValueError(f"load_clip: the {stream.type} of {stream.container.name!r} {text}")


def _open(file: Path | str) -> av.container.InputContainer:
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    return av.open(str(file), "r", container_options=options, metadata_errors="replace")


def _frames(stream: Any, seconds: float | None) -> Iterator[Any]:
    """Decode from a key frame before a time of the file's clock, or from the beginning.

    The file is opened anew: after rewinding, some formats lose their first block of sound.
    """
    with _open(stream.container.name) as container:
        again: Any = container.streams[stream.index]
        again.codec_context.thread_count = 1
        if seconds is not None:
            container.seek(int(seconds / again.time_base), stream=again)
        yield from container.decode(again)


def _decode(stream: Any, zero: float, start: float) -> Iterator[tuple[float, Any]]:
    """Yield (seconds after `zero`, frame) from `start` or before it, and at last (end, None).

    With a poor index, seeking lands too late or within a frame. Then everything is decoded from
    the beginning, which is slow and right.
    """
    if stream.codec_context is None:
        raise _fault(stream, "is in a code that this FFmpeg cannot read; convert it to mp4")
    first = None
    for seek in (start - MARGIN + zero, None) if start > MARGIN else (None,):
        frames = _frames(stream, seek)
        try:
            first = next(frames, None)
        except av.error.FFmpegError:
            if seek is None:
                raise
        if first is not None and first.time is not None and first.time - zero <= start:
            break
    if first is None:
        raise _fault(stream, "holds nothing that can be decoded; convert it again")
    time = max(0.0, start)
    for frame in chain([first], frames):
        if frame.time is None or frame.time - zero > time + LONGEST_GAP:
            clock = f"has no usable time stamps ({frame.time} s comes after {time + zero} s)"
            raise _fault(stream, f"{clock}; convert it again, for example to mp4")
        time = frame.time - zero
        yield time, frame
    yield time + float(frame.duration * frame.time_base), None


def _read_video(
    stream: Any, zero: float, start: float, seconds: float, fps: float | None, shape: Any
) -> tuple[Float[Tensor, "c t y x"], float]:
    """The pictures on screen at `start`, `start + 1 / fps`, …, and `fps`."""
    if fps is None:
        fps = float(stream.average_rate or 0)
        if not 0 < fps <= HIGHEST_FPS:
            raise _fault(stream, f"states {fps:g} frames per second; choose, for example fps=25")
    count = max(1, round(seconds * fps))
    # Time stamps are rounded to the file's own tick, so a frame may seem late by half of it.
    early = start + float(stream.time_base) / 2
    pictures: list[Tensor] = []
    shown = None
    for time, frame in _decode(stream, zero, start):
        due = min(count, math.ceil((time - early) * fps)) - len(pictures)
        if due > 0:
            pictures += [_picture(shown or frame, shape)] * due
            shape = pictures[0].shape[1:]  # a size that changes midway is fitted to the first
        if len(pictures) == count:
            break
        shown = frame
    if not pictures:
        raise _fault(stream, f"ends at {time:.3f} s, before start {start} s; start earlier")
    return torch.stack(pictures, dim=1).float().div_(255), fps


def _picture(frame: av.VideoFrame, shape: tuple[int, int] | None) -> UInt8[Tensor, "c y x"]:
    """One frame as RGB: scaled to cover `shape`, its centre cut out, turned upright."""
    turns = round(frame.rotation / 90)
    y, x = (frame.height, frame.width) if shape is None else shape[:: -1 if turns % 2 else 1]
    scale = max(y / frame.height, x / frame.width)
    height, width = max(y, round(frame.height * scale)), max(x, round(frame.width * scale))
    rgb: Any = frame.to_ndarray(
        format="rgb24", height=height, width=width, interpolation=SCALING, threads=1
    )
    top, left = (height - y) // 2, (width - x) // 2
    rgb = np.rot90(rgb[top : top + y, left : left + x], turns)
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)


def _read_audio(
    stream: Any, zero: float, start: float, seconds: float, sample_rate: int | None
) -> tuple[Float[Tensor, " samples"], int]:
    """The sound from `start` on, and its rate."""
    begin = start - MARGIN
    blocks: list[tuple[int, np.ndarray]] = []
    after = rate = 0  # positions are counted in samples from `begin`
    for time, frame in _decode(stream, zero, begin):
        if frame is None:
            break
        if rate not in (0, frame.sample_rate):
            raise _fault(stream, f"changes its sample rate at {time:.2f} s; convert it again")
        rate = frame.sample_rate
        position = round((time - begin) * rate)
        if blocks and abs(position - after) < JITTER * rate:
            position = after
        if position >= (seconds + 2 * MARGIN) * rate:
            after = int((seconds + 2 * MARGIN) * rate)  # sound goes on after a hole up to here
            break
        if position + frame.samples > 0:
            blocks.append((position, _mono(frame)))
            after = max(after, position + frame.samples)
    # An encoder fills up its last block; the file may state where the sound really ends.
    if blocks and stream.duration:
        end = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        end = round((end - zero - begin) * rate)
        after = end if blocks[-1][0] < end < after else after
    waveform = np.zeros(after, np.float32)
    for position, samples in blocks:
        samples = samples[max(0, -position) : max(0, after - position)]
        waveform[max(0, position) :][: len(samples)] = samples
    sample_rate = sample_rate or rate
    waveform = _resample(waveform, rate, sample_rate)[MARGIN * sample_rate :]
    if len(waveform) == 0:
        raise _fault(stream, f"ends at {time:.3f} s, before start {start} s; start earlier")
    waveform = waveform[: max(1, round(seconds * sample_rate))]
    return torch.from_numpy(waveform).clamp(-1, 1), sample_rate


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """The mean of the channels in [-1, 1]. (FFmpeg's own mix is 3 dB louder and would clip.)"""
    samples: Any = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind in "iu":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / half - (samples.dtype.kind == "u")
    return samples.mean(axis=0, dtype=np.float32)


def _resample(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted or len(waveform) == 0:
        return waveform
    frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(rate=wanted)
    parts = resampler.resample(frame) + resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts])


def save_clip(path: str | os.PathLike[str], clip: Clip) -> None:
    """Write a clip as an mp4 file that browsers play (H.264 and AAC), over any file of that name.

    Both codecs lose detail, and H.264 keeps colour at half the resolution. There is a key frame
    every second, so that `load_clip` finds a piece quickly.

    Args:
        path: ends in `.mp4`; its folder exists.
        clip: `video` or `audio` may be None, not both. Height and width are even; the sample rate
            is one that AAC has, from 7350 to 96000 Hz.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the clip has another shape, range or rate, or nothing in it.
    """
    file = Path(path).resolve()
    if not file.parent.is_dir():
        raise FileNotFoundError(f"save_clip: no folder {str(file.parent)!r}; make it first")
    _demand(file.suffix.lower() == ".mp4", f"path is {str(path)!r}, wanted a name ending in .mp4")
    video, audio, fps, sample_rate = clip
    _demand(video is not None or audio is not None, "video and audio are both None; give one")

    if video is not None:
        _check_video(video, fps)
    if audio is not None:
        _check_audio(audio, sample_rate)

    work: list[tuple[Any, Iterator[Any]]] = []
    # Browsers start before they have the whole file; lengths are kept to the sample, not to 1 ms.
    options = {"movflags": "faststart", "movie_timescale": str(sample_rate or 1000)}
    with av.open(str(file), "w", format="mp4", container_options=options) as container:
        # All streams are added before the first frame is written: the header lists them.
        if video is not None and fps is not None:
            rate = Fraction(fps).limit_denominator(1001)
            settings = {"crf": "18", "g": str(math.ceil(rate))}
            stream: Any = container.add_stream("libx264", rate=rate, options=settings)
            stream.height, stream.width = video.shape[2:]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1  # no trace of how many cores there are
            for tag in ("colorspace", "color_primaries", "color_trc", "color_range"):
                setattr(stream.codec_context, tag, BT709)
            work.append((stream, _video_frames(video, rate)))
        if audio is not None and sample_rate is not None:
            stream = container.add_stream("aac", rate=sample_rate, layout="mono")
            work.append((stream, _audio_frames(audio, sample_rate)))
        for stream, frames in work:
            for frame in chain(frames, [None]):  # None empties the encoder
                container.mux(stream.encode(frame))


def _video_frames(video: Float[Tensor, "c t y x"], rate: Fraction) -> Iterator[av.VideoFrame]:
    for index, picture in enumerate(video.detach().cpu().unbind(1)):
        rgb = (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        frame = av.VideoFrame.from_ndarray(rgb).reformat(
            format="yuv420p",
            dst_colorspace=BT709,
            dst_color_range=LIMITED,
            interpolation=SCALING,
            threads=1,
        )
        frame.pts, frame.time_base = index, 1 / rate
        yield frame


def _audio_frames(audio: Float[Tensor, " samples"], sample_rate: int) -> Iterator[av.AudioFrame]:
    samples = audio.detach().cpu().float().numpy()[None]
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    yield frame


def _demand(fine: bool, text: str) -> None:
    if not fine:
        raise ValueError(f"save_clip: {text}")


def _check_video(video: Tensor, fps: float | None) -> None:
    shape = tuple(video.shape)
    _demand(
        video.ndim == 4 and shape[0] == 3 and 0 not in shape,
        f"video has shape {shape}, wanted (3, frames, height, width); drop a batch axis with "
        "video[0], make grey RGB with video.expand(3, -1, -1, -1)",
    )
    height, width = shape[2:]
    _demand(
        height % 2 == width % 2 == 0,
        f"height {height} and width {width} must be even for H.264; "
        f"crop with video[:, :, :{height // 2 * 2}, :{width // 2 * 2}]",
    )
    _demand(
        video.is_floating_point() and bool(((video >= 0) & (video <= 1)).all()),
        f"video is {video.dtype} in [{video.min():g}, {video.max():g}], wanted floating point in "
        "[0, 1]; use video.float() / 255 or video.clamp(0, 1)",
    )
    _demand(
        fps is not None and 0.01 <= fps <= HIGHEST_FPS,
        f"fps is {fps}, wanted a rate from 0.01 to {HIGHEST_FPS}",
    )


def _check_audio(audio: Tensor, sample_rate: int | None) -> None:
    _demand(
        audio.ndim == 1 and len(audio) > 0,
        f"audio has shape {tuple(audio.shape)}, wanted (samples,), one or more; drop a batch axis "
        "with audio[0]",
    )
    _demand(
        audio.is_floating_point() and bool((audio.abs() <= 1).all()),
        f"audio is {audio.dtype} up to {audio.abs().max():g}, wanted floating point in [-1, 1]; "
        "use audio / 32768 for 16-bit samples, audio / audio.abs().max() otherwise",
    )
    rates = sorted(av.Codec("aac", "w").audio_rates or [])
    _demand(sample_rate in rates, f"sample_rate is {sample_rate}, AAC has {rates}; resample to one")
