"""Clips of `avlib.bounce` as their codes, and the order in which a twin decoder writes them."""

from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from avlib import bounce
from avlib.plots.style import COLOURS, FOCUS, HIDDEN, INK, bare, canvas, ink_on
from avlib.world import COLOURS as RGB

_FACES = dict(enumerate(RGB, 1))  # code → what is drawn


def codes(
    video: Int[Tensor, "t y x"],
    audio: Int[Tensor, "t 1"],
    *,
    title: str = "",
    right: Bool[Tensor, " t"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The frames of a clip side by side, and below each its sound.

    Codes are colours with letters; a sound is a note with the letter of its colour.

    Args:
        video, audio: codes.
        title: above the picture.
        right: frames that are wrong are framed.
        ax: where to draw; by default a new figure.
    """
    frames, size = len(video), video.shape[1]
    step = size + 1
    ax = canvas(ax, 1.15 * frames, 1.9)
    for t, (picture, sound) in enumerate(zip(video.tolist(), audio[:, 0].tolist(), strict=True)):
        left = t * step
        ax.add_patch(Rectangle((left, 0), size, size, fc=HIDDEN, ec=INK, lw=0.8))
        for y, line in enumerate(picture):
            for x, code in enumerate(line):
                if code:
                    face = _FACES[code]
                    ax.add_patch(Rectangle((left + x, y), 1, 1, fc=face, ec="white", lw=0.8))
                    letter, centre = bounce.COLOURS[code - 1][0].upper(), (left + x + 0.5, y + 0.55)
                    colour = ink_on(face)
                    ax.text(*centre, letter, ha="center", va="center", fontsize=7, color=colour)
        if right is not None and not right[t]:
            corner, side = (left - 0.2, -0.2), size + 0.4
            ax.add_patch(Rectangle(corner, side, side, fill=False, ec=FOCUS, lw=3))
        note = f"♪ {bounce.COLOURS[sound - 1]}" if sound else "–"
        ax.text(left + size / 2, size + 0.8, note, ha="center", va="center", fontsize=9)
    bare(ax)
    ax.set(xlim=(-0.4, frames * step - 0.6), ylim=(size + 1.5, -0.4), aspect="equal", title=title)
    return ax


def writing_order(frames: int = 2, film: int = 4) -> Axes:
    """The tokens of some frames in the order in which they are written, each with its number."""
    ax = canvas(None, 11, 2.3)
    x, number = 0.0, 0
    for frame in range(frames):
        begin = x
        for group, count in (("video", film), ("audio", 1)):
            face = COLOURS[group]
            for place in range(count + 1):
                start = place == 0
                fill, line = ("white", "--") if start else (face, "-")
                ax.add_patch(Rectangle((x, 0), 0.9, 0.9, fc=fill, ec=face, lw=2, ls=line))
                letter = "start" if start else f"{group[0].upper()} {place - 1}"
                ink = INK if start else ink_on(face)
                size = 8 if start else 10
                ax.text(x + 0.45, 0.45, letter, ha="center", va="center", color=ink, fontsize=size)
                if not start:
                    number += 1
                    ax.text(x + 0.45, -0.3, str(number), ha="center", va="center")
                if place < count:  # what is predicted here
                    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1}
                    arrow["connectionstyle"] = "arc3,rad=-0.5"
                    ax.annotate("", (x + 1.3, 0.95), (x + 0.45, 0.95), arrowprops=arrow)
                x += 1
            x += 0.15
        middle = (begin + x - 0.25) / 2
        ax.text(middle, 1.75, f"frame {frame}", ha="center", weight="bold")
        x += 0.35
    bare(ax)
    ax.set(xlim=(-0.2, x), ylim=(-0.6, 2.1), aspect="equal")
    return ax
