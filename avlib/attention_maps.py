"""What a Zorro looks at in one clip: its attention weights, layer by layer and head by head."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from avlib.attention import Attention
from avlib.checks import check_number
from avlib.masks import Visibility
from avlib.named_tokens import Grid, Tokens
from avlib.zorro import Zorro

READOUT = "readout"


class _Call(NamedTuple):
    """One call of an `Attention`: what entered it."""

    attention: Attention
    streams: dict[str, Tensor]
    visibility: Visibility
    kept: dict[str, Any]
    key_masks: dict[str, Tensor]
    readers: Tokens
    keys: Tokens


class AttentionMaps:
    """The attention weights of a Zorro for one clip; rows are computed when asked for.

    The model runs once. What enters each layer is kept, so that a row costs one query against the
    keys that it may read, and never all layers and heads. The model's weights are used again for
    each row: they must stay as they are.

    Readout queries that may read only a modality that is left out are left out too.

    Args:
        model: any Zorro, stored or reversible, in eval mode.
        audio: waveform (samples,), or None.
        video: RGB in [0, 1], (c, t, y, x), or None.

    Attributes:
        layers: 1, 2, …, "readout".
        heads: how many.
        spectrogram: what the audio patches were cut from, (bins, columns); None without sound.
        video: as given.
        patches: modality → size of its patches.

    Raises:
        TypeError: the model is no Zorro.
        ValueError: some of the model is in training mode, or it refuses the clip.
    """

    def __init__(
        self,
        model: Zorro,
        *,
        audio: Float[Tensor, " samples"] | None = None,
        video: Float[Tensor, "c t y x"] | None = None,
    ) -> None:
        if not isinstance(model, Zorro):
            raise TypeError(
                f"AttentionMaps: got {type(model).__name__}, wanted a Zorro; of a compiled model "
                "give the one that was compiled"
            )
        if any(module.training for module in model.modules()):
            raise ValueError(
                "AttentionMaps: the model is in training mode, where dropout changes what it looks "
                "at; call model.eval() first"
            )
        self.heads = model.pool.heads
        self.video = video
        self.patches: dict[str, tuple[int, ...]] = {
            "audio": model.audio_embedding.patch_size,
            "video": model.video_embedding.patch_size,
        }
        grids: dict[str, Grid] = {"fusion": len(model.fusion_tokens)}
        inputs = {}
        if audio is not None:
            inputs["audio"] = audio[None]
        if video is not None:
            inputs["video"] = video[None]
        asked = [
            index
            for index, kind in enumerate(model.kinds)
            if {*model.readout.reads[kind]} & {"fusion", *inputs}
        ]

        calls: list[tuple[Attention, tuple[Any, ...], dict[str, Any]]] = []
        seen: list[Tensor] = []
        hooks = [
            module.register_forward_pre_hook(
                lambda module, args, kwargs: calls.append((module, args, kwargs)), with_kwargs=True
            )
            for module in model.modules()
            if isinstance(module, Attention)
        ]
        hooks.append(
            model.audio_embedding.spec_augment.register_forward_hook(
                lambda module, args, output: seen.append(output)
            )
        )
        try:
            with torch.no_grad():
                model(**inputs, return_token_indices=asked or None)
        finally:
            for hook in hooks:
                hook.remove()
        self.spectrogram = seen[0][0] if seen else None
        for name, picture in (("audio", self.spectrogram), ("video", video)):
            if picture is not None:
                sizes = picture.shape[-len(self.patches[name]) :]
                grids[name] = tuple(n // p for n, p in zip(sizes, self.patches[name], strict=True))
        names = [*range(1, len(calls)), READOUT]
        self._calls = {name: _call(call, grids) for name, call in zip(names, calls, strict=True)}
        self.layers = tuple(names)

    def readers(self, layer: int | str) -> Tokens:
        """The tokens that read in a layer."""
        return self._of(layer).readers

    def keys(self, layer: int | str) -> Tokens:
        """The tokens that are read in a layer."""
        return self._of(layer).keys

    def _of(self, layer: int | str) -> _Call:
        if isinstance(layer, bool) or layer not in self._calls:
            raise ValueError(f"AttentionMaps: no layer {layer!r}; choose one of {self.layers}")
        return self._calls[layer]

    @torch.no_grad()
    def rows(
        self,
        layer: int | str,
        head: int | None,
        readers: Int[Tensor, " i"] | Sequence[int] | None = None,
    ) -> Float[Tensor, "i j"]:
        """The weights with which some tokens read all others; a row sums to 1.

        Args:
            layer: one of `layers`.
            head: counted from 0; None for the mean of all heads.
            readers: numbers of tokens, see `readers(layer)`; by default all.

        Raises:
            ValueError: there is no such layer, head or token.
        """
        call = self._of(layer)
        if head is not None:
            check_number("AttentionMaps", "head", head, self.heads)
        wanted = call.readers.numbers(range(len(call.readers)) if readers is None else readers)
        dtype = torch.promote_types(next(iter(call.streams.values())).dtype, torch.float32)
        table = torch.zeros(len(wanted), len(call.keys), dtype=dtype)
        for name, span in call.readers.spans.items():
            mine = (wanted >= span.start) & (wanted < span.stop)
            if not mine.any():
                continue
            stream = call.streams[name]
            weights = call.attention.weights(
                stream[:, (wanted[mine] - span.start).to(stream.device)],
                call.visibility,
                name,
                head=head,
                streams=call.streams,
                kept=call.kept,
                key_masks=call.key_masks,
            )
            for key, part in weights.items():
                table[mine, call.keys.spans[key]] = part[0].mean(0).to(table)
        return table

    def sentence(self, layer: int | str, head: int | None, token: int) -> str:
        """Where a token looks: the share of each group, and the key with the most weight."""
        readers, keys = self.readers(layer), self.keys(layer)
        (row,) = self.rows(layer, head, [token])
        of_layer = "In the readout" if layer == READOUT else f"In layer {layer}"
        by = "the mean of all heads" if head is None else f"head {head}"
        shares = ", ".join(
            f"{100 * row[span].sum():.0f} % to {name}" for name, span in keys.spans.items()
        )
        most = int(row.argmax())
        return (
            f"{of_layer}, {by}: {readers.query(token)} gives {shares}; most to "
            f"{keys.place(most)}, {100 * row[most]:.0f} %."
        )


def _call(call: tuple[Attention, tuple[Any, ...], dict[str, Any]], grids: dict[str, Grid]) -> _Call:
    attention, (streams, visibility), rest = call
    kept = dict(rest.get("kept") or {})
    readers = {
        # The queries of the readout have the names of streams, and are not in their places.
        name: grids[name] if name in grids and not kept else streams[name].shape[-2]
        for name in visibility.readers
    }
    keys = {name: grids[name] for name in visibility.keys}
    masks = dict(rest.get("key_masks") or {})
    streams = {name: stream.detach() for name, stream in streams.items()}
    return _Call(attention, streams, visibility, kept, masks, Tokens(readers), Tokens(keys))
