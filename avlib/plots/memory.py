"""Where the memory of a step goes: over its time, over depth, and beside what cards have."""

from collections.abc import Mapping, Sequence
from itertools import cycle, groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from avlib.memory import KINDS, MemoryUse, readable
from avlib.plots.style import BROWN, FOCUS, INK, apart, canvas

# What comes with the weights is grey, what comes with the data is not.
KIND_COLOURS = dict(
    zip(
        KINDS,
        ("#5A5A5A", "#8C8C8C", "#C4C4C4", "#56B4E9", FOCUS, "#F0E442", "#FFFFFF"),
        strict=True,
    )
)
KIND_HATCHES = dict(zip(KINDS, ("", "//", "..", "\\\\", "", "xx", "--"), strict=True))
CARDS = (8, 16, 24, 80, 141)  # GB of memory on GPUs that are sold; a GB is 10⁹ bytes
GB = 10**9
_STYLES = [("s", FOCUS), ("^", BROWN), ("o", "#009E73"), ("D", "#0072B2"), ("v", INK)]


def timeline(
    use: MemoryUse, *, title: str = "", most: int | None = None, ax: Axes | None = None
) -> Axes:
    """The bytes of a step over its operations, kinds stacked, with its phases and its peak.

    Args:
        use: what was measured or predicted.
        title: above the picture.
        most: bytes at the top of the picture, to compare several.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 8, 3.2)
    unit, size = readable(use.peak if most is None else most)
    shown = [kind for kind in KINDS if use.timeline[kind].any()]
    _stack(ax, shown, [np.asarray(use.timeline[kind]) / size for kind in shown])
    top = (use.peak if most is None else most) / size * 1.22
    start, inches = 0, ax.bbox.width / ax.figure.dpi
    for phase, run in groupby(use.phases):
        length = len(list(run))
        if start > 1:
            ax.axvline(start - 0.5, color=INK, lw=1, ls=":")
        room = inches * length / len(use.phases)
        if phase != "before" and room > 0.1 * len(phase):
            middle = start + length / 2
            ax.text(middle, top * 0.99, phase, ha="center", va="top", color=INK, weight="bold")
        start += length
    moment = use.moment
    ax.plot(moment, use.peak / size, "v", color=INK, ms=7, clip_on=False)
    left = moment > len(use.phases) * 0.6
    ax.annotate(
        f"peak {use.peak / size:.3g} {unit}",
        (moment, use.peak / size * 1.02),
        xytext=(-8 if left else 8, 2),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom",
        # A line between two phases would cross it.
        bbox={"facecolor": "white", "pad": 1, "lw": 0},
    )
    ax.set(xlim=(0, len(use.phases) - 1), ylim=(0, top), title=title)
    ax.set(xlabel="operations, one after another", ylabel=unit, xticks=[])
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def legend(ax: Axes, kinds: Sequence[str] = KINDS[:-1]) -> Axes:
    """The colours and hatches of the kinds, as they are stacked, beside a picture."""
    patches = [
        ax.fill_between(
            [], [], [], facecolor=KIND_COLOURS[k], hatch=KIND_HATCHES[k], ec=INK, label=k
        )
        for k in reversed(kinds)
    ]
    ax.legend(
        handles=patches,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        handleheight=1.6,
    )
    return ax


def peaks(
    curves: Mapping[str, Mapping[int, int | None]], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """The largest number of bytes against depth, one line for each way, named at its end.

    Args:
        curves: name → depth → bytes; None where memory ran out, which is marked by a cross.
        title: above the picture.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 7, 3.6)
    curves = {name: dict(sorted(curve.items())) for name, curve in curves.items()}
    found = [value for curve in curves.values() for value in curve.values() if value is not None]
    if any(set(curve.values()) <= {None} for curve in curves.values()) or not curves:
        raise ValueError("peaks: a curve has no bytes at any depth; leave it out")
    unit, size = readable(max(found))
    deepest = max(depth for curve in curves.values() for depth in curve)
    ends = {name: max(v for v in curve.values() if v is not None) for name, curve in curves.items()}
    heights = apart({name: end / size for name, end in ends.items()}, 0.1 * max(found) / size)
    for (name, curve), (marker, shade) in zip(curves.items(), cycle(_STYLES), strict=False):
        there = {depth: value / size for depth, value in curve.items() if value is not None}
        ax.plot(list(there), list(there.values()), marker, color=shade, ls="-", ms=6)
        last = max(there)
        gone = [depth for depth in curve if depth > last]
        if gone:
            ax.plot([last, gone[0]], [there[last]] * 2, ls=":", color=shade)
            ax.plot(gone[0], there[last], "x", color=shade, ms=10, mew=3)
        note = " (then out of memory)" if gone else ""
        ax.text(
            max([last, *gone[:1]]) + deepest * 0.03,
            heights[name],
            name + note,
            color=shade,
            va="center",
        )
    ax.set(xlabel="layers", ylabel=f"{unit} at the peak", title=title)
    ax.set(xlim=(0, deepest * 1.35), ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def budget(uses: Mapping[str, MemoryUse], *, title: str = "", ax: Axes | None = None) -> Axes:
    """The peak of each step, its kinds side by side, and the memory of cards that are sold.

    Args:
        uses: name of a way → what it needs.
        title: above the picture.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 9, 0.62 * len(uses) + 1.4)
    most = max(use.peak for use in uses.values()) / GB
    right = max(most * 1.3, CARDS[0] * 1.15)
    for row, use in enumerate(uses.values()):
        start = 0.0
        for kind, count in use.at_peak.items():
            width = count / GB
            face, hatch = KIND_COLOURS[kind], KIND_HATCHES[kind]
            ax.barh(row, width, 0.62, start, facecolor=face, hatch=hatch, ec=INK, lw=0.5)
            start += width
        text = ax.text(start + right * 0.008, row, f"{start:.2f} GB", va="center", weight="bold")
        text.set_bbox({"facecolor": "white", "pad": 1, "lw": 0})
    edge = -1.0
    for card in (card for card in CARDS if card < right):
        ax.axvline(card, color=INK, lw=1.5, ls="--")
        if card - edge > right * 0.05:  # else its label would cover the last one's
            ax.text(card, -0.62, f"{card} GB", ha="center", va="bottom", color=INK)
            edge = card
    ax.set(xlim=(0, right), ylim=(len(uses) - 0.5, -0.55), xlabel="GB at the peak")
    ax.set_yticks(range(len(uses)), list(uses))
    ax.set_title(title, pad=20)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax


def _stack(ax: Axes, kinds: Sequence[str], values: Sequence[np.ndarray]) -> None:
    """The kinds on top of each other, each a step for each operation."""
    below = np.zeros_like(values[0])
    x = np.arange(len(below))
    for kind, value in zip(kinds, values, strict=True):
        area = ax.fill_between(
            x, below, below + value, step="mid", facecolor=KIND_COLOURS[kind], lw=0
        )
        area.set_hatch(KIND_HATCHES[kind])
        area.set_edgecolor(INK)
        below = below + value
