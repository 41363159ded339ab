"""Pictures of memory, and sliders: what must not be lost on the way to the eye."""

import html
import io
import itertools
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from drawn import closed, words  # noqa: F401
from PIL import Image

from avlib import explore, plots, widgets
from avlib.memory import KINDS, MemoryUse
from avlib.widgets import KEPT, LivePicture, PictureSliders


def use(peak):
    """Three moments, activations in the second."""
    timeline = {kind: torch.zeros(3, dtype=torch.int64) for kind in KINDS}
    timeline["parameters"] += peak // 4
    timeline["activations"][1] = peak - peak // 4
    return MemoryUse(timeline, ("before", "forward", "backward"), ("", "mm", "mm"))


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
    first = sliders.images[0].value
    sliders.sliders[1].value = 8
    sliders.sliders[1].value = 16
    assert sliders.images[0].value == first
    assert drawn == [(1, 16), (2, 16), (2, 8)]  # what was drawn once is kept
    assert sliders._repr_mimebundle_()["text/plain"] == (
        "layers = 2, width = 16. 2 layers of width 16."
    )


def png(shade, size=(30, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, shade).save(buffer, "PNG")
    return buffer.getvalue()


def shown(widget):
    return html.unescape(re.sub("<.*?>", "", widget.value))


def test_several_pictures_lie_below_each_other_and_a_note_below_them():
    pictures = {0: [png("red"), png("blue")], 1: [png("red"), png("green")]}
    sliders = PictureSliders({"x": [0, 1]}, lambda x: (pictures[x], f"At {x}.", f"Note {x}."))
    assert [image.value for image in sliders.images] == pictures[0]
    sliders.sliders[0].value = 1
    assert [image.value for image in sliders.images] == pictures[1]
    assert shown(sliders.note) == "Note 1."
    assert sliders.children[-4:] == (sliders.sentence, *sliders.images, sliders.note)
    assert "aria-live" in sliders.sentence.value
    assert "aria-live" not in sliders.note.value
    data = sliders._repr_mimebundle_()
    assert data["text/plain"] == "x = 1. At 1. Note 1."
    page = Image.open(io.BytesIO(data["image/png"])).convert("RGB")
    assert [page.getpixel((5, y)) for y in (5, 25)] == [(255, 0, 0), (0, 128, 0)]


def test_what_is_said_cannot_become_a_part_of_the_page():
    name = "<img src=x onerror=alert(1)> & <b>"
    sliders = PictureSliders({"x": [0, 1]}, lambda x: (png("red"), f"At {name}.", f"Note {name}."))
    for widget, text in ((sliders.sentence, f"At {name}."), (sliders.note, f"Note {name}.")):
        assert "<img" not in widget.value
        assert shown(widget) == text
    assert name in sliders._repr_mimebundle_()["text/plain"]
    assert name in shown(explore(torch.ones(2, 2).bool(), {name: 2}).sentence)


def test_only_so_many_settings_are_kept():
    drawn = []

    def draw(x):
        drawn.append(x)
        return png("red"), f"At {x}."

    sliders = PictureSliders({"x": range(2 * KEPT)}, draw)
    for x in (*range(1, KEPT), 0, *range(KEPT, 2 * KEPT), 0):
        sliders.sliders[0].value = x
    assert drawn == [*range(2 * KEPT), 0]  # kept at first, forgotten in the end


def test_three_dots_are_shown_only_before_what_may_be_slow(monkeypatch):
    sliders = PictureSliders({"x": [0, 1, 2]}, lambda x: (png("red"), f"At {x}."))
    said = []
    sliders.sentence.observe(lambda change: said.append(shown(sliders.sentence)), "value")
    monkeypatch.setattr(widgets, "SLOW", 0.0)
    sliders.sliders[0].value = 1
    monkeypatch.setattr(widgets, "SLOW", 100.0)
    sliders.sliders[0].value = 2
    monkeypatch.setattr(widgets, "SLOW", 0.0)
    sliders.sliders[0].value = 1  # drawn before
    assert said == ["…", "At 1.", "At 2.", "At 1."]


def test_what_could_not_be_drawn_is_told():
    sliders = PictureSliders({"x": [1, 0]}, lambda x: (png("red"), f"At {1 // x}."))
    with pytest.raises(ZeroDivisionError, match="by zero"):
        sliders.sliders[0].value = 0
    assert re.fullmatch("Not drawn: .* by zero", shown(sliders.sentence))
    sliders.sliders[0].value = 1
    assert shown(sliders.sentence) == "At 1."


def test_one_slider_has_a_button_to_let_it_run():
    sliders = PictureSliders(
        {"x": range(3, 9), "y": range(2)}, lambda x, y: (png("red"), f"{x} {y}"), {"x": 4}, play="x"
    )
    (row, alone, *_) = sliders.children
    slider, button = row.children
    assert (slider, alone) == tuple(sliders.sliders)
    assert (button.min, button.max, button.value) == (3, 8, 4)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"z": 1}, r"start names 'z', the sliders are \['x', 'y'\]; leave it out or correct"),
        ({"x": 7}, r"PictureSliders: x starts at 7; choose from range\(0, 3\)"),
        ({"y": "c"}, r"y starts at 'c'; choose from \['a', 'b'\]"),
    ],
)
def test_a_start_beside_the_sliders_is_refused(start, message):
    with pytest.raises(ValueError, match=message):
        PictureSliders({"x": range(3), "y": ["a", "b"]}, lambda x, y: (png("red"), ""), start)


def test_a_live_picture_is_exchanged_with_its_sentence():
    picture = LivePicture(plt.figure(), "before")
    first = picture._image.value
    figure = plt.figure()
    figure.text(0.5, 0.5, "other")
    picture.show(figure, "after <b>")
    assert picture._image.value != first
    assert "after &lt;b&gt;" in picture._sentence.value
    bundle = picture._repr_mimebundle_()
    assert bundle["text/plain"] == "after <b>"
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert not plt.get_fignums()  # nothing is left open
