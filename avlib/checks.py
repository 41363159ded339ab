"""What the models demand of a batch of clips, each refusal with its remedy."""

from collections.abc import Sequence
from math import inf
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from avlib.masks import Visibility


def check_positive(where: str, **sizes: float) -> None:
    """Refuse what is no positive number."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Real) or not size > 0:
            raise ValueError(f"{where}: {name} is {size!r}; give a positive number")


def is_whole(number: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def check_counts(where: str, *, least: int = 1, **counts: Any) -> None:
    """Refuse what is no whole number from `least` on."""
    wanted = "positive whole number" if least == 1 else f"whole number from {least} on"
    for name, count in counts.items():
        if not is_whole(count) or int(count) < least:
            raise ValueError(f"{where}: {name} is {count!r}; give a {wanted}")


def check_number(where: str, what: str, number: Any, count: int) -> None:
    """Refuse a number that counts none of so many things."""
    if not is_whole(number) or not 0 <= int(number) < count:
        raise ValueError(
            f"{where}: got {what} {number!r}, there are {count}; count from 0 to {count - 1}"
        )


def check_between(where: str, least: float, most: float, **numbers: float) -> None:
    """Refuse what is no number from `least` to `most`."""
    for name, number in numbers.items():
        real = isinstance(number, Real) and not isinstance(number, bool)
        if not real or not least <= number <= most or number == inf:
            wanted = (
                f"from {least} to {most}" if most < inf else f"of {least} or more, not infinite"
            )
            raise ValueError(f"{where}: {name} is {number!r}; give a number {wanted}")


def check_generator(where: str, generator: torch.Generator | None) -> None:
    """Refuse what is no source of chance."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{where}: generator is {generator!r}, wanted a torch.Generator; use "
            "torch.Generator().manual_seed(0)"
        )


def check_marks(where: str, count: int, **marks: Tensor) -> None:
    """Refuse what does not say yes or no of each clip."""
    for name, mark in marks.items():
        _check_tensor(where, name, mark)
        if mark.dtype != torch.bool or mark.shape != (count,):
            raise ValueError(
                f"{where}: {name} is {mark.dtype} of shape {tuple(mark.shape)}, wanted booleans of "
                f"shape ({count},); give True or False for each clip"
            )


def _check_tensor(where: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{where}: {name} is a {type(value).__name__}, wanted a tensor; use torch.as_tensor"
        )


def check_audio(audio: Tensor, where: str = "Zorro") -> None:
    """Refuse what is no waveform (batch, samples) of floating point."""
    _check_tensor(where, "audio", audio)
    shape = tuple(audio.shape)
    if audio.ndim != 2:
        remedies = {1: "use audio[None]", 3: "mix the channels with audio.mean(1)"}
        raise ValueError(
            f"{where}: audio has shape {shape}, wanted (batch, samples); "
            f"{remedies.get(audio.ndim, 'add or drop axes')}"
        )
    if not audio.is_floating_point():
        raise ValueError(
            f"{where}: audio is {audio.dtype}, wanted a floating-point waveform in [-1, 1]; "
            "for 16-bit samples use audio / 32768"
        )
    if 0 in shape:
        raise ValueError(
            f"{where}: audio has shape {shape}, wanted at least one clip and one sample; leave "
            "audio out where there is none"
        )


def check_video(video: Tensor, channels: int) -> None:
    """Refuse what is no video (batch, channels, frames, height, width) of floating point."""
    _check_tensor("Zorro", "video", video)
    shape = tuple(video.shape)
    wanted = f"(batch, {channels}, frames, height, width)"
    remedy = None
    if video.ndim == 4:
        remedy = "use video[None]"
    elif video.ndim != 5:
        remedy = "add or drop axes"
    elif shape[1] != channels:
        if shape[2] == channels:
            remedy = "use video.transpose(1, 2)"
        elif shape[4] == channels:
            remedy = "use video.permute(0, 4, 1, 2, 3)"
        else:
            remedy = f"convert it, or make Zorro(video_channels={shape[1]})"
    elif 0 in shape:
        remedy = "no axis may be empty"
    if remedy:
        raise ValueError(f"Zorro: video has shape {shape}, wanted {wanted}; {remedy}")
    if not video.is_floating_point():
        raise ValueError(
            f"Zorro: video is {video.dtype}, wanted floating point in [0, 1]; "
            "for 8-bit frames use video.float() / 255"
        )


