"""For tests of pictures: matplotlib without a screen, figures closed again, the words in one."""

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes

mpl.use("agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Imported into a module, it closes what each of its tests left open."""
    yield
    plt.close("all")


def words(ax: Axes) -> list[str]:
    """All that is written in it, but for its title and ticks."""
    return [text.get_text() for text in ax.texts]
