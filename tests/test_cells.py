"""Pictures of masks show the masks: every cell at any size, and what a token reads in its place."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from drawn import closed, words  # noqa: F401
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from avlib import Influence, Visibility, as_mask, draw, gallery, zorro_readout, zorro_trunk
from avlib.named_tokens import Tokens
from avlib.plots import FOCUS, HIDDEN, colour
from avlib.plots.cells import GUTTER, Cells, cells_axes
from avlib.plots.live import Live, pixel_axes, pixel_figure
from avlib.plots.places import BETWEEN, Places
from avlib.plots.style import colours
from avlib.reach import Reach

LAYOUT = {"audio": (2, 3), "video": (2, 2, 2), "fusion": 3}
N = 17


def rgb(shade):
    return np.rint(255 * np.array(to_rgb(shade))).astype(np.uint8)


def is_coloured(picture, shade):
    return (picture == rgb(shade)).all(-1)


def picture_of(ax):
    return np.asarray(ax.images[0].get_array())


def cells_of(picture, n, m):
    """A pixel of every cell, off its middle and its edge, where lines may be."""
    height, width = picture.shape[:2]
    rows, columns = (
        ((np.arange(k) + 0.25) * s / k).astype(int) for k, s in ((n, height), (m, width))
    )
    return picture[rows][:, columns]


def expected(visible, tokens):
    """Each cell's colour: its column's where the mask is True."""
    shades = colours(tuple(tokens.grids))
    columns = np.concatenate([np.tile(rgb(shades[n]), (k, 1)) for n, k in tokens.sizes.items()])
    return np.where(visible[..., None], columns, rgb(HIDDEN))


def chance(n, m=None):
    return torch.rand(n, m or n) < 0.4


# draw


@pytest.mark.parametrize(
    "source",
    [
        lambda: zorro_trunk("audio", "video"),
        lambda: gallery.sliding_window(LAYOUT, 2),
        lambda: chance(N),
        lambda: torch.zeros(N, N).masked_fill(~chance(N), -torch.inf),
        lambda: lambda b, h, q_idx, kv_idx: (q_idx + kv_idx) % 3 == 0,
    ],
)
def test_a_cell_has_its_columns_colour_exactly_where_the_mask_is_true(source):
    mask = as_mask(source(), LAYOUT)
    drawn = cells_of(picture_of(draw(mask)), N, N)
    np.testing.assert_array_equal(drawn, expected(mask.dense().numpy(), mask.keys))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (70, 70), (200, 200), (300, 300), (1000, 1024)])
def test_every_cell_is_seen_up_to_1024_tokens(n, m):
    readers, keys = {"audio": n - 1, "fusion": 1}, {"audio": m - 1, "fusion": 1}
    visible = chance(n, m)
    drawn = cells_of(picture_of(draw(visible, readers, keys)), n, m)
    np.testing.assert_array_equal(drawn, expected(visible.numpy(), Tokens(keys)))


@pytest.mark.parametrize(("n", "m"), [(1500, 1500), (4096, 2000), (3, 4096)])
def test_of_tokens_that_share_a_pixel_the_strongest_is_seen_in_its_colour(n, m):
    keys = Tokens({"audio": m - 3, "fusion": 3})
    visible = torch.rand(n, m) < 0.1
    visible[:, m - 4] = False  # shares a pixel with fusion
    visible[n // 2] = True
    picture = picture_of(draw(visible, n, keys))
    seen = torch.zeros(picture.shape[:2], dtype=torch.bool)
    down, across = -(-n // 1024), -(-m // 1024)
    high = picture.shape[0] // -(-n // down)
    for name, span in keys.spans.items():
        i, j = visible[:, span].nonzero().T
        lit = torch.zeros(-(-n // down), picture.shape[1], dtype=torch.bool)
        lit[i // down, (j + span.start) // across] = True
        lit = lit.repeat_interleave(high, 0)
        wrong = torch.from_numpy(is_coloured(picture, colour(name))) & ~lit
        assert not wrong.any()
        seen |= lit
    assert torch.equal(torch.from_numpy(~is_coloured(picture, HIDDEN)), seen)
    assert is_coloured(picture, colour("fusion")).any()


def test_few_readers_of_many_keys_do_not_share_a_row():
    visible = torch.eye(4).bool().repeat_interleave(1000, 1)
    picture = picture_of(draw(visible, 4, 4000))
    for row, line in enumerate(cells_of(picture, 4, 1000)):
        assert np.flatnonzero(~is_coloured(line, HIDDEN)).tolist() == [
            *range(250 * row, 250 * row + 250)
        ]


def test_the_row_in_focus_keeps_its_colours_and_the_others_fade():
    mask = as_mask(zorro_trunk("audio", "video"), LAYOUT)
    picture = picture_of(draw(mask, row=15))[:, GUTTER:]
    drawn, full = cells_of(picture, N, N), expected(mask.dense().numpy(), mask.keys)
    np.testing.assert_array_equal(drawn[15], full[15])
    others = np.arange(N) != 15
    hidden = (full == rgb(HIDDEN)).all(-1)
    assert (drawn[others][hidden[others]] == rgb(HIDDEN)).all()
    faded = rgb(HIDDEN) + 0.4 * (full[others].astype(float) - rgb(HIDDEN))
    np.testing.assert_allclose(drawn[others], faded, atol=1)


@pytest.mark.parametrize("n", [8, 60, 200, 300, 900, 3000])
@pytest.mark.parametrize("row", ["first", "last of a group", "last"])
def test_the_row_in_focus_is_seen_and_pointed_at_at_any_size(n, row):
    row = {"first": 0, "last of a group": n // 2 - 1, "last": n - 1}[row]
    tokens = {"audio": n // 2, "video": n - n // 2}
    picture = picture_of(draw(gallery.full(tokens), row=row))
    scale = len(picture) / n
    full = is_coloured(picture[:, GUTTER:], colour("video"))
    (rows,) = full.any(1).nonzero()
    assert full[rows].mean() > 0.4
    assert rows.min() <= (row + 0.5) * scale <= rows.max() + 1
    assert len(rows) >= min(2, scale)
    assert np.ptp(rows) <= max(3, scale)
    (pointed,) = is_coloured(picture[:, :GUTTER], FOCUS).any(1).nonzero()
    assert abs(pointed.mean() - (row + 0.5) * scale) < 4


def test_rows_that_read_nothing_are_dashed():
    visible = torch.ones(N, N).bool()
    visible[[2, 16]] = False
    picture = picture_of(draw(visible, LAYOUT))
    height = len(picture) // N
    assert {*(is_coloured(picture, FOCUS).any(1).nonzero()[0] // height)} == {2, 16}
    assert is_coloured(picture, FOCUS).any(0).mean() == pytest.approx(0.5, abs=0.02)


def test_after_more_layers_what_came_later_is_paler():
    mask = gallery.sliding_window(12, 1)
    ax = draw(mask, layers=3)
    row = cells_of(picture_of(ax), 12, 12)[0]
    dark = 255 * 3 - row.astype(int).sum(-1)
    assert dark[0] == dark[1] > dark[2] > dark[3] > dark[4]
    assert is_coloured(row, HIDDEN).tolist() == (~Reach(mask.dense()).after(3)[0]).tolist()


def test_bands_names_and_legend_tell_the_groups_on_both_sides():
    ax = draw(
        zorro_readout("audio", "video"),
        dict.fromkeys(["audio", "video", "fusion", "global"], 1),
        LAYOUT,
    )
    bands = [patch.get_facecolor()[:3] for patch in ax.patches]
    names = ["audio", "video", "fusion", "audio", "video", "fusion", "global"]
    assert bands == [to_rgb(colour(name)) for name in names]
    across, down = (
        ["A audio", "V video", "F fusion"],
        ["A audio", "V video", "F fusion", "G global"],
    )
    assert words(ax) == [*across, *down]
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [*across, "hidden"]
    boxes = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    assert boxes == [*bands[:3], to_rgb(HIDDEN)]


def test_nothing_is_cut_off_and_any_name_will_do():
    names = {r"$\frac{$": 3, "_hidden": 2, "a long name for some tokens": 3, "<b>": 1}
    ax = draw(gallery.full(names), row=4)
    ax.figure.canvas.draw()
    page = ax.figure.bbox
    for artist in [*ax.texts, *ax.get_legend().get_texts()]:
        box = artist.get_window_extent()
        assert page.x0 <= box.x0 < box.x1 <= page.x1, artist
        assert page.y0 <= box.y0 < box.y1 <= page.y1, artist


@pytest.mark.parametrize("groups", [11, 40, 600])
def test_groups_beyond_the_palette_take_turns_at_its_colours(groups):
    tokens = Tokens({f"group {i}": 1 for i in range(groups)})
    mask = gallery.full(tokens)
    drawn = cells_of(picture_of(draw(mask)), groups, groups)
    np.testing.assert_array_equal(drawn, expected(mask.dense().numpy(), tokens))


def test_a_mask_is_drawn_on_the_axes_given_and_nowhere_else():
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(gallery.causal(5), ax=right, title="causal") is right
    assert (len(left.images), len(right.images)) == (0, 1)
    assert right.get_title() == "causal"
    assert plt.get_fignums() == [figure.number]


def test_batch_and_head_choose_the_mask():
    visible = torch.rand(2, 3, 6, 6) < 0.5
    drawn = cells_of(picture_of(draw(visible, batch=1, head=2)), 6, 6)
    assert (~is_coloured(drawn, HIDDEN)).tolist() == visible[1, 2].tolist()


def test_rules_alone_are_a_table_with_letters():
    ax = draw(zorro_trunk("audio", "video"), title="Zorro")
    assert words(ax) == ["A", "", "", "", "V", "", "A", "V", "F"]
    assert ax.get_title() == "Zorro"


def test_influence_is_a_table_with_its_leaks_framed():
    rules = Visibility({"audio": "audio", "video": "video"})
    gradient = torch.tensor([[2.0, 0.001], [0.0, 12.0]]).double()
    no = torch.zeros(2, 2).bool()
    ax = draw(Influence(("audio", "video"), ("audio", "video"), gradient, no, no, rules))
    assert words(ax) == ["2", "0.001", "0", "12", "LEAK"]
    assert ax.texts[4].get_position() == pytest.approx((1, 0.3))
    assert ax.patches[-1].get_edgecolor()[:3] == to_rgb(FOCUS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: draw(torch.ones(4097, 3).bool()),
            "draw: 4,097 × 3 tokens; up to 4,096 along a side are drawn. Give the same rules small",
        ),
        (lambda: draw(lambda b, h, i, j: j <= i, 10**5), "draw: 100,000 × 100,000 tokens; up to"),
        (
            lambda: draw(zorro_trunk("audio"), {"audio": 10**5, "fusion": 1}),
            r"draw: 100,001 × 100,001 tokens; .* draw the rules alone: draw\(visibility\)",
        ),
        (lambda: draw(gallery.causal(4), row=4), "got token 4, there are 4; count from 0 to 3"),
        (lambda: draw(gallery.causal(4), row=-1), "got token -1, there are 4; count from 0 to 3"),
        (lambda: draw(gallery.causal(4), head=1), "got head 1, there are 1; count from 0 to 0"),
        (lambda: draw(gallery.causal(4), layers=-1), "got -1 layers, wanted a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert plt.get_fignums() == []


# Live


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def drawn_by_matplotlib(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def box_of(ax, frame):
    left, bottom, right, top = np.rint(ax.bbox.extents).astype(int)
    return slice(len(frame) - top, len(frame) - bottom), slice(left, right)


def test_exchanged_pixels_give_what_matplotlib_draws():
    arrays = torch.randint(0, 256, (2, 40, 50, 3), dtype=torch.uint8).numpy()

    def axes(array):
        figure = pixel_figure(101, 83)
        ax = pixel_axes(figure, 31, 7, 50, 40)
        ax.imshow(array, extent=(0, 50, 40, 0), interpolation="nearest")
        ax.set(xlim=(0, 50), ylim=(40, 0))
        ax.axis("off")
        ax.text(-5, 20, "name", ha="right")
        return ax

    live = Live([axes(arrays[0])])
    for array in (arrays[1], arrays[0]):
        np.testing.assert_array_equal(decoded(live(array)), drawn_by_matplotlib(axes(array).figure))


def test_a_picture_of_few_colours_is_what_matplotlib_draws():
    tokens = Tokens(LAYOUT)
    cells = Cells(chance(N), tokens, tokens)
    live = Live([cells_axes(cells, row=0)], cells.palette)
    ax = cells_axes(cells, row=12)
    wanted, got = drawn_by_matplotlib(ax.figure), decoded(live(cells.raster(12)))
    box = box_of(ax, wanted)
    np.testing.assert_array_equal(got[box], cells.palette[cells.raster(12)])
    off = np.abs(got.astype(int) - wanted)
    assert off[box].max() <= 1
    assert off.max() < 40  # the words' edges have fewer greys


def test_only_boxes_and_title_change_from_picture_to_picture():
    tokens = Tokens(LAYOUT)
    cells = Cells(chance(N), tokens, tokens)
    ax = cells_axes(cells, row=0, title=" ")
    live = Live([ax], cells.palette, title=24)
    one, two = (decoded(live(cells.raster(row), title=f"query {row}")) for row in (3, 9))
    changed = (one != two).any(-1)
    assert changed[:24].any()
    assert changed[box_of(ax, one)].any()
    changed[:24] = False
    changed[box_of(ax, one)] = False
    assert not changed.any()
    assert plt.get_fignums() == []


@pytest.mark.parametrize("setting", ["figure.autolayout", "figure.constrained_layout.use"])
def test_layouts_that_someone_likes_move_no_pixel(setting):
    cells = Cells(chance(N), Tokens(LAYOUT), Tokens(LAYOUT))
    picture = lambda: Live([cells_axes(cells, row=0)], cells.palette)(cells.raster(1))  # noqa: E731
    before = picture()
    with plt.rc_context({setting: True}):
        assert picture() == before


# Places


def patches(places, rasters):
    """Group → the pixels of each of its tokens, as (tokens, side, side, 3), found from outside."""
    found = {}
    rasters = iter(rasters)
    for name, grid in places.keys.grids.items():
        frames, rows, columns = (1,) * (3 - len(grid)) + tuple(grid)
        squares = []
        while len(squares) < frames * rows * columns:
            strip = next(rasters)
            if len(grid) == 1:
                rows = -(-grid[0] // columns)
                while strip.shape[1] * rows != strip.shape[0] * columns:  # folded
                    columns -= 1
                    rows = -(-grid[0] // columns)
            side = len(strip) // rows
            if name == "audio":
                strip = strip.reshape(rows, side, *strip.shape[1:])[::-1].reshape(strip.shape)
            for left in range(0, strip.shape[1], columns * side + BETWEEN):
                frame = strip[:, left : left + columns * side]
                frame = frame.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
                squares += [*frame.reshape(-1, side, side, 3)]
        found[name] = np.stack(squares)
        assert not np.any(found[name][places.keys.sizes[name] :] != 255)
        found[name] = found[name][: places.keys.sizes[name]]
    assert next(rasters, None) is None
    return found


@pytest.mark.parametrize(
    "layout",
    [
        {"audio": (4, 5), "video": (3, 2, 4), "fusion": 7},
        {"video": (40, 3, 5), "text": 400},  # in several strips, and folded
        {"audio": (1, 1000), "video": (300, 1, 1)},
        {"video": (2, 300, 2)},
    ],
)
def test_those_tokens_are_lit_that_the_row_reads(layout):
    tokens = Tokens(layout)
    row = torch.rand(len(tokens)) < 0.5
    places = Places(tokens, tokens)
    rasters = places.rasters(row, 3)
    found = patches(places, rasters)
    shades = colours(tuple(tokens.grids))
    lit = {name: is_coloured(squares, shades[name]).any((1, 2)) for name, squares in found.items()}
    (first, *_) = lit
    lit[first][3] = row[3]  # framed, and that may be all of a small one
    assert np.concatenate([*lit.values()]).tolist() == row.tolist()


def test_the_query_is_framed_and_nothing_else():
    tokens = Tokens({"audio": (4, 5), "video": (3, 2, 4)})
    for query in (1, 20 + 9):
        places = Places(tokens, tokens)
        found = patches(places, places.rasters(torch.ones(44), query))
        squares = np.concatenate([is_coloured(part, FOCUS) for part in found.values()])
        assert squares.any((1, 2)).nonzero()[0].tolist() == [query]
        frame = squares[query]
        assert frame[0].all()
        assert frame[:, -1].all()
        assert not frame[2:-2, 2:-2].any()


def test_readers_that_are_no_keys_are_not_framed():
    places = Places(Tokens({"video": 1}), Tokens({"video": (2, 2, 2)}))
    assert not any(is_coloured(r, FOCUS).any() for r in places.rasters(torch.ones(8), 0))


def test_on_a_clip_what_is_read_has_its_colours_and_the_rest_is_grey():
    video = torch.rand(3, 4, 8, 8)
    tokens = Tokens({"video": (2, 4, 4)})
    row = torch.rand(32) < 0.5
    places = Places(tokens, tokens, {"video": video})
    squares = patches(places, places.rasters(row, 0))["video"]
    side = squares.shape[1]
    inside = squares[1:, 2 : side - 2, 2 : side - 2].astype(int)
    grey = (np.ptp(inside, -1) == 0).all((1, 2))
    assert grey.tolist() == (~row[1:]).tolist()
    for token in row.nonzero()[:, 0].tolist():  # the pixel right of and below the middle
        t, y, x = np.unravel_index(token, (2, 4, 4))
        wanted = (255 * video[:, 2 * t, 2 * y + 1, 2 * x + 1]).round()
        assert squares[token][side * 3 // 4, side * 3 // 4].tolist() == wanted.tolist()


def test_low_tones_are_at_the_bottom():
    spectrogram = torch.zeros(6, 8)
    spectrogram[0] = 1  # the lowest bin is loud
    tokens = Tokens({"audio": (3, 4)})
    (raster,) = Places(tokens, tokens, {"audio": spectrogram}).rasters(torch.ones(12), 11)
    bright = raster.astype(int).sum(-1).mean(1)
    assert bright[-10:-2].min() > bright[: len(bright) // 2].max()
    (raster,) = Places(tokens, tokens).rasters(torch.arange(12) < 4, 11)  # the first row
    coloured = is_coloured(raster, colour("audio")).any(1)
    assert not coloured[: 2 * len(raster) // 3].any()
    assert coloured[-5:].all()


def test_a_last_patch_that_is_not_full_ends_in_silence():
    spectrogram = torch.zeros(1, 10)
    spectrogram[0, [2, 9]] = 1  # patches of 3 columns: the ends of the first, the begin of the last
    tokens = Tokens({"audio": (1, 4)})
    (raster,) = Places(tokens, tokens, {"audio": spectrogram}).rasters(torch.ones(4), 3)
    loud = raster.astype(int).sum(-1)[raster.shape[0] // 2] > 600
    third = raster.shape[1] // 12
    assert [bool(loud[i * third + third // 2]) for i in range(12)] == [
        i in (2, 9) for i in range(12)
    ]


def test_strips_have_their_names_and_frames_their_numbers():
    tokens = Tokens({"video": (40, 3, 5), r"$\frac{$": 4})
    axes = Places(tokens, tokens).axes(torch.ones(604), 0)
    words = [text.get_text() for ax in axes for text in ax.texts]
    assert [word for word in words if word.isdigit()] == [str(n) for n in range(1, 40)]
    assert [word for word in words if not word.isdigit()] == [
        f"{tokens.letters['video']} video",
        "frame 0",
        f"{tokens.letters[list(tokens.grids)[1]]} $\\frac{{$",
    ]
    drawn_by_matplotlib(axes[0].figure)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_video_can_be_shown(channels):
    video = torch.rand(channels, 5, 8, 8, requires_grad=True) * torch.tensor(
        [1.0] * 7 + [torch.nan]
    )
    tokens = Tokens({"video": (2, 2, 2)})
    (raster,) = Places(tokens, tokens, {"video": video}).rasters(torch.ones(8), 0)
    assert raster.shape[2] == 3


@pytest.mark.parametrize(
    ("layout", "pictures", "message"),
    [
        (
            {"audio": 4},
            {"video": torch.rand(3, 4, 8, 8)},
            r"Places: got a picture for 'video', the keys are \['audio'\]; leave it out or name",
        ),
        (
            {"audio": 4},
            {"audio": torch.rand(8, 8)},
            r"'audio' has shape \(8, 8\) and its grid is \(4,\); wanted .*: give the group such a",
        ),
        (
            {"video": (2, 2)},
            {"video": torch.rand(3, 4, 8, 8)},
            r"its grid is \(2, 2\); wanted a sp",
        ),
        ({"audio": (2, 2)}, {"audio": torch.rand(8)}, r"shape \(8,\) and its grid is \(2, 2\)"),
        (
            {"video": (4, 2, 2)},
            {"video": torch.rand(3, 3, 8, 8)},
            "Places: 'video' has 3 frames for 4 in its grid; give at least as many",
        ),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(layout, pictures, message):
    with pytest.raises(ValueError, match=message):
        Places(Tokens(layout), Tokens(layout), pictures)
