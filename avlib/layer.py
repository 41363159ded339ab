"""One masked layer, as an ordinary block of streams and as a reversible block of their halves."""

from collections.abc import Mapping

from jaxtyping import Bool, Float
from torch import Tensor, nn

from avlib.attention import Attention, FeedForward, KeysValues
from avlib.coupling import Coupling
from avlib.masks import Visibility

Kept = Mapping[str, KeysValues] | None
Masks = Mapping[str, Bool[Tensor, "*#b _n"]] | None


class Layer(nn.Module):
    """One masked layer: attention, then feed-forward, each added to its stream."""

    def __init__(
        self, dim: int, *, heads: int, dim_head: int, ff_mult: float, dropout: float
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, heads=heads, dim_head=dim_head, dropout=dropout)
        self.feed_forward = FeedForward(dim, mult=ff_mult, dropout=dropout)

    def forward(
        self,
        streams: Mapping[str, Float[Tensor, "*b _n d"]],
        visibility: Visibility,
        key_masks: Masks = None,
        kept: Kept = None,
    ) -> dict[str, Float[Tensor, "*b _n d"]]:
        """The streams after this layer, each the shape it had; the arguments are `Attention`'s."""
        read = self.attention(streams, visibility, kept=kept, key_masks=key_masks)
        streams = {name: stream + read[name] for name, stream in streams.items()}
        return {name: stream + self.feed_forward(stream) for name, stream in streams.items()}

    def couplings(
        self, visibility: Visibility, key_masks: Masks = None, kept: Kept = None
    ) -> list[Coupling]:
        """The same layer over two halves of each stream, "audio 1" and "audio 2".

        First half += attention(second half), for all streams at once; then second half +=
        feed_forward(first half).
        """
        first, second = ([f"{name} {half}" for name in visibility.readers] for half in (1, 2))
        attention = _OneByOne(self.attention, visibility, key_masks, kept)
        return [
            Coupling(first, second, attention),
            *(Coupling(b, a, self.feed_forward) for a, b in zip(first, second, strict=True)),
        ]


class _OneByOne(nn.Module):
    """An `Attention` that takes the readers' streams, and gives what they read, one by one."""

    def __init__(
        self, attention: Attention, visibility: Visibility, key_masks: Masks, kept: Kept
    ) -> None:
        super().__init__()
        self.attention, self.visibility = attention, visibility
        self.key_masks, self.kept = key_masks, kept

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        names = self.visibility.readers
        named = dict(zip(names, streams, strict=True))
        read = self.attention(named, self.visibility, kept=self.kept, key_masks=self.key_masks)
        return tuple(read[name] for name in names)


def halved(streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both halves of each stream; they begin alike."""
    return {f"{name} {half}": stream for half in (1, 2) for name, stream in streams.items()}


def mean_of_halves(halves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each stream as the mean of its halves."""
    names = [name.removesuffix(" 1") for name in halves if name.endswith(" 1")]
    return {name: (halves[f"{name} 1"] + halves[f"{name} 2"]) / 2 for name in names}
