"""One colour for each group everywhere, and a letter with it: no picture needs colour alone."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {"audio": "#E69F00", "video": "#0072B2", "fusion": "#009E73", "global": "#CC79A7"}
OTHER, BROWN, HIDDEN, FOCUS, INK = "#56B4E9", "#8F5A00", "#F2F2F2", "#D55E00", "#333333"


def colour(group: str) -> str:
    """The colour of a group of tokens; groups beyond the known ones share one."""
    return COLOURS.get(group, OTHER)


def colours(groups: Sequence[str]) -> dict[str, str]:
    """A colour for each group: those beyond the known ones take turns at some more."""
    more = cycle([OTHER, BROWN, "#777777", "#F0E442"])
    return {group: COLOURS.get(group) or next(more) for group in groups}


def canvas(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax` itself, or the Axes of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


def ink_on(face: str | tuple[float, float, float]) -> str:
    """White or dark, whichever reads better on a colour (WCAG's relative luminance)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(face)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.3 else "white"


def bare(ax: Axes) -> None:
    """No ticks and no frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights for labels, moved up where they would lie on each other."""
    moved: dict[str, float] = {}
    lowest = -gap
    for name in sorted(heights, key=lambda name: heights[name]):
        moved[name] = lowest = max(heights[name], lowest + gap)
    return moved
