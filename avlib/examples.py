"""What a model learns from: examples one by one, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LENGTH_AXIS = {"audio": 0, "video": 1}  # of a clip; in a batch it is the next one
MODALITIES = tuple(LENGTH_AXIS)
UNKNOWN = -1  # the class of an example that has no label


class Example(NamedTuple):
    """One clip, and what is known about it.

    Args:
        audio: waveform in [-1, 1]; None where there is no sound.
        video: RGB in [0, 1]; None where there are no pictures.
        labels: name → class, counted from 0; `UNKNOWN` where nobody knows.
    """

    audio: Float[Tensor, " samples"] | None
    video: Float[Tensor, "c t y x"] | None
    labels: dict[str, int]


@dataclass(frozen=True)
class Batch:
    """Clips side by side, as `Zorro` takes them.

    Attributes:
        inputs: keywords for the model: `audio`, `video`, and lengths where some clips are shorter
            than others or lack a modality (length 0).
        labels: name → class of each clip.
    """

    inputs: dict[str, Tensor]
    labels: dict[str, Int[Tensor, " b"]]

    def __len__(self) -> int:
        return next(len(tensor) for tensor in self.inputs.values())

    def has(self, modality: str) -> Bool[Tensor, " b"]:
        """Which clips have this modality."""
        clips = next(iter(self.inputs.values()))
        if modality not in self.inputs:
            return torch.zeros(len(clips), dtype=torch.bool, device=clips.device)
        lengths = self.inputs.get(f"{modality}_lengths")
        if lengths is None:
            return torch.ones(len(clips), dtype=torch.bool, device=clips.device)
        return lengths > 0

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            {name: tensor.to(device) for name, tensor in self.inputs.items()},
            {name: tensor.to(device) for name, tensor in self.labels.items()},
        )

    def without(self, modality: str) -> "Batch":
        """The same clips with a modality left out of all."""
        if modality not in MODALITIES:
            raise ValueError(f"Batch.without: got {modality!r}; give one of {MODALITIES}")
        left = {n: t for n, t in self.inputs.items() if not n.startswith(modality)}
        if not left:
            raise ValueError(
                f"Batch.without: {modality} is all that there is; leave out something else"
            )
        return Batch(left, self.labels)

    def dropping(self, drop: dict[str, Bool[Tensor, " b"]]) -> "Batch":
        """The same clips, each without the modalities for which `drop` says so.

        A clip keeps what it has when nothing else would be left.
        """
        has = {name: self.has(name) for name in MODALITIES}
        kept = {name: has[name] & ~drop[name] if name in drop else has[name] for name in has}
        nothing = ~torch.stack(list(kept.values())).any(0)
        inputs = dict(self.inputs)
        for name, keep in kept.items():
            if name in inputs and name in drop:
                size = inputs[name].shape[LENGTH_AXIS[name] + 1]
                lengths = inputs.get(
                    f"{name}_lengths", torch.full_like(keep, size, dtype=torch.long)
                )
                inputs[f"{name}_lengths"] = torch.where(keep | nothing, lengths, 0)
        return Batch(inputs, self.labels)


def collate(examples: Sequence[Example]) -> Batch:
    """Examples side by side; shorter ones are padded at the end, and lengths say where.

    Raises:
        TypeError: no `Example`, sound or pictures that are no tensor, or a class that is no whole
            number.
        ValueError: there are none, their labels have other names, or pictures another size.
    """
    if not examples:
        raise ValueError("collate: got no examples; give at least one")
    for example in examples:
        if not isinstance(example, Example):
            raise TypeError(
                f"collate: got a {type(example).__name__}, wanted an Example; return "
                "Example(audio, video, labels) from the dataset"
            )
    names = examples[0].labels.keys()
    for example in examples:
        if example.labels.keys() != names:
            raise ValueError(
                f"collate: an example has the labels {list(example.labels)}, another "
                f"{list(names)}; give all the same names, UNKNOWN where there is no label"
            )
    inputs: dict[str, Tensor] = {}
    for modality, axis in LENGTH_AXIS.items():
        clips: list[Tensor | None] = [getattr(example, modality) for example in examples]
        inputs.update(_side_by_side(modality, clips, axis))
    if not inputs:
        raise ValueError("collate: got clips without sound and without pictures; leave them out")
    labels = {
        name: torch.tensor([_class(name, example.labels[name]) for example in examples])
        for name in names
    }
    return Batch(inputs, labels)


def _class(label: str, value: Any) -> int:
    try:
        return index(value)
    except TypeError:
        raise TypeError(
            f"collate: a clip has {value!r} for {label!r}, wanted the number of a class; give "
            "UNKNOWN where nobody knows"
        ) from None


def _side_by_side(modality: str, clips: Sequence[Tensor | None], axis: int) -> dict[str, Tensor]:
    """One tensor of all, padded along `axis`, with lengths where they differ."""
    there = [clip for clip in clips if clip is not None]
    for value in there:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"collate: {modality} is a {type(value).__name__}, wanted a tensor; use "
                "torch.as_tensor"
            )
    kinds = {(clip.dtype, *clip.shape[:axis], *clip.shape[axis + 1 :]) for clip in there}
    if len(kinds) > 1:
        found = sorted(f"{clip.dtype} {tuple(clip.shape)}" for clip in there)
        raise ValueError(
            f"collate: {modality} comes as {found}; only its length may differ: scale pictures to "
            "one size"
        )
    lengths = torch.tensor([0 if clip is None else clip.shape[axis] for clip in clips])
    longest = int(lengths.max())
    if not longest:
        return {}
    if (lengths == longest).all():
        return {modality: torch.stack(there)}
    shape = list(there[0].shape)
    shape[axis] = longest
    padded = there[0].new_zeros(len(clips), *shape)
    for row, clip in zip(padded, clips, strict=True):
        if clip is not None:
            row.narrow(axis, 0, clip.shape[axis]).copy_(clip)
    return {modality: padded, f"{modality}_lengths": lengths}
