"""A reversible block as wires."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from avlib.plots.style import FOCUS, INK, bare, canvas, colour


def couplings(
    steps: Sequence[tuple[str, Sequence[str], str]],
    streams: Mapping[str, str],
    *,
    current: int | None = None,
    sign: str = "+",
    values: Mapping[str, object] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A block as wires from left to right: dots are read, ⊕ is added to.

    Args:
        steps: (target, reads, name of the function) for each coupling, in order.
        streams: stream → the group whose colour it has, top to bottom.
        current: draw this step in orange-red and those after it faded; by default all alike.
        sign: what stands in the circles on the targets.
        values: what to write at the right end of each wire.
        title: above the picture.
        ax: where to draw; by default a new figure.
    """
    ax = canvas(ax, 1.1 * len(steps) + 1.6, 0.75 * len(streams) + 0.5)
    height = {name: -row for row, name in enumerate(streams)}
    right = len(steps) + 0.1
    for name, group in streams.items():
        y = height[name]
        ax.plot([-0.35, right], [y, y], color=colour(group), lw=3, zorder=1)
        ax.text(-0.45, y, name, ha="right", va="center", color=INK, weight="bold")
        if values is not None:
            ax.text(
                right + 0.1, y, str(values[name]), va="center", weight="bold", family="monospace"
            )
    for i, (target, reads, name) in enumerate(steps):
        alpha = 0.2 if current is not None and i > current else 1.0
        edge = FOCUS if i == current else INK
        x, top = i + 0.1, height[target]
        box = top - 0.5
        for read in reads:
            ax.plot([x, x], [height[read], box], color=edge, lw=1.5, alpha=alpha, zorder=2)
            ax.plot(x, height[read], "o", color=colour(streams[read]), mec=edge, ms=8, alpha=alpha)
        plus = x + 0.4
        ax.plot([x, plus, plus], [box, box, top], color=edge, lw=1.5, alpha=alpha, zorder=2)
        ax.plot(plus, top, "o", color="white", mec=edge, mew=1.5, ms=15, alpha=alpha, zorder=4)
        ax.text(
            plus, top, sign, ha="center", va="center_baseline", color=INK, alpha=alpha, zorder=5
        )
        # Faded by its colours: a wire would show through a transparent box.
        face = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": (edge, alpha), "lw": 1.5}
        ax.text(x + 0.13, box, name, ha="center", va="center", color=INK, bbox=face, zorder=3)
    bare(ax)
    ax.set(xlim=(-0.9, right + (0.7 if values is not None else 0.1)))
    ax.set(ylim=(-len(streams) + 0.3, 0.45), title=title)
    return ax
