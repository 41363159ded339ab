"""Reversible sequences: activations are not stored but computed again by running blocks backwards.

A block is a list of couplings over named streams, `streams[targets] += fn(streams[reads])`. What
was added can be computed again from what it was read from, and taken away: so every block has an
inverse, whatever its functions are. `DualModalityReversibleSequence` declares the three blocks of
`nuwa-pytorch`'s text → video + audio decoder in these terms.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avlib.coupling import Coupling, Streams, step
from avlib.grid import Grid
from avlib.recompute import Tape, drawn_from, random_state, recomputed


class ReversibleSequence(nn.Module):
    """Blocks of couplings over named streams: an inverse, and a backward pass that stores nothing.

    Gradients of streams, parameters and inputs are those of ordinary autograd, for a third more
    arithmetic: going backwards, each coupling is computed again from its outputs. So each callable
    runs twice in a training step, and so do its forward hooks; one that draws random numbers keeps
    their state, 5 kB on the CPU. Streams come back as exactly as `(x + f) - f` is x, to rounding,
    and with them the gradients: what is added must not dwarf a stream, and bfloat16 streams drift.

    Args:
        blocks: each some couplings, in order.
        exact: round float32 streams to a `Grid`, so that the inverse returns them to the bit.
    """

    def __init__(self, blocks: Iterable[Iterable[Coupling]], *, exact: bool = False) -> None:
        super().__init__()
        blocks = [list(block) for block in blocks]
        for kind in (type(part) for block in blocks for part in block):
            if not issubclass(kind, Coupling):
                raise TypeError(
                    f"ReversibleSequence: a block holds a {kind.__name__}, wanted couplings; write "
                    'Coupling("x1", "x2", fn) for x1 += fn(x2)'
                )
        self.blocks: Any = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        self.grid = Grid() if exact else None

    def forward(
        self, streams: Streams, inputs: Mapping[str, Any] | None = None, *, reverse: bool = True
    ) -> dict[str, Tensor]:
        """The streams after all blocks.

        Args:
            streams: floating-point tensors by name; those that no coupling names pass through.
            inputs: what the couplings' keywords name: tensors, None, or anything that holds no
                tensor that needs a gradient.
            reverse: with False the same function under ordinary autograd, activations stored.

        Raises:
            TypeError, ValueError: a stream or an input that a coupling names is not there; its
                function returned what cannot be added, changed what it read, or depends on a
                tensor that needs a gradient and is hidden from the sequence.
            RuntimeError: from the backward pass: a second derivative is asked for, or parameters,
                inputs or the training mode have changed.
        """
        streams, inputs = self._start(streams, inputs)
        couplings = [coupling for block in self.blocks for coupling in block]
        tape = Tape(len(couplings))
        for index, coupling in enumerate(couplings):
            if reverse:
                streams = recomputed(coupling, streams, inputs, self.grid, tape, index)
            else:
                streams = step(coupling, streams, inputs, self.grid)
        return streams

    def inverse(
        self, streams: Streams, inputs: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """The streams before all blocks, from those after them and the same inputs.

        Raises:
            TypeError, ValueError: as `forward`; or a coupling draws random numbers, as dropout
                does in training.
            RuntimeError: as `check`.
        """
        self.check()
        streams, inputs = self._start(streams, inputs)
        devices = {torch.device("cpu"), *(stream.device for stream in streams.values())}
        for coupling in (c for block in reversed(self.blocks) for c in reversed(block)):
            before = random_state(devices)
            streams = step(coupling, streams, inputs, self.grid, back=True)
            if drawn_from(before):
                raise ValueError(
                    f"inverse: {coupling} draws random numbers, so what it added cannot be "
                    "computed again; turn dropout off with .eval(), in the forward pass too"
                )
        self.check()
        return streams

    def check(self) -> None:
        """Raise RuntimeError if, since the last check, exact mode was not exact (see `Grid`)."""
        if self.grid is not None:
            self.grid.check()

    def _start(
        self, streams: Streams, inputs: Mapping[str, Any] | None
    ) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        inputs = {} if inputs is None else inputs
        for kind, names in (("streams", streams), ("inputs", inputs)):
            if not isinstance(names, Mapping):
                raise TypeError(
                    f"reversible: {kind} is {type(names).__name__}, wanted a dictionary; give each "
                    "tensor its name"
                )
        for name, stream in streams.items():
            if not isinstance(stream, Tensor) or not stream.is_floating_point():
                got = stream.dtype if isinstance(stream, Tensor) else type(stream).__name__
                raise TypeError(
                    f"reversible: stream {name!r} is {got}, wanted a floating-point tensor"
                )
        for coupling in (coupling for block in self.blocks for coupling in block):
            for kind, wanted, there in (
                ("stream", {*coupling.targets, *coupling.reads}, streams),
                ("input", set(coupling.keywords.values()), inputs),
            ):
                if missing := sorted(wanted - set(there)):
                    raise ValueError(
                        f"{coupling}: {kind} {missing[0]!r} is missing, there are {list(there)}; "
                        f"give it{', None if there is none' if kind == 'input' else ''}"
                    )
        return dict(streams) if self.grid is None else self.grid.enter(streams), inputs


_TEXT = {"context": "context", "context_mask": "context_mask"}
# type → its couplings: target, reads, which of the four callables, keywords
BLOCK_TYPES: dict[str, tuple[tuple[str, tuple[str, ...], str, dict[str, str]], ...]] = {
    "intra_modality_self_attn": (
        ("x1", ("x2",), "f", {}),
        ("x2", ("x1",), "g", {}),
        ("m1", ("m2",), "j", {}),
        ("m2", ("m1",), "k", {}),
    ),
    "intra_modality_cross_attn": (
        ("x1", ("x2",), "f", {**_TEXT, "mask": "video_mask"}),
        ("x2", ("x1",), "g", {}),
        ("m1", ("m2",), "j", {**_TEXT, "mask": "audio_mask"}),
        ("m2", ("m1",), "k", {}),
    ),
    "inter_modality_cross_attn": (
        ("x1", ("x2", "m2"), "f", {"mask": "video_mask", "context_mask": "audio_mask"}),
        ("x2", ("x1",), "k", {}),
        ("m1", ("m2", "x2"), "j", {"mask": "audio_mask", "context_mask": "video_mask"}),
        ("m2", ("m1",), "g", {}),
    ),
}


class DualModalityReversibleSequence(nn.Module):
    """A video tower (x1, x2) and an audio tower (m1, m2) that read a context and each other.

    The function, and the order of the callables, are those of `nuwa-pytorch` 0.7.8: f and j are
    the attentions of video and audio; g and k the feed-forwards, of video and audio within a
    modality, of *audio and video* in `inter_modality_cross_attn`.

    Args:
        blocks: four callables (f, g, j, k) each; `Coupling` says what they may be.
        block_types: a name from `BLOCK_TYPES` for each block.
        exact: round float32 streams to a `Grid`, so that the inverse returns them to the bit.

    Raises:
        ValueError: an unknown type, other than four callables, or unequal numbers of both.
    """

    def __init__(
        self,
        blocks: Iterable[Iterable[Callable[..., Any]]],
        block_types: Sequence[str],
        exact: bool = False,
    ) -> None:
        super().__init__()
        where = "DualModalityReversibleSequence"
        given = [tuple(block) for block in blocks]
        if len(given) != len(block_types):
            raise ValueError(
                f"{where}: got {len(given)} blocks and {len(block_types)} block_types; give one "
                "type for each block"
            )
        couplings = []
        for index, (block, kind) in enumerate(zip(given, block_types, strict=True)):
            if kind not in BLOCK_TYPES:
                raise ValueError(
                    f"{where}: block {index} has type {kind!r}; wanted one of {list(BLOCK_TYPES)}"
                )
            if len(block) != 4:
                raise ValueError(
                    f"{where}: block {index} has {len(block)} callables, wanted four: f, g, j, k"
                )
            by_letter = dict(zip("fgjk", block, strict=True))
            couplings.append(
                [
                    Coupling(target, reads, by_letter[letter], keywords)
                    for target, reads, letter, keywords in BLOCK_TYPES[kind]
                ]
            )
        self.block_types = tuple(block_types)
        self.sequence = ReversibleSequence(couplings, exact=exact)

    def forward(
        self,
        video: Float[Tensor, "b nv dv"],
        audio: Float[Tensor, "b na da"],
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        video_mask: Tensor | None = None,
        audio_mask: Tensor | None = None,
        reverse: bool = True,
    ) -> tuple[Float[Tensor, "b nv dv"], Float[Tensor, "b na da"]]:
        """Both halves of a tower start as its tokens; returned is their mean after all blocks.

        Args:
            video, audio: the towers' tokens; their numbers may differ.
            context: what `intra_modality_cross_attn` reads, such as encoded text. None is allowed
                where no block reads it.
            context_mask, video_mask, audio_mask: handed to the callables as they are, also None.
            reverse: with False the same function under ordinary autograd, activations stored.

        Raises:
            ValueError: context is missing, or a callable returns another shape.
        """
        x1, x2, m1, m2 = self.streams(
            video,
            audio,
            context=context,
            context_mask=context_mask,
            video_mask=video_mask,
            audio_mask=audio_mask,
            reverse=reverse,
        )
        return (x1 + x2) / 2, (m1 + m2) / 2

    def streams(
        self, video: Tensor, audio: Tensor, *, reverse: bool = True, **inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four halves (x1, x2, m1, m2) after all blocks; `forward` names the keywords."""
        halves = {"x1": video, "x2": video, "m1": audio, "m2": audio}
        out = self.sequence(halves, self._inputs(**inputs), reverse=reverse)
        return out["x1"], out["x2"], out["m1"], out["m2"]

    def inverse(
        self, x1: Tensor, x2: Tensor, m1: Tensor, m2: Tensor, **inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The halves before all blocks, from those that `streams` gave, with the same keywords.

        Raises:
            ValueError: the halves of one tower differ in shape, or dropout is on.
        """
        for names, one, other in (("x1 and x2", x1, x2), ("m1 and m2", m1, m2)):
            if one.shape != other.shape:
                raise ValueError(
                    f"inverse: {names} have shapes {tuple(one.shape)} and {tuple(other.shape)}; "
                    "they are halves of one tower, in the order x1, x2, m1, m2"
                )
        halves = {"x1": x1, "x2": x2, "m1": m1, "m2": m2}
        out = self.sequence.inverse(halves, self._inputs(**inputs))
        return out["x1"], out["x2"], out["m1"], out["m2"]

    def check(self) -> None:
        """Raise RuntimeError if, since the last check, exact mode was not exact (see `Grid`)."""
        self.sequence.check()

    def _inputs(
        self,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        video_mask: Tensor | None = None,
        audio_mask: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        if context is None and "intra_modality_cross_attn" in self.block_types:
            index = self.block_types.index("intra_modality_cross_attn")
            raise ValueError(
                f"DualModalityReversibleSequence: context is None and block {index} "
                "(intra_modality_cross_attn) reads it; give context=(batch, tokens, features)"
            )
        return {
            "context": context,
            "context_mask": context_mask,
            "video_mask": video_mask,
            "audio_mask": audio_mask,
        }
