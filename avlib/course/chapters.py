"""Which notebook has which exercises, and a picture of those that are solved."""

from importlib import import_module

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from avlib.course.exercise import Exercise
from avlib.course.progress import solved
from avlib.plots import COLOURS, HIDDEN, INK, bare, canvas

# Notebook → the module of its exercises.
CHAPTERS = {
    "00 start here": "start_here",
    "01 patchify": "patchify",
    "02 zorro mask": "zorro_mask",
    "03 reversible": "reversible",
    "04 memory": "memory",
    "05 mask gallery": "mask_gallery",
    "06 training": "training",
    "07 fusion": "fusion",
    "08 twin decoder": "twin_decoder",
}


def exercises_of(chapter: str) -> list[Exercise]:
    """The exercises of a chapter, in order."""
    found = vars(import_module(f"avlib.course.{chapter}")).values()
    return [value for value in found if isinstance(value, Exercise)]


def draw_progress(*, ax: Axes | None = None) -> Axes:
    """A row for each notebook, a square for each exercise: ✓ solved, ~ tried, empty otherwise.

    Args:
        ax: where to draw; by default a new figure.
    """
    done = solved()
    rows = {
        notebook: [f"{chapter}.{exercise.name}" for exercise in exercises_of(chapter)]
        for notebook, chapter in CHAPTERS.items()
    }
    longest = max(map(len, rows.values()))
    ax = canvas(ax, 2.2 + 0.45 * longest, 0.42 * len(rows) + 0.4)
    for row, (notebook, names) in enumerate(rows.items()):
        ax.text(-0.2, row, notebook, ha="right", va="center", color=INK)
        for column, name in enumerate(names):
            right = done.get(name)
            face, mark = (COLOURS["fusion"], "✓") if right else (HIDDEN, "~" * (right is False))
            ax.add_patch(Rectangle((column, row - 0.4), 0.8, 0.8, fc=face, ec=INK, lw=0.6))
            ink = "white" if right else INK
            ax.text(column + 0.4, row, mark, ha="center", va="center", color=ink, weight="bold")
    every = [name for names in rows.values() for name in names]
    ax.set_title(f"{sum(done.get(name) is True for name in every)} of {len(every)} solved")
    ax.set(xlim=(0, longest), ylim=(len(rows) - 0.5, -0.5))
    bare(ax)
    return ax
