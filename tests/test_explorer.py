"""The explorer says and shows what the mask or the model does, for every setting of its sliders."""

import io
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from torch.nn.attention.flex_attention import create_block_mask

from avlib import Example, Influence, World, as_mask, explore, gallery, trained_zorro, zorro_trunk
from avlib.attention_maps import READOUT, AttentionMaps
from avlib.data import Clip
from avlib.plots import FOCUS, colour
from avlib.plots.places import LARGEST

mpl.use("agg")

LAYOUT = {"audio": (2, 3), "video": (2, 2, 2), "fusion": 3}
N = 17


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


@pytest.fixture(scope="module")
def model():
    return trained_zorro()[0]


@pytest.fixture(scope="module")
def clip():
    return World(20)[3]


def slider(explorer, name):
    return next(slider for slider in explorer.sliders if slider.description == name)


def sentence(explorer):
    return re.sub("<.*?>", "", explorer.sentence.value)


def note(explorer):
    return re.sub("<.*?>", "", explorer.note.value)


def counts(words):
    """Group → (how many, of how many), as the sentence says."""
    return {name: (int(a), int(b)) for a, b, name in re.findall(r"(\d+) of (\d+) (\w+)", words)}


def wanted(row, tokens):
    return {name: (int(row[span].sum()), tokens.sizes[name]) for name, span in tokens.spans.items()}


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def rgb(shade):
    return np.rint(255 * np.array(to_rgb(shade))).astype(np.uint8)


def lit(explorer, picture, group):
    """How much of a picture has a group's full colour."""
    return (decoded(explorer.images[picture].value) == rgb(colour(group))).all(-1).sum()


def block_mask():
    causal = lambda b, h, q_idx, kv_idx: kv_idx <= q_idx  # noqa: E731
    return create_block_mask(causal, 1, 1, 256, 256, device="cpu")


def measured():
    gradient, no = torch.eye(2).double(), torch.zeros(2, 2).bool()
    return Influence(("one", "two"), ("audio", "video"), gradient, no, no)