def check_codes(
    name: str,
    codes: Any,
    axes: Sequence[str],
    count: int,
    *,
    empty: bool = False,
    where: str = "TwinDecoder",
) -> Tensor:
    """Codes as int64; refuse what are no whole numbers from 0 to count - 1 along these axes."""
    _check_tensor(where, name, codes)
    shape, wanted = tuple(codes.shape), f"({', '.join(axes)})"
    if codes.ndim != len(axes) or (0 in (shape[:1] if empty else shape)):
        remedy = f"use {name}[None]" if codes.ndim == len(axes) - 1 else "add or drop axes"
        remedy = "no axis may be empty" if codes.ndim == len(axes) else remedy
        raise ValueError(f"{where}: {name} has shape {shape}, wanted {wanted}; {remedy}")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(
            f"{where}: {name} is {codes.dtype}, wanted whole numbers that name codes; use "
            f"{name}.long(), or make codes of pictures and sounds first"
        )
    codes = codes.long()
    wrong = (codes < 0) | (codes >= count)
    if wrong.any():
        more = ", or make the model with more" if where == "TwinDecoder" else ""
        raise ValueError(
            f"{where}: {name} has the code {int(codes[wrong][0])}, there are {count}, counted from "
            f"0; give codes from 0 to {count - 1}{more}"
        )
    return codes


def check_lengths(
    name: str, unit: str, lengths: Tensor | Sequence[int], tensor: Tensor, axis: int
) -> Tensor:
    """Lengths as a tensor; refuse what is not one whole number in range for each clip."""
    batch, size = tensor.shape[0], tensor.shape[axis]
    try:
        lengths = torch.as_tensor(lengths, device=tensor.device)
    except (RuntimeError, TypeError, ValueError):
        raise TypeError(
            f"Zorro: {name} is {lengths!r}, wanted {batch} whole numbers of {unit}; give one for "
            "each clip in the batch"
        ) from None
    whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
    if whole:
        lengths = lengths.long()  # a small integer type would wrap around
    if lengths.shape != (batch,) or not whole or (lengths < 0).any() or (lengths > size).any():
        raise ValueError(
            f"Zorro: {name} is {lengths.tolist()}, wanted {batch} whole numbers of {unit} from 0 "
            f"to {size}; give one for each clip in the batch"
        )
    return lengths


def check_batch(audio: Tensor | None, video: Tensor | None) -> int:
    """The number of clips; refuse no input at all, or inputs that disagree."""
    sizes = [len(tensor) for tensor in (audio, video) if tensor is not None]
    if not sizes:
        raise ValueError("Zorro: got neither audio nor video; give at least one of them")
    if len(set(sizes)) > 1:
        raise ValueError(
            f"Zorro: audio and video have batches of {sizes}; give both for the same clips"
        )
    return sizes[0]


def check_indices(indices: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Which of `count` readouts are asked for, all by default; refuse repeats and strangers."""
    if indices is None:
        return tuple(range(count))
    if isinstance(indices, int):
        raise TypeError(
            f"Zorro: return_token_indices is {indices}, wanted a sequence; use ({indices},)"
        )
    asked = tuple(int(index) for index in indices)
    different = len(set(asked)) == len(asked) > 0
    if not different or asked != tuple(indices) or not all(0 <= i < count for i in asked):
        raise ValueError(
            f"Zorro: return_token_indices is {tuple(indices)}; give one or more different "
            f"indices from 0 to {count - 1}"
        )
    return asked


def check_rules(
    trunk: Sequence[Visibility], readout: Visibility, depth: int, kinds: Sequence[str]
) -> None:
    """Refuse rules that do not number the layers, or that leave out a stream or a readout."""
    if len(trunk) != depth:
        raise ValueError(
            f"Zorro: got {len(trunk)} trunk visibilities for depth {depth}; give one for each "
            "layer, or a single one for all"
        )
    streams = {"audio", "video", "fusion"}
    wanted = [("trunk", layer, streams) for layer in trunk] + [("readout", readout, {*kinds})]
    for name, rules, readers in wanted:
        if set(rules.keys) != streams or not readers <= set(rules.readers):
            raise ValueError(
                f"Zorro: {name} has readers {list(rules.readers)} and keys {list(rules.keys)}, "
                f"wanted readers {sorted(readers)} and keys {sorted(streams)}"
            )
