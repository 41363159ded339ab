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
from traceback import clear_frames
from typing import Any, NamedTuple

import av
from av.stream import Disposition
from jaxtyping import Float
from torch import Tensor

from avlib.decode import (
    FORMATS,
    HIGHEST_FPS,
    HIGHEST_RATE,
    LARGEST_SIDE,
    LOWEST_RATE,
    SCALING,
    open_file,
    read_audio,
    read_video,
)
from avlib.tokens import pair

EXAMPLE_CLIP = Path(__file__).parent / "course" / "clip.mp4"

LONGEST_CLIP = 1e9  # seconds; "to the end"
MOST_FPS = 10_000
BT709 = LIMITED = 1  # tell players how saved colours are coded, so that all show the same
# Formats with an exact length in the header; others guess it, for example from the bit rate.
EXACT = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "wav", "aiff", "flac")
SLACK = 0.5  # seconds; a stated length may count what an encoder filled up


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
    from a key frame before it, sound from a second before it), so memory follows what is asked for
    and not the length of the file. What a decoder would conceal (a damaged picture, a wrong
    checksum, an end that is cut off) is an error in a piece that it falls into; damage that still
    decodes cannot be told from what was recorded.

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
        averaged. Pictures stored on their side, as phones do, or mirrored are turned upright;
        pixels are taken to be square.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, `start` is past the end of the pictures or of the
            sound, either would take more than 8 GiB, or the file is damaged, cut off or in a format
            that is not read.
    """
    file = _local_file(path)
    start = 0.0 if start == 0 else _number("start", start, "seconds")
    wanted = check_wanted(duration=duration, size=size, fps=fps, sample_rate=sample_rate)

    try:
        return _read(file, start, *wanted)
    except (ValueError, av.error.FFmpegError) as error:
        # Through its frames, an error that is kept would keep decoders and half a clip alive.
        clear_frames(error.__traceback__)
        if error.__cause__ is not None:
            clear_frames(error.__cause__.__traceback__)
        if not isinstance(error, av.error.FFmpegError):
            raise
        raise ValueError(
            f"load_clip: {str(file)!r} cannot be decoded ({error.strerror}): it is damaged, cut "
            f"off or in none of the formats {FORMATS}; if a player opens it, convert it to mp4"
        ) from error


def check_wanted(
    *, duration: Any, size: Any, fps: Any, sample_rate: Any
) -> tuple[float, Any, float | None, int | None]:
    """What `load_clip` is asked for, as (seconds, (height, width), fps, sample_rate).

    Raises:
        TypeError, ValueError: as `load_clip`, whatever the file.
    """
    seconds = LONGEST_CLIP if duration is None else _number("duration", duration, "seconds")
    if fps is not None:
        fps = _number("fps", fps, "frames per second", least=0.001, most=MOST_FPS)
    if sample_rate is not None:
        rate = _number("sample_rate", sample_rate, "Hz", Integral, LOWEST_RATE, HIGHEST_RATE)
        sample_rate = int(rate)
    shape = None if size is None else pair(size, "load_clip: size")
    if shape is not None and max(shape) > LARGEST_SIDE:
        raise ValueError(f"load_clip: size is {size}; give at most {LARGEST_SIDE} pixels a side")
    return seconds, shape, fps, sample_rate


def _read(
    file: Path, start: float, seconds: float, shape: Any, fps: float | None, sample_rate: int | None
) -> Clip:
    video = audio = None
    with open_file(file) as container:
        pictures, sound = container.streams.video, container.streams.audio
        seen = [s for s in pictures if not s.disposition & Disposition.attached_pic][:1]
        used: list[Any] = [*seen, *sound[:1]]
        if not used:
            raise ValueError(
                f"load_clip: {str(file)!r} has neither pictures nor sound; pass another file"
            )
        zero = max(0.0, min(float((s.start_time or 0) * s.time_base) for s in used))
        ends = []
        if seen:
            video, fps, end = read_video(seen[0], zero, start, seconds, fps, shape)
            ends.append(end)
        if sound:
            audio, sample_rate, end = read_audio(sound[0], zero, start, seconds, sample_rate)
            ends.append(end)
        _check_end(container, used, zero + max(ends))
    return Clip(video, audio, fps if seen else None, sample_rate if sound else None)


def _local_file(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"load_clip: path is of type {type(path).__name__}, wanted a str or a Path")
    try:
        file = Path(path).resolve()
        size = file.stat().st_size
    except (OSError, RuntimeError, ValueError) as error:  # also links in a circle, odd characters
        remedy = f"check the path, relative paths start at {Path.cwd()}"
        if "://" in str(path):
            remedy = "download the file and pass its path"
        raise FileNotFoundError(f"load_clip: no file at {str(path)!r}; {remedy}") from error
    if not file.is_file() or size == 0:
        what = "empty" if file.is_file() else "a folder" if file.is_dir() else "a device or pipe"
        raise ValueError(f"load_clip: {str(path)!r} is {what}, wanted a video or sound file")
    return file


def _number(
    name: str,
    value: Any,
    unit: str,
    kind: type = Real,
    least: float = 0,
    most: float = LONGEST_CLIP,
) -> float:
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = "whole number" if kind is Integral else "number"
        raise TypeError(f"load_clip: {name} is {value!r}, wanted a {wanted} of {unit}")
    number: Any = value
    if not (0 < number <= most and least <= number):
        limits = f"{least} to {most} {unit}" if least else f"{unit} above 0, at most {most:g}"
        raise ValueError(f"load_clip: {name} is {value}, wanted {limits}; or leave it out")
    return float(number)


def _check_end(container: Any, used: list[Any], end: float) -> None:
    """Refuse a file that stops at `end`, on its own clock, and states a later one."""
    if len(container.streams) > len(used) or container.format.name not in EXACT:
        return  # other streams may last longer, for example subtitles
    stated = (container.duration or 0) / av.time_base
    picture = max((1 / (s.average_rate or 1) for s in used if s.type == "video"), default=0)
    if end < stated - SLACK - 2 * picture:  # the last picture may have no duration
        raise ValueError(
            f"load_clip: {container.name!r} states a length of {stated:.2f} s and stops at "
            f"{end:.2f} s, so it was cut off; get it whole, or choose a piece before that"
        )


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
