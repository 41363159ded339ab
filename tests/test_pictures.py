"""Pictures of memory, and sliders: what must not be lost on the way to the eye."""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

from avlib import plots
from avlib.memory import KINDS, MemoryUse
from avlib.widgets import PictureSliders

mpl.use("agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def use(peak):
    """Three moments, activations in the second."""
    timeline = {kind: torch.zeros(3, dtype=torch.int64) for kind in KINDS}
    timeline["parameters"] += peak // 4
    timeline["activations"][1] = peak - peak // 4
    return MemoryUse(timeline, ("before", "forward", "backward"), ("", "mm", "mm"))


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_the_timeline_names_its_peak():
    assert any("peak 8 GB" in text for text in words(plots.timeline(use(8 * plots.GB))))


def test_no_curve_is_dropped():
    curves = {f"way {i}": {2: 10 * i + 10, 4: 20 * i + 10} for i in range(7)}
    ax = plots.peaks(curves)
    assert words(ax) == list(curves)
    assert len(ax.lines) == 7


def test_a_curve_that_runs_out_ends_in_a_cross():
    ax = plots.peaks({"ordinary": {8: None, 4: 200, 2: 100}, "reversible": {2: 50, 4: 50, 8: 50}})
    assert words(ax) == ["ordinary (then out of memory)", "reversible"]
    drawn, dotted, cross = ax.lines[:3]
    assert list(drawn.get_xdata()) == [2, 4]
    assert list(dotted.get_xdata()) == [4, 8]
    assert list(cross.get_xdata()) == [8]


def test_a_curve_without_bytes_is_an_error():
    with pytest.raises(ValueError, match="a curve has no bytes at any depth; leave it out"):
        plots.peaks({"ordinary": {8: None}})


def test_the_budget_shows_the_cards_that_matter():
    ax = plots.budget({"ordinary": use(20 * plots.GB), "reversible": use(2 * plots.GB)})
    assert words(ax) == ["20.00 GB", "2.00 GB", "8 GB", "16 GB", "24 GB"]


def test_an_accuracy_that_cannot_be_is_framed():
    accuracy, best = torch.tensor([[1.0, 0.9], [torch.nan, 0.51]]), torch.tensor([[1.0, 0.5]] * 2)
    chance = torch.tensor([0.25, 0.5])
    ax = plots.accuracies(accuracy, ("audio", "video"), ("pitch", "xor"), best, chance)
    assert words(ax) == ["1.00", "–", "0.90 LEAK", "0.51"]
    full, nothing, _, grey = (ax.patches[i].get_facecolor()[:3] for i in range(4))
    assert full == pytest.approx(mpl.colors.to_rgb(plots.colour("audio")), abs=0.01)
    assert nothing == pytest.approx(mpl.colors.to_rgb(plots.HIDDEN), abs=0.01)
    assert grey == pytest.approx(mpl.colors.to_rgb(plots.HIDDEN), abs=0.01)


def test_each_line_is_named_at_its_end_and_no_two_names_overlap():
    lines = {name: torch.linspace(4, 1, 50) for name in ("audio", "video", "other")}
    ax = plots.curves(lines, floors={"floor": 0.5}, every=10)
    assert sorted(words(ax)) == ["audio", "floor 0.50", "other", "video"]
    heights = sorted(text.get_position()[1] for text in ax.texts)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.3
    assert list(ax.lines[0].get_xdata()[[0, -1]]) == [10, 500]
    assert ax.lines[0].get_color() == plots.colour("audio")


def test_each_slider_draws_anew_and_says_so():
    drawn = []

    def draw(layers, width):
        drawn.append((layers, width))
        return plt.figure(), f"{layers} layers of width {width}."

    sliders = PictureSliders({"layers": [1, 2], "width": [8, 16]}, draw, start={"width": 16})
    sliders.sliders[0].value = 2
    assert "2 layers of width 16." in sliders.sentence.value
    first = sliders.image.value
    sliders.sliders[1].value = 8
    sliders.sliders[1].value = 16
    assert sliders.image.value == first
    assert drawn == [(1, 16), (2, 16), (2, 8)]  # what was drawn once is kept
    assert sliders._repr_mimebundle_()["text/plain"] == (
        "layers = 2, width = 16. 2 layers of width 16."
    )