SOURCES = {
    "rules": lambda: explore(zorro_trunk("audio", "video"), LAYOUT),
    "mask": lambda: explore(gallery.nearby({"video": (3, 4, 4)}, 3)),
    "function": lambda: explore(lambda b, h, q_idx, kv_idx: kv_idx <= q_idx, 9),
    "table": lambda: explore(torch.eye(5).bool()),
    "heads": lambda: explore(torch.rand(2, 3, 6, 6) < 0.5),
    "other keys": lambda: explore(torch.rand(4, 3, 6) < 0.5, {"video": 3}, {"audio": (2, 3)}),
    "BlockMask": lambda: explore(block_mask()),
    "Influence": lambda: explore(measured()),
    "model": lambda: explore(trained_zorro()[0], World(20)[3]),
    "readout": lambda: explore(trained_zorro()[0], World(20)[3], readout=True),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_slider_changes_pictures_and_sentence_and_back(source):
    explorer = SOURCES[source]()
    sliders = [slider.description for slider in explorer.sliders]
    assert sliders == {
        "heads": ["query", "layers", "batch", "head"],
        "other keys": ["query", "head"],
        "Influence": ["query"],
        "model": ["query", "layer", "head"],
        "readout": ["query", "head"],
    }.get(source, ["query", "layers"])
    for moved in explorer.sliders:
        before = [image.value for image in explorer.images], sentence(explorer)
        options = getattr(moved, "options", None) or range(moved.min, moved.max + 1)
        for value in options[1:4]:
            moved.value = value
            pictures = [image.value for image in explorer.images]
            assert pictures[-1] != before[0][-1]
            assert sentence(explorer) != before[1]
        moved.value = options[0]
        assert before == ([image.value for image in explorer.images], sentence(explorer))


@pytest.mark.parametrize("query", [0, 7, 16])
def test_the_sentence_counts_what_the_mask_lets_a_query_read(query):
    tables = torch.rand(2, 3, N, N) < 0.5
    mask = as_mask(tables, LAYOUT)
    explorer = explore(mask, query=query, start={"batch": 1, "head": 2})
    assert sentence(explorer).startswith(f"Batch 1, head 2: Query {query}, ")
    assert counts(sentence(explorer)) == wanted(tables[1, 2, query], mask.keys)
    slider(explorer, "batch").value = 0
    assert counts(sentence(explorer)) == wanted(tables[0, 2, query], mask.keys)
    slider(explorer, "head").value = 1
    assert counts(sentence(explorer)) == wanted(tables[0, 1, query], mask.keys)
    assert f"lets through {int(tables[0, 1].sum())} of {N * N} pairs" in note(explorer)


def test_after_some_layers_sentence_and_picture_hold_what_the_power_of_the_mask_says():
    table = torch.rand(N, N) < 0.12
    mask = as_mask(table, LAYOUT)
    step = (table | torch.eye(N).bool()).double()
    explorer = explore(mask, query=4)
    for layers in (2, 3, 12):
        slider(explorer, "layers").value = layers
        held = torch.linalg.matrix_power(step, layers)[4] > 0
        assert sentence(explorer).startswith(f"After {layers} layers query 4, audio 4 (row 1,")
        assert counts(sentence(explorer)) == wanted(held, mask.keys)
        coloured = np.ptp(decoded(explorer.images[0].value).astype(int), -1) > 10
        patch, line = LARGEST**2, 2 * LARGEST - 1  # the query's lines are covered by its frame
        assert coloured.sum() == held.sum() * (patch - line) + line
        seen = [lit(explorer, 0, name) > 0 for name in ("audio", "video", "fusion")]
        first = table[4] | (torch.arange(N) == 4)  # in full colour; what came later is paler
        assert seen == [bool(first[span].any()) for span in mask.keys.spans.values()]


def test_a_query_that_reads_nothing_is_told():
    table = torch.ones(N, N).bool()
    table[[2, 3, 5, 7, 11, 13]] = False
    explorer = explore(table, LAYOUT, query=3)
    assert "Query 3, audio 3 (row 1, column 0), reads nothing" in sentence(explorer)
    assert note(explorer).endswith(
        "6 of its queries read nothing (dashed in layer 1): 2, 3, 5, 7, 11, …."
    )
    slider(explorer, "layers").value = 2
    assert counts(sentence(explorer))["audio"] == (1, 6)


def test_blocks_are_as_large_as_asked():
    assert "blocks of 8 × 8 runs 3 of 4." in note(explore(gallery.causal(16), block=8))


# Attention


@pytest.mark.parametrize(("layer", "head", "query"), [(1, "mean", 0), (2, 3, 40), (3, 7, 95)])
def test_the_shares_are_those_of_the_attention_maps(model, clip, layer, head, query):
    explorer = explore(model, clip, query=query, start={"layer": layer, "head": head})
    maps = AttentionMaps(model, audio=clip.audio, video=clip.video)
    (row,) = maps.rows(layer, None if head == "mean" else head, [query])
    said = sentence(explorer)
    for name, span in maps.keys(layer).spans.items():
        assert f"{100 * row[span].sum():.0f} % to {name}" in said
    assert said.endswith(f"{maps.keys(layer).place(int(row.argmax()))}, {100 * row.max():.0f} %.")
    most = maps.keys(layer).group(int(row.argmax()))[0]
    picture = decoded(explorer.images[1].value)
    rows, columns = (picture == rgb(FOCUS)).all(-1).nonzero()  # of the arrow before the row
    line = picture[int(rows.mean()), columns.max() + 1 :]
    assert (line == rgb(colour(most))).all(-1).any()  # the largest weight has the full colour


def test_the_readout_has_a_row_for_each_of_its_queries(model, clip):
    explorer = explore(model, clip, readout=True, query=3)
    maps = AttentionMaps(model, audio=clip.audio, video=clip.video)
    assert slider(explorer, "query").max == 3
    assert sentence(explorer) == maps.sentence(READOUT, None, 3)
    assert explore(model, clip=clip, readout=True, query=3).images[1].value == (
        explorer.images[1].value
    )


def test_a_clip_may_lack_a_modality(model, clip):
    explorer = explore(model, clip._replace(audio=None))
    assert "audio" not in sentence(explorer)


# The clip of a mask


def test_a_mask_is_shown_on_its_clip():
    layout = {"audio": (4, 4), "video": (4, 4, 4), "fusion": 16}
    plain = explore(zorro_trunk("audio", "video"), layout, query=30)
    shown = explore(zorro_trunk("audio", "video"), layout, clip=World(20).clip(3), query=30)
    assert shown.images[1].value == plain.images[1].value
    assert shown.images[0].value != plain.images[0].value
    assert sentence(shown) == sentence(plain)


def test_the_sound_fills_its_grid_to_the_end():
    loud = Clip(None, 0.5 * torch.randn(8000), None, 8000)  # 50 columns: no multiple of a patch
    explorer = explore(gallery.full({"audio": (4, 4)}), clip=loud)
    picture = decoded(explorer.images[0].value)
    columns = picture[10 + 50 : 10 + 140].astype(int).sum(-1).mean(0)  # below the framed query
    right = np.flatnonzero(columns < 250 * 3)[-30:-4]
    assert np.abs(columns[right] - columns[right - 60]).mean() < 100


# What shows without a kernel, and what is too much


@pytest.mark.parametrize("source", SOURCES)
def test_where_no_kernel_runs_picture_and_sentence_are_stored(source):
    explorer = SOURCES[source]()
    slider(explorer, "query").value = 1
    data = explorer._repr_mimebundle_()
    assert re.match(r"query = 1(, \w+ = \w+)*\. ", data["text/plain"])
    assert sentence(explorer) in data["text/plain"]
    page = decoded(data["image/png"])
    top = 0
    for image in explorer.images:
        picture = decoded(image.value)
        stored = page[top : top + len(picture), : picture.shape[1]].astype(int)
        assert np.abs(stored - picture).mean() < 2  # of fewer colours
        top += len(picture)
    assert (page[top:] < 100).any()  # the sentence in words below


def test_4096_tokens_are_explored():
    explorer = explore(gallery.causal({"video": (16, 16, 16)}), query=4095)
    assert counts(sentence(explorer)) == {"video": (4096, 4096)}
    slider(explorer, "query").value = 77
    assert counts(sentence(explorer)) == {"video": (78, 4096)}
    explorer._repr_mimebundle_()


@pytest.mark.parametrize("grid", [4096, (1, 1000), (4096, 1), (64, 8, 8), (2, 2048)])
def test_any_grid_is_shown(grid):
    explorer = explore(gallery.full({"audio": grid}))
    slider(explorer, "query").value = 999
    for image in explorer.images:
        assert max(decoded(image.value).shape) < 5000


class Wrapped(torch.nn.Module):
    def forward(self, b, h, q_idx, kv_idx):
        return q_idx >= kv_idx


RULES = zorro_trunk("audio", "video")
WHOLE = Clip(torch.rand(3, 4, 8, 8), torch.rand(8000), 25.0, 8000)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m, c: explore(m), ValueError, r"got a model without a clip; .* explore\(model, cl"),
        (
            lambda m, c: explore(m, torch.rand(9)),
            TypeError,
            r"explore: the clip is a Tensor, wanted something with audio and video; use Example\(",
        ),
        (lambda m, c: explore(m, LAYOUT), TypeError, "explore: the clip is a dict, wanted"),
        (lambda m, c: explore(RULES, LAYOUT, clip=c[1]), TypeError, "the clip is a Tensor, wanted"),
        (
            lambda m, c: explore(Wrapped(), c),
            TypeError,
            r"explore: got a clip and Wrapped, which is no Zorro; give the Zorro itself \(a wrapp",
        ),
        (lambda m, c: explore((m, 1), 4), TypeError, "as_mask: got tuple, wanted a Visibility"),
        (
            lambda m, c: explore(m, Example(None, None, {})),
            ValueError,
            "got neither audio nor video; give at least one",
        ),
        (
            lambda m, c: explore(RULES, LAYOUT, clip=c),
            ValueError,
            r"explore: Example does not say the sample rate of its sound; give a Clip, such as",
        ),
        (
            lambda m, c: explore(gallery.causal(4), clip=WHOLE),
            ValueError,
            r"got a picture for 'video', the keys are \['tokens'\]; leave it out or name",
        ),
        (
            lambda m, c: explore(RULES, {**LAYOUT, "video": 8}, clip=WHOLE),
            ValueError,
            r"'video' has shape \(3, 4, 8, 8\) and its grid is \(8,\); wanted .* such a grid",
        ),
        (
            lambda m, c: explore(gallery.causal(10**5)),
            ValueError,
            "explore: 100,000 × 100,000 tokens; up to 4,096 along a side are drawn. Give the same",
        ),
        (lambda m, c: explore(RULES), ValueError, "does not say how many tokens there are; give"),
        (lambda m, c: explore(RULES, LAYOUT, query=N), ValueError, "got token 17, there are 17; c"),
        (lambda m, c: explore(RULES, LAYOUT, query=-1), ValueError, "got token -1, there are 17"),
        (lambda m, c: explore(m, c, query=96), ValueError, "got token 96, there are 96; count fr"),
        (
            lambda m, c: explore(RULES, LAYOUT, start={"layer": 2}),
            ValueError,
            r"start names 'layer', the sliders are \['query', 'layers'\]; leave it out or correct",
        ),
        (
            lambda m, c: explore(RULES, LAYOUT, start={"layers": 13}),
            ValueError,
            r"layers starts at 13; choose from range\(1, 13\)",
        ),
        (
            lambda m, c: explore(m, c, start={"layer": "readout"}),
            ValueError,
            r"layer starts at 'readout'; choose from \[1, 2, 3\]",
        ),
        (lambda m, c: explore(RULES, LAYOUT, block=0), ValueError, "block is 0; give a positive w"),
    ],
)
def test_what_cannot_be_explored_is_refused(model, clip, call, kind, message):
    with pytest.raises(kind, match=message):
        call(model, clip)
    plt.close("all")


def test_a_model_in_training_or_without_layers_is_refused(make_zorro, clip):
    with pytest.raises(ValueError, match=r"in training mode, .*; call model.eval\(\) first"):
        explore(make_zorro().train(), clip)
    flat = make_zorro(0)
    short = Example(clip.audio, None, {})
    with pytest.raises(ValueError, match=r"this model has no layers; look at it with readout=True"):
        explore(flat, short)
    assert "In the readout" in sentence(explore(flat, short, readout=True))
