"""Who may read whom, token by token: any mask, over tokens that have names and places.

A `Visibility` holds rules for groups. A `Mask` holds them for tokens, as a function with
FlexAttention's signature, so that windows and causal orders are masks too. It may come from a
Visibility, a tensor or such a function; `avlib.gallery` has those of the literature.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from avlib.checks import check_counts, check_number
from avlib.leaks import Influence
from avlib.masks import MaskMod, Visibility
from avlib.named_tokens import Layout, Tokens

# A score lowered by so much weighs nothing in any precision.
HIDDEN_SCORE = -1e4


class Mask:
    """Which token may read which: a function with FlexAttention's signature, over named tokens.

    It is such a function itself, so FlexAttention's `create_block_mask(mask, …)` takes it.
    `&`, `|` and `~` combine masks, also with what `as_mask` makes one of.

    >>> before = Mask(lambda b, h, q_idx, kv_idx: kv_idx < q_idx, {"audio": 2, "video": 2})
    >>> print(before)
         A A V V
    A 0  · · · ·
    A 1  A · · ·
    V 0  A A · ·
    V 1  A A V ·
    >>> print(before.sentence(2))
    Query 2, video 0, reads 2 of 2 audio, 0 of 2 video.

    Args:
        mask_mod: (b, h, q_idx, kv_idx) → True where q_idx may read kv_idx; four integer tensors
            in, one boolean tensor out, written for single indices (it is run under `vmap`).
        readers: the tokens that read, see `Tokens`.
        keys: those that are read; by default the readers.
        batch, heads: how many masks these are, where `mask_mod` looks at b and h.
        device: where `mask_mod` keeps its tensors.

    Raises:
        TypeError: `mask_mod` is no function.
        ValueError: batch or heads is no positive whole number.
    """

    __array_ufunc__ = None  # else an array on the left of & would ask for its elements one by one

    def __init__(
        self,
        mask_mod: MaskMod,
        readers: Layout,
        keys: Layout | None = None,
        *,
        batch: int = 1,
        heads: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not callable(mask_mod):
            raise TypeError(
                f"Mask: got {type(mask_mod).__name__}, wanted a function (b, h, q_idx, kv_idx) → "
                "bool; as_mask takes tensors too"
            )
        check_counts("Mask", batch=batch, heads=heads)
        self.mask_mod = mask_mod
        self.readers = Tokens.of(readers)
        self.keys = self.readers if keys is None else Tokens.of(keys)
        self.batch, self.heads, self.device = batch, heads, torch.device(device)

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """Whether q_idx may read kv_idx, in clip b and head h."""
        return self.mask_mod(b, h, q_idx, kv_idx)

    def rows(
        self, readers: Int[Tensor, " i"] | Sequence[int], *, batch: int = 0, head: int = 0
    ) -> Bool[Tensor, "i j"]:
        """What some tokens may read; only these rows are computed.

        Raises:
            ValueError: no such token, batch or head, or `mask_mod` gives no boolean scalar.
        """
        check_number("Mask", "batch", batch, self.batch)
        check_number("Mask", "head", head, self.heads)
        rows = self.readers.numbers(readers)
        indices = torch.tensor(batch), torch.tensor(head), rows, torch.arange(len(self.keys))
        run = torch.vmap(self.mask_mod, (None, None, None, 0))
        run = torch.vmap(run, (None, None, 0, None))
        try:
            visible = run(*(index.to(self.device) for index in indices))
        except Exception as error:
            error.add_note("Mask: this came from the mask function, called as FlexAttention does")
            raise
        if not isinstance(visible, Tensor) or visible.dtype != torch.bool or visible.ndim != 2:
            got = type(visible).__name__
            if isinstance(visible, Tensor):
                got = f"{visible.dtype} of shape {tuple(visible.shape[2:])}"
            raise ValueError(
                f"Mask: the mask function gave {got} for one pair, wanted one boolean; a score_mod "
                "is no mask_mod, compare in it"
            )
        return visible.cpu()

    def dense(self, *, batch: int = 0, head: int = 0) -> Bool[Tensor, "i j"]:
        """All rows: the mask for `scaled_dot_product_attention`, True where i may read j."""
        return self.rows(torch.arange(len(self.readers)), batch=batch, head=head)

    # Combining

    def __and__(self, other: Any) -> "Mask":
        return self._joined(other, torch.logical_and)

    def __or__(self, other: Any) -> "Mask":
        return self._joined(other, torch.logical_or)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> "Mask":
        return Mask(
            lambda b, h, i, j: ~self.mask_mod(b, h, i, j),
            self.readers,
            self.keys,
            batch=self.batch,
            heads=self.heads,
            device=self.device,
        )

    def _joined(self, other: Any, join: Callable[[Tensor, Tensor], Tensor]) -> "Mask":
        both = self, other if isinstance(other, Mask) else as_mask(other, self.readers, self.keys)
        other = both[1]
        batch = _same_count("batch", self.batch, other.batch)
        heads = _same_count("heads", self.heads, other.heads)

        def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            # One that is alone goes with all, and is asked for its clip 0 or head 0.
            one, two = (
                m.mask_mod(b * int(m.batch == batch), h * int(m.heads == heads), q_idx, kv_idx)
                for m in both
            )
            return join(one, two)

        return Mask(
            mask_mod,
            _same_tokens("readers", self.readers, other.readers),
            _same_tokens("keys", self.keys, other.keys),
            batch=batch,
            heads=heads,
            device=max(self.device, other.device, key=lambda device: device.type != "cpu"),
        )

    # In words

    def sentence(self, token: int, *, batch: int = 0, head: int = 0) -> str:
        """What a token reads, group by group."""
        (row,) = self.rows([token], batch=batch, head=head)
        query = self.readers.query(token)
        query = f"Q{query[1:]}"
        if not row.any():
            return (
                f"{query} reads nothing: softmax over no keys has no meaning. Let it read at least "
                "itself."
            )
        return f"{query} reads {counted(row, self.keys)}."

    def __str__(self) -> str:
        return text_grid(self)


def counted(row: Bool[Tensor, " j"], keys: Tokens) -> str:
    """How many of each group are True: "2 of 4 audio, 0 of 2 video"."""
    return ", ".join(
        f"{int(row[span].sum())} of {keys.sizes[name]} {name}" for name, span in keys.spans.items()
    )


def _same_tokens(side: str, one: Tokens, other: Tokens) -> Tokens:
    if len(one) == len(other):
        if one == other or other.unnamed:
            return one
        if one.unnamed:
            return other
    raise ValueError(
        f"Mask: cannot combine {side} {one} with {side} {other}; both need the same tokens"
    )


def _same_count(what: str, one: int, other: int) -> int:
    if one != other and 1 not in (one, other):
        raise ValueError(
            f"Mask: cannot combine {what} {one} with {what} {other}; wanted the same, or 1"
        )
    return max(one, other)


# Whatever holds a mask


def as_mask(
    source: Any,
    tokens: Layout | None = None,
    keys: Layout | None = None,
) -> Mask:
    """A `Mask` from whatever holds one.

    Args:
        source: a Mask, a Visibility, what `influence` measured, FlexAttention's BlockMask or a
            function with its signature, a tensor or an array. A tensor is (n, m), (heads, n, m) or
            (batch, heads, n, m), as `scaled_dot_product_attention` takes it: boolean, True where i
            may read j, or added to the scores, where -10,000 and less hides a key.
        tokens: the readers, see `Tokens`. A tensor may do without.
        keys: what is read; by default the readers, and for a tensor with more columns than rows
            tokens without a name.

    Raises:
        TypeError: the source is something else.
        ValueError: tokens are missing, their names or their number do not fit the source, or a
            tensor has another rank or dtype, no token, or NaN.
    """
    if isinstance(source, Influence):
        outputs, inputs = (dict.fromkeys(names, 1) for names in (source.outputs, source.inputs))
        return as_mask(source.moves, outputs, inputs)
    if isinstance(source, BlockMask):
        source = _unblocked(source)
    if isinstance(source, np.ndarray):
        source = torch.from_numpy(source.copy())  # torch takes none that is flipped
    if isinstance(source, Tensor):
        visible = _visible(source)
        batch, heads, n, m = visible.shape
        readers = _named("rows", n, n if tokens is None else tokens)
        columns = _named("columns", m, keys if keys is not None else readers if n == m else m)

        def look_up(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            table = visible.to(q_idx.device)
            return table[b * int(batch > 1), h * int(heads > 1), q_idx, kv_idx]

        return Mask(look_up, readers, columns, batch=batch, heads=heads)
    if isinstance(source, Mask):
        if tokens is None and keys is None:
            return source
        square = len(source.readers) == len(source.keys)
        if keys is None:
            keys = tokens if tokens is not None and square else source.keys
        return Mask(
            source.mask_mod,
            _named("rows", len(source.readers), source.readers if tokens is None else tokens),
            _named("columns", len(source.keys), keys),
            batch=source.batch,
            heads=source.heads,
            device=source.device,
        )
    if not isinstance(source, Visibility) and not callable(source):
        raise TypeError(
            f"as_mask: got {type(source).__name__}, wanted a Visibility, a tensor, or a function "
            "(b, h, q_idx, kv_idx) → bool; torch.tensor(rows) makes a tensor of lists"
        )
    if tokens is None:
        raise ValueError(
            f"as_mask: a {type(source).__name__} does not say how many tokens there are; give "
            "them, as in {'audio': 16, 'video': (4, 4, 4), 'fusion': 4}"
        )
    readers = Tokens.of(tokens)
    columns = readers if keys is None else Tokens.of(keys)
    if isinstance(source, Visibility):
        source.pairs(readers.sizes, columns.sizes)  # refuses other groups
        reads = {name: source.reads[name] for name in readers.grids}  # in the order of the tokens
        source = Visibility(reads, [*columns.grids]).mask_mod(readers.sizes, columns.sizes)
    return Mask(source, readers, columns)


def _unblocked(source: BlockMask) -> Mask:
    """The pairs that are True in the blocks that a BlockMask lists."""
    (n, m), (rows, columns) = source.seq_lengths, source.BLOCK_SIZE
    blocks = source.to_dense().bool()
    batch, heads = blocks.shape[:2]

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        listed = blocks[b, h, q_idx // rows, kv_idx // columns]
        return listed & source.mask_mod(b, h, q_idx, kv_idx)

    return Mask(mask_mod, n, m, batch=batch, heads=heads, device=blocks.device)


def _named(side: str, count: int, tokens: Layout) -> Tokens:
    named = Tokens.of(tokens)
    if len(named) != count:
        raise ValueError(
            f"as_mask: the mask has {count} {side}, and {named} are {len(named)}; the names must "
            "add up to all tokens"
        )
    return named


def _visible(mask: Tensor) -> Bool[Tensor, "b h i j"]:
    shape = tuple(mask.shape)
    if not 2 <= mask.ndim <= 4 or 0 in shape:
        raise ValueError(
            f"as_mask: got a tensor of shape {shape}, wanted (n, m), (heads, n, m) or (batch, "
            "heads, n, m); padding of shape (batch, m) is gallery.padding(real)"
        )
    mask = mask.detach().cpu()
    if mask.is_floating_point():
        broken = mask.isnan() | mask.isposinf()
        if broken.any():
            where = broken.nonzero()[0].tolist()
            raise ValueError(
                f"as_mask: the mask is {mask[tuple(where)]:.0f} at {where}; added to scores that "
                "makes NaN, wanted 0 and -inf, or booleans"
            )
        if mask.max() > 0 and ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                "as_mask: the mask holds zeros and ones as floating-point numbers. Added to scores "
                "they hide nothing; for True and False use mask.bool()"
            )
        mask = mask > HIDDEN_SCORE
    if mask.dtype != torch.bool:
        raise ValueError(
            f"as_mask: got {mask.dtype}, wanted booleans (mask.bool() makes them, True where i "
            "may read j) or floating-point numbers to add to the scores"
        )
    return mask.reshape(*[1] * (4 - mask.ndim), *shape).clone()  # the source may change


# For terminals


def text_grid(mask: Mask, *, batch: int = 0, head: int = 0, width: int = 32) -> str:
    """A mask in letters: a row reads the columns that show their group's letter.

    More tokens than `width` are put together; then a small letter says that some pairs of a block
    are read, and a capital that all are.
    """
    check_counts("text_grid", width=width)
    visible = mask.dense(batch=batch, head=head)
    size = -(-max(visible.shape) // width)
    rows, columns = (_pieces(tokens, size) for tokens in (mask.readers, mask.keys))
    labels = [f"{letter} {number}" for letter, number, _ in rows]
    indent = max(map(len, labels)) + 2
    lines = [" " * indent + " ".join(letter for letter, _, _ in columns)]
    for label, (_, _, i) in zip(labels, rows, strict=True):
        cells = []
        for letter, _, j in columns:
            part = visible[i, j]
            cells.append(letter if part.all() else letter.lower() if part.any() else "·")
        lines.append(label.ljust(indent) + " ".join(cells))
    if size > 1:
        lines.append(f"A letter is up to {size} × {size} tokens: capital all read, small some.")
    return "\n".join(lines)


def _pieces(tokens: Tokens, size: int) -> list[tuple[str, int, slice]]:
    """Each group in pieces of so many tokens: its letter, the first token's number, the piece."""
    return [
        (tokens.letters[name], start - span.start, slice(start, min(start + size, span.stop)))
        for name, span in tokens.spans.items()
        for start in range(span.start, span.stop, size)
    ]
