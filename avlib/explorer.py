"""See a mask, or what a model attends to: a picture, a row at a time, layer after layer."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from avlib.attention_maps import READOUT, AttentionMaps
from avlib.checks import check_counts
from avlib.named_tokens import Layout, Tokens
from avlib.plots.cells import Cells, by_layer, cells_axes, check_drawable, to_look_at
from avlib.plots.live import Live
from avlib.plots.places import Places
from avlib.reach import Reach, cost
from avlib.sound import LogMelSpectrogram
from avlib.token_masks import Mask, as_mask
from avlib.widgets import PictureSliders
from avlib.zorro import Zorro

DEEPEST = 12  # layers on the slider
TITLE = 24  # pixels


def explore(
    source: Any,
    tokens: Layout | Any = None,
    keys: Layout | None = None,
    *,
    clip: Any = None,
    readout: bool = False,
    block: int = 128,
    query: int = 0,
    start: Mapping[str, Any] | None = None,
) -> PictureSliders:
    """Sliders over a mask, or over the attention of a Zorro for a clip.

    For a mask: which keys a query reads; what it can hold after some layers, the later the paler;
    what the mask costs. For a model: where a query looks, by layer and head. Groups whose tokens
    lie in a grid are shown as frames and patches too, on the clip where there is one.

    Args:
        source: a Zorro in eval mode, or whatever `as_mask` takes.
        tokens: for a model the clip; for a mask names with sizes or grids, see `as_mask`.
        keys: what is read, where it is not the readers.
        clip: what the tokens were cut from: something with `audio` and `video` (one may be None),
            such as a `Clip` or an `Example`. The groups must have these names.
        readout: for a model the queries of its readout in place of the tokens in its layers.
        block: tokens along a block of a block-sparse kernel.
        query: the row to begin with.
        start: where other sliders begin, such as {"layers": 2}.

    Raises:
        ValueError: see `as_mask` and `AttentionMaps`; more than 4096 tokens along a side, or a
            start that is not on the sliders.
        TypeError: the clip is none, or the model no Zorro.
    """
    view: _View
    if isinstance(source, Zorro):
        view = _Attention(source, tokens if clip is None else clip, readout)
    else:
        if hasattr(tokens, "audio"):
            raise TypeError(
                f"explore: got a clip and {type(source).__name__}, which is no Zorro; give the "
                "Zorro itself (a wrapper keeps it as .module), or for a mask clip=…"
            )
        view = _Masked(as_mask(source, tokens, keys), clip, block)
    view.readers.group(query)
    begin = {"query": query, **(start or {})}
    controls = {"query": range(len(view.readers)), **view.controls}
    return PictureSliders(controls, view.draw, begin, play="query")


class _View:
    """What masks and attention have in common: a table of strengths for each setting.

    Args:
        readers, keys: of the table.
        controls: what sets it: name of a slider → its values.
        pictures: group → what its tokens were cut from.
    """

    def __init__(
        self,
        readers: Tokens,
        keys: Tokens,
        controls: Mapping[str, Sequence[Any]],
        pictures: Mapping[str, Tensor],
    ) -> None:
        check_drawable("explore", len(readers), len(keys))
        self.readers, self.keys, self.controls = readers, keys, controls
        self.table = lru_cache(4)(self._table)
        strength, cells = self.table(*(values[0] for values in controls.values()))
        self._matrix = Live([cells_axes(cells, row=0, title=" ")], cells.palette, title=TITLE)
        self._places = None
        if pictures or any(len(grid) > 1 for grid in keys.grids.values()):
            self._places = Places(readers, keys, pictures)
            self._strips = Live(self._places.axes(strength[0], 0))

    def draw(self, query: int, *setting: Any) -> tuple[list[bytes], str, str]:
        strength, cells = self.table(*setting)
        values = zip(["query", *self.controls], [query, *setting], strict=True)
        title = "  ·  ".join(f"{name} {value}" for name, value in values)
        pictures = [self._matrix(cells.raster(query), title=title)]
        if self._places is not None:
            pictures.insert(0, self._strips(*self._places.rasters(strength[query], query)))
        return pictures, self.sentence(query, *setting), self.note(*setting)

    def _table(self, *setting: Any) -> tuple[Tensor, Cells]:
        strength = self.strength(*setting)
        return strength, Cells(strength, self.readers, self.keys)

    def strength(self, *setting: Any) -> Tensor:
        raise NotImplementedError

    def sentence(self, query: int, *setting: Any) -> str:
        raise NotImplementedError

    def note(self, *setting: Any) -> str:
        raise NotImplementedError


class _Masked(_View):
    """A mask, and what follows from it through layers."""

    def __init__(self, mask: Mask, clip: Any, block: int) -> None:
        check_counts("explore", block=block)
        self.mask, self.block = mask, block
        self._stacks = mask.readers == mask.keys
        controls = {
            "layers": range(1, DEEPEST + 1 if self._stacks else 2),
            "batch": range(mask.batch),
            "head": range(mask.heads),
        }
        controls = {name: values for name, values in controls.items() if len(values) > 1}
        self._dense = lru_cache(4)(lambda batch, head: mask.dense(batch=batch, head=head))
        self._reach = lru_cache(4)(lambda batch, head: Reach(self._dense(batch, head)))
        self._note = lru_cache(4)(self._cost)
        super().__init__(mask.readers, mask.keys, controls, _pictures(clip))

    def _named(self, setting: Sequence[Any]) -> tuple[int, int, int]:
        named = dict(zip(self.controls, setting, strict=True))
        return named.get("layers", 1), named.get("batch", 0), named.get("head", 0)

    def strength(self, *setting: Any) -> Tensor:
        layers, batch, head = self._named(setting)
        if layers == 1:
            return self._dense(batch, head).float()
        return by_layer(self._reach(batch, head).first(layers))

    def sentence(self, query: int, *setting: Any) -> str:
        layers, batch, head = self._named(setting)
        which = {"batch": batch, "head": head}
        named = [f"{name} {which[name]}" for name in which if name in self.controls]
        if layers == 1:
            said = self.mask.sentence(query, batch=batch, head=head)
        else:
            said = self._reach(batch, head).sentence(query, layers, self.readers)
        return ": ".join([*filter(None, [", ".join(named).capitalize()]), said])

    def note(self, *setting: Any) -> str:
        layers, batch, head = self._named(setting)
        paler = "Full colour was read in the first layer, what is paler came later. "
        return paler * (layers > 1) + self._note(batch, head)

    def _cost(self, batch: int, head: int) -> str:
        visible = self._dense(batch, head)
        note = f"This mask lets through {cost(visible, self.block)}"
        empty = (~visible.any(1)).nonzero()[:, 0].tolist()
        if empty:
            some = ", ".join(map(str, empty[:5])) + ", …" * (len(empty) > 5)
            dashed = "dashed in layer 1" if self._stacks else "dashed"
            note += f" {len(empty)} of its queries read nothing ({dashed}): {some}."
        return note


class _Attention(_View):
    """The attention weights of a Zorro for one clip."""

    def __init__(self, model: Zorro, clip: Any, readout: bool) -> None:
        if clip is None:
            raise ValueError(
                "explore: got a model without a clip; give one, as in explore(model, clip)"
            )
        _check_clip(clip)
        self.maps = AttentionMaps(model, audio=clip.audio, video=clip.video)
        if not readout and len(self.maps.layers) == 1:
            raise ValueError("explore: this model has no layers; look at it with readout=True")
        layers = [n for n in self.maps.layers if n != READOUT]
        heads = ["mean", *range(self.maps.heads)]
        first = READOUT if readout else layers[0]
        found = {"audio": self.maps.spectrogram, "video": self.maps.video}
        super().__init__(
            self.maps.readers(first),
            self.maps.keys(first),
            {"head": heads} if readout else {"layer": layers, "head": heads},
            {name: picture for name, picture in found.items() if picture is not None},
        )

    def _named(self, setting: Sequence[Any]) -> tuple[int | str, int | None]:
        *layer, head = setting
        return layer[0] if layer else READOUT, None if head == "mean" else head

    def strength(self, *setting: Any) -> Tensor:
        return to_look_at(self.maps.rows(*self._named(setting)))

    def sentence(self, query: int, *setting: Any) -> str:
        return self.maps.sentence(*self._named(setting), query)

    def note(self, *setting: Any) -> str:
        return (
            "Each row is scaled to its own largest weight, by the square root, so that small ones "
            "are seen. Plain grey is hidden by the mask."
        )


def _check_clip(clip: Any) -> None:
    if not hasattr(clip, "audio") or not hasattr(clip, "video"):
        raise TypeError(
            f"explore: the clip is a {type(clip).__name__}, wanted something with audio and video; "
            "use Example(audio, video, {}), or a Clip"
        )


def _pictures(clip: Any) -> dict[str, Tensor]:
    """What the tokens of a mask were cut from."""
    pictures: dict[str, Tensor] = {}
    if clip is None:
        return pictures
    _check_clip(clip)
    if clip.video is not None:
        pictures["video"] = clip.video
    if clip.audio is not None:
        if not hasattr(clip, "sample_rate"):
            raise ValueError(
                f"explore: {type(clip).__name__} does not say the sample rate of its sound; give "
                "a Clip, such as World(…).clip(0)"
            )
        # Padded by `Places`, which knows how many patches there are.
        sound = LogMelSpectrogram(sample_rate=clip.sample_rate, patch_frames=1)
        pictures["audio"] = sound(clip.audio[None])[0]
    return pictures
