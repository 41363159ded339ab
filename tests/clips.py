"""Clips and files whose truth is known, written with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from avlib.data import Clip

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


def write_clip(
    path: Path,
    clip: Clip,
    codecs: tuple[str | None, str | None],
    *,
    times: Sequence[float] | None = None,
    layout: str = "mono",
    pix_fmt: str = "yuv420p",
    settings: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> None:
    """Any codecs that PyAV has, frames at `times`, sound in both channels where there are two."""
    with av.open(str(path), "w", container_options=muxer or {}) as container:
        pictures: Any = None
        sound: Any = None
        if codecs[0]:
            rate = Fraction(clip.fps).limit_denominator(1001)
            pictures = container.add_stream(codecs[0], rate=rate, options=settings or {})
            pictures.height, pictures.width = clip.video.shape[2:]
            pictures.pix_fmt, pictures.codec_context.thread_count = pix_fmt, 1
            if times is not None:
                pictures.codec_context.time_base = Fraction(1, 1000)
        if codecs[1]:
            sound = container.add_stream(codecs[1], rate=clip.sample_rate, layout=layout)
            convert = av.AudioResampler(format=sound.format.name, layout=layout)
            channels = 2 if layout == "stereo" else 1
        if pictures:
            for n, picture in enumerate(clip.video.unbind(1)):
                rgb = (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
                frame: Any = av.VideoFrame.from_ndarray(rgb).reformat(format=pix_fmt)
                frame.pts, frame.time_base = n, 1 / rate
                if times is not None:
                    frame.pts, frame.time_base = round(times[n] * 1000), Fraction(1, 1000)
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode(None))
        if sound:
            samples = np.tile(clip.audio.numpy(), (channels, 1))
            for at in range(0, len(clip.audio), 1024):
                part = np.ascontiguousarray(samples[:, at : at + 1024])
                block = sound_block(part, clip.sample_rate, at, layout)
                for converted in convert.resample(block):
                    container.mux(sound.encode(converted))
            container.mux(sound.encode(None))
