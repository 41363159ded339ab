"""Notebook 00: the exercises, and the map of the course."""

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from avlib.course.exercise import Exercise, Mistake
from avlib.plots import BROWN, COLOURS, INK, canvas


def _count_by_hand(height: int, width: int, patch: int) -> int:
    return sum(1 for _ in range(0, height, patch) for _ in range(0, width, patch))


count_patches = Exercise(
    chapter="start_here",
    name="count_patches",
    minutes=2,
    difficulty=1,
    hints=(
        "How many patches fit side by side in one row? How many such rows are there?",
        "A row holds width // patch patches, and there are height // patch rows.",
    ),
    cases=[(4, 4, 2), (64, 64, 8), (6, 8, 2), (128, 64, 16)],
    reference=_count_by_hand,
    mistakes={
        "adds": Mistake(
            lambda height, width, patch: height // patch + width // patch,
            "it adds rows and columns. Each row holds a full set of columns: multiply.",
        ),
        "pixels": Mistake(
            lambda height, width, patch: height * width // patch,
            "it divides the pixels by patch. A patch holds patch · patch pixels.",
        ),
        "one axis": Mistake(
            lambda height, width, patch: (height // patch) ** 2,
            "it uses the height twice. A picture may be wider than it is high.",
        ),
        "overlapping": Mistake(
            lambda height, width, patch: (height - patch + 1) * (width - patch + 1),
            "it moves a patch on by one pixel. Patches lie side by side and do not overlap.",
        ),
        "one row": Mistake(
            lambda height, width, patch: width // patch,
            "it counts the patches of one row alone.",
        ),
    },
)

NOTEBOOKS = {
    # number: (title, tracks it belongs to, place on the map)
    "01": ("patchify", "both", (1, 0.5)),
    "02": ("zorro mask", "masks", (2, 1)),
    "05": ("mask gallery", "masks", (3, 1)),
    "06": ("training", "masks", (4, 1)),
    "07": ("fusion", "masks", (5, 1)),
    "03": ("reversible", "memory", (2, 0)),
    "04": ("memory", "memory", (3, 0)),
    "08": ("twin decoder", "memory", (4, 0)),
}
TRACKS = {"masks": ["01", "02", "05", "06", "07"], "memory": ["01", "03", "04", "08"]}


def draw_map(ax: Axes | None = None) -> Axes:
    """The two tracks."""
    ax = canvas(ax, 10, 2.6)
    fills = {"both": COLOURS["fusion"], "masks": COLOURS["video"], "memory": BROWN}
    for stops in TRACKS.values():
        for a, b in pairwise(stops):
            (x1, y1), (x2, y2) = NOTEBOOKS[a][2], NOTEBOOKS[b][2]
            ax.annotate(
                "", (x2 - 0.42, y2), (x1 + 0.42, y1), arrowprops={"arrowstyle": "-|>", "color": INK}
            )
    for number, (title, track, (x, y)) in NOTEBOOKS.items():
        corner, size = (x - 0.38, y - 0.2), (0.76, 0.4)
        look = "round,pad=0.02"
        ax.add_patch(FancyBboxPatch(corner, *size, boxstyle=look, fc=fills[track], ec=INK, lw=0.8))
        ax.text(x, y, f"{number} {title}", ha="center", va="center", color="white", fontsize=10)
    ax.text(0.05, 1, "masks: who may read whom", va="center", color=fills["masks"], weight="bold")
    ax.text(0.05, 0, "memory: run it backwards", va="center", color=fills["memory"], weight="bold")
    ax.set(xlim=(0, 5.5), ylim=(-0.35, 1.35), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax
