"""One stream of a file on the file's clock: the pictures on screen, the sound without holes.

Files are not to be trusted. Memory follows what was asked for, whatever a header claims, and damage
that a decoder or a checksum notices is an error: a decoder would rather guess.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from jaxtyping import Float, UInt8
from torch import Tensor

# FFmpeg chooses a reader by content, whatever the file is called. Playlists and scripts (HLS,
# concat, SDP, …) can point at other files and hosts, so only self-contained formats are let in,
# and of those none (MPEG-TS, FLV, …) where streams turn up midway, which PyAV 18 cannot follow.
FORMATS = "mov,mp4,matroska,webm,avi,asf,ogg,wav,aiff,flac,mp3,aac,gif"

# Sound is read from a second before the piece: decoders need some blocks to settle, the resampler
# needs neighbours, and a second is a whole number of samples at any rate.
MARGIN = 1
JITTER = 0.02  # seconds; a sound block this close to the end of the last one continues it
LONGEST_GAP = 660  # seconds without a frame (a gif can wait 655); beyond it, damaged time stamps
LATEST = 2**62  # ticks; where FFmpeg's numbers end
LOWEST_RATE, HIGHEST_RATE = 1000, 384_000  # Hz
LOUDEST = 1e6  # full scale is 1; beyond this, and at NaN, the file is taken to be damaged
LARGEST_SIDE = 8192  # pixels
MOST_PIXELS = LARGEST_SIDE**2  # in a picture, as it is stored and as it is scaled
MOST_BYTES = 2**33  # in a clip's pictures, and in its sound
HIGHEST_FPS = 500  # some recorders write their clock, 1000 Hz, where the frame rate belongs
SCALING = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT  # of the colours too
SCALING |= Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same on every CPU


def fault(stream: Any, text: str) -> ValueError:
    """What is wrong with a stream, and what to do about it."""
    return ValueError(f"load_clip: the {stream.type} of {stream.container.name!r} {text}")


def open_file(file: Path | str) -> av.container.InputContainer:
    """Open a local file for reading, in one of `FORMATS`."""
    return av.open(
        str(file),
        "r",
        container_options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
        options={"max_pixels": str(MOST_PIXELS)},
        metadata_errors="replace",
    )


def _frames(stream: Any, seconds: float | None) -> Generator[Any, None, None]:
    """Decode from a key frame before a time of the file's clock, or from the beginning.

    The file is opened anew: after rewinding, some formats lose their first block of sound.
    """
    with open_file(stream.container.name) as container:
        again: Any = container.streams[stream.index]
        decoder = again.codec_context
        decoder.thread_count = 1
        # H.264 marks what it made up, and this way would refuse healthy files after a seek.
        explode = "" if decoder.name == "h264" else "+explode"
        decoder.options = {"err_detect": f"crccheck{explode}", "max_pixels": str(MOST_PIXELS)}
        if seconds is not None:
            container.seek(min(int(seconds / again.time_base), LATEST), stream=again)
        yield from container.decode(again)


def _frames_from(stream: Any, zero: float, start: float) -> Iterator[Any]:
    """Decode from `start` seconds after `zero` or from before it.

    With a poor index, or where pictures are refreshed bit by bit, seeking lands too late or within
    a frame. Then everything is decoded from the beginning, which is slow and right. So it is in a
    wav file of a code that is not plain samples: there, seeking guesses the time from the position.
    """
    wav = stream.container.format.name == "wav"
    guessed = wav and not stream.codec_context.name.startswith("pcm")
    if start > MARGIN and not guessed:
        with closing(_frames(stream, start - MARGIN + zero)) as frames:
            try:
                first: Any = next(frames, None)
            except av.error.FFmpegError:
                first = None
            whole = first is not None and (first.key_frame or stream.type == "audio")
            if whole and first.time is not None and first.time - zero <= start:
                yield first
                yield from frames
                return
    yield from _frames(stream, None)


def _decode(stream: Any, zero: float, start: float) -> Iterator[tuple[float, Any]]:
    """Yield (seconds after `zero`, frame) from `start` or before it, and at last (end, None)."""
    if stream.codec_context is None:
        raise fault(stream, "is in a code that this FFmpeg cannot read; convert it to mp4")
    sound = stream.type == "audio"
    time, end = max(0.0, start), None  # `end` of the last frame, by the file's clock
    try:
        for frame in _frames_from(stream, zero, start):
            if frame.is_corrupt:  # the decoder made up a part of it
                raise av.error.InvalidDataError(0, "a frame is incomplete")
            # Where a packet holds some blocks of sound, only the first has a time.
            time = _clock(stream, end if sound and frame.time is None else frame.time, zero, time)
            yield time, frame
            end = zero + time
            if sound:
                end += frame.samples / frame.sample_rate
            elif frame.duration:
                end += float(frame.duration * frame.time_base)
    except av.error.FFmpegError as error:
        where = f"is damaged or cut off after {time:.2f} s ({error.strerror})"
        raise fault(stream, f"{where}; choose a piece that keeps clear of it") from error
    if end is None:
        raise fault(stream, "holds nothing that can be decoded; convert it again")
    yield _clock(stream, end, zero, time), None


def _clock(stream: Any, moment: float | None, zero: float, last: float) -> float:
    """Seconds after `zero`, if they are plausible after `last`."""
    if moment is None or moment - zero > last + LONGEST_GAP:
        stamps = f"has no usable time stamps ({moment} s comes after {last + zero} s)"
        raise fault(stream, f"{stamps}; it is damaged, or convert it again, for example to mp4")
    return moment - zero


def read_video(
    stream: Any, zero: float, start: float, seconds: float, fps: float | None, shape: Any
) -> tuple[Float[Tensor, "c t y x"], float, float]:
    """The pictures on screen at `start`, `start + 1 / fps`, …; `fps`; where the stream ran out.

    That is infinitely late when the piece was complete before.
    """
    if fps is None:
        fps = float(stream.average_rate or 0)
        if not 0 < fps <= HIGHEST_FPS:
            raise fault(stream, f"states {fps:g} frames per second; choose, for example fps=25")
    count = max(1, round(seconds * fps))
    # Time stamps are rounded to the file's own tick, so a frame may seem late by half of it, and
    # by what floating point adds.
    early = start + float(stream.time_base) / 2 + 1e-6
    pictures: list[Tensor] = []
    shown = None
    for end, frame in _decode(stream, zero, start):
        due = min(count, math.ceil((end - early) * fps)) - len(pictures)
        if due > 0:
            picture = _picture(stream, shown or frame, shape)
            _afford(stream, (len(pictures) + due) * picture.numel(), "size or fps")
            pictures += [picture] * due
            shape = picture.shape[1:]  # a size that changes midway is fitted to the first
        if len(pictures) == count:
            end = math.inf
            break
        shown = frame
    if not pictures:
        raise fault(stream, f"ends at {end:.3f} s, before start {start} s; start earlier")
    return torch.stack(pictures, dim=1).float().div_(255), fps, end


def _afford(stream: Any, values: int, what: str) -> None:
    if values * 4 > MOST_BYTES:
        remedy = f"choose a shorter duration or a smaller {what}"
        raise fault(stream, f"takes more than {MOST_BYTES / 2**30:g} GiB; {remedy}")


def _picture(
    stream: Any, frame: av.VideoFrame, shape: tuple[int, int] | None
) -> UInt8[Tensor, "c y x"]:
    """One frame as RGB: scaled to cover `shape`, its centre cut out, turned upright."""
    across, down, sideways = _orientation(frame)
    y, x = (frame.height, frame.width) if shape is None else shape[:: -1 if sideways else 1]
    scale = max(y / frame.height, x / frame.width)
    height, width = max(y, round(frame.height * scale)), max(x, round(frame.width * scale))
    if height * width > MOST_PIXELS:
        grown = f"has pictures of {frame.height}×{frame.width}, to cover size {y}×{x} they become "
        raise fault(stream, f"{grown}{height}×{width}; choose a size nearer to their shape")
    rgb: Any = frame.to_ndarray(
        format="rgb24", height=height, width=width, interpolation=SCALING, threads=1
    )
    top, left = (height - y) // 2, (width - x) // 2
    rgb = rgb[top : top + y, left : left + x]
    rgb = (rgb.swapaxes(0, 1) if sideways else rgb)[::down, ::across]
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)


def _orientation(frame: Any) -> tuple[int, int, bool]:
    """How to hold a picture upright: its rows become columns, or not, then -1 mirrors an axis."""
    try:
        a, b, _, c, d = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)[:5]
    except (KeyError, ValueError):  # there is none, or a kind of side data that PyAV cannot name
        turn = math.radians(frame.rotation)
        a, b, c, d = math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    sideways = bool(abs(b) > abs(a))
    across, down = (c, b) if sideways else (a, d)
    return -1 if across < 0 else 1, -1 if down < 0 else 1, sideways


def read_audio(
    stream: Any, zero: float, start: float, seconds: float, sample_rate: int | None
) -> tuple[Float[Tensor, " samples"], int, float]:
    """The sound from `start` on; its rate; where the stream ran out.

    That is infinitely late when the piece was complete before.
    """
    parts: list[np.ndarray] = []
    have = 0
    for end, rate, part in _resample(_sound(stream, zero, start - MARGIN), sample_rate):
        parts.append(part)
        have += len(part)
        skipped = MARGIN * rate
        _afford(stream, have - skipped, "sample_rate")
        wanted = skipped + max(1, round(seconds * rate))
        if have >= wanted:
            end = math.inf
            break
    if have <= skipped:
        raise fault(stream, f"ends at {end:.3f} s, before start {start} s; start earlier")
    waveform = np.concatenate(parts)[skipped:wanted]
    return torch.from_numpy(waveform).clamp_(-1, 1), rate, end


def _sound(stream: Any, zero: float, begin: float) -> Iterator[tuple[float, int, np.ndarray]]:
    """Yield (seconds, rate, samples), each block joined to the last, from `begin` to the end."""
    rate = after = 0  # positions are counted in samples from `begin`
    held = np.zeros(0, np.float32)  # the block that ends at `after`
    for time, frame in _decode(stream, zero, begin):
        if frame is None:
            break
        if rate not in (0, frame.sample_rate):
            raise fault(stream, f"changes its sample rate at {time:.2f} s; convert it again")
        rate = frame.sample_rate
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            wanted = f"wanted {LOWEST_RATE} to {HIGHEST_RATE} Hz"
            raise fault(stream, f"has a sample rate of {rate} Hz, {wanted}; convert it again")
        position = round((time - begin) * rate)
        if len(held) and abs(position - after) < JITTER * rate:
            position = after
        samples = _mono(stream, frame)[max(0, after - position) :]
        if len(samples) == 0:  # it is over before `begin`
            continue
        yield time, rate, held
        for hole in range(after, position, rate):
            yield time, rate, np.zeros(min(rate, position - hole), np.float32)
        held, after = samples, max(after, position) + len(samples)
    # An encoder fills up its last block; the file may state where the sound really ends.
    if stream.duration:
        stated = float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        surplus = after - round((stated - zero - begin) * rate)
        held = held[:-surplus] if 0 < surplus < len(held) else held
    yield time, rate, held


def _resample(
    blocks: Iterator[tuple[float, int, np.ndarray]], wanted: int | None
) -> Iterator[tuple[float, int, np.ndarray]]:
    resampler: Any = av.AudioResampler(rate=wanted)
    for time, rate, samples in blocks:
        if wanted in (None, rate):
            yield time, rate, samples
        elif len(samples) > 0:
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            for part in resampler.resample(frame):
                yield time, wanted, part.to_ndarray()[0]
    rest = [part.to_ndarray()[0] for part in resampler.resample(None)]
    yield time, wanted or rate, np.concatenate([np.zeros(0, np.float32), *rest])


def _mono(stream: Any, frame: av.AudioFrame) -> np.ndarray:
    """The mean of the channels in [-1, 1]. (FFmpeg's own mix is 3 dB louder and would clip.)"""
    if frame.format.name.startswith("s64"):
        raise fault(stream, "has samples of 64 bits, which PyAV cannot read; convert it to 32")
    samples: Any = frame.to_ndarray()
    if samples.dtype.kind in "iu":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / half - (samples.dtype.kind == "u")
    loudest = np.abs(samples).max(initial=0)
    if not loudest < LOUDEST:
        raise fault(stream, f"has samples up to {loudest:g}, wanted [-1, 1]; it is damaged")
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    return samples.mean(axis=0, dtype=np.float32)
