"""Notebook 02: the exercises on masks, and the models of the leak hunt."""

from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from torch import Tensor

from avlib.attention import attend
from avlib.course.exercise import Exercise, Mistake, matching
from avlib.leaks import Influence, influence
from avlib.masks import Visibility, zorro_readout, zorro_trunk
from avlib.plots import canvas
from avlib.plots.tables import table

# 1. The mask from the kinds of the tokens


def _mask_by_loops(kinds: list[str]) -> Tensor:
    rows = []
    for reader in kinds:
        rows.append([reader == key or reader == "fusion" for key in kinds])
    return torch.tensor(rows)


def _codes(kinds: list[str]) -> tuple[Tensor, Tensor]:
    """The same kind, and which tokens are fusion."""
    numbers = torch.tensor([sorted(set(kinds)).index(kind) for kind in kinds])
    return numbers[:, None] == numbers, torch.tensor([kind == "fusion" for kind in kinds])


def _mask(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[str]], Tensor]:
    return lambda kinds: rule(*_codes(kinds))


mask_from_kinds = Exercise(
    chapter="zorro_mask",
    name="mask_from_kinds",
    minutes=8,
    difficulty=1,
    hints=(
        "Row i asks: may token i read token j? Two reasons say yes. Write each as a comparison.",
        "For every i and j: kinds[i] == kinds[j] or kinds[i] == 'fusion'.",
    ),
    cases=[
        (["audio", "audio", "video", "video", "fusion", "fusion"],),
        (["fusion", "audio", "video"],),
        (["audio", "audio", "audio", "fusion"],),
    ],
    reference=_mask_by_loops,
    mistakes={
        "transposed": Mistake(
            _mask(lambda same, fusion: same | fusion[None]),
            "everybody reads fusion, and fusion reads only itself. The mask is on its side: "
            "row i is the reader, column j is what it reads.",
        ),
        "both ways": Mistake(
            _mask(lambda same, fusion: same | fusion[None] | fusion[:, None]),
            "fusion reads all, but all read fusion too. Then video reaches audio by way of "
            "fusion, two layers later.",
        ),
        "only the same": Mistake(
            _mask(lambda same, fusion: same),
            "every kind reads itself only. Fusion must read all the others as well.",
        ),
        "fusion not itself": Mistake(
            _mask(lambda same, fusion: (same & ~fusion[:, None]) | (fusion[:, None] & ~same)),
            "fusion reads audio and video but not fusion. Fusion reads *all*.",
        ),
        "hidden where true": Mistake(
            _mask(lambda same, fusion: ~(same | fusion[:, None])),
            "it is the right mask, inside out. Here True means *may read*.",
        ),
        "in groups": Mistake(
            lambda kinds: _mask_by_loops(sorted(kinds, key=("audio", "video", "fusion").index)),
            "it takes the tokens in the order audio, video, fusion. They may come in any order.",
        ),
        "precedence": Mistake(
            _mask(lambda same, fusion: same & fusion[:, None]),
            "the two reasons are joined by 'and'. Either one is enough: use 'or'.",
        ),
    },
)


# 2. What can reach what after some layers


def _reach_by_walking(reads: Tensor, layers: int) -> Tensor:
    count = len(reads)
    reach = torch.zeros(count, count, dtype=torch.bool)
    for start in range(count):
        held_by = {start}
        for _ in range(layers):
            held_by |= {i for i in range(count) for j in held_by if reads[i, j]}
        for i in held_by:
            reach[i, start] = True
    return reach


def _power(step: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    def run(reads: Tensor, layers: int) -> Tensor:
        layer = step(reads).float()
        return torch.linalg.matrix_power(layer, layers) > 0

    return run


_CHAIN = torch.diag(torch.ones(5, dtype=torch.bool), -1)  # each reads the one before, not itself

reach = Exercise(
    chapter="zorro_mask",
    name="reach",
    minutes=8,
    difficulty=2,
    hints=(
        "After one layer token i holds what it held before, and what its keys held before. "
        "What did it hold before the first layer?",
        "Start from identity = torch.eye(n, dtype=torch.bool). In each layer: "
        "held = ((reads | identity).float() @ held.float()) > 0.",
    ),
    cases=[*((_CHAIN, layers) for layers in (0, 1, 2, 5)), (zorro_trunk("a", "v").table(), 4)],
    reference=_reach_by_walking,
    mistakes={
        "no residual": Mistake(
            _power(lambda reads: reads),
            "a token that does not read itself forgets itself here. The residual stream carries "
            "each token past the layer: add the identity.",
        ),
        "identity at the end": Mistake(
            lambda reads, layers: (
                _power(lambda r: r)(reads, layers) | torch.eye(len(reads), dtype=torch.bool)
            ),
            "it adds the identity once, at the end. A token is carried past *every* layer: "
            "add the identity before you take the power.",
        ),
        "entry by entry": Mistake(
            lambda reads, layers: (reads.float() + torch.eye(len(reads))) ** layers > 0,
            "** raises each entry to a power. A matrix power is torch.linalg.matrix_power.",
        ),
        "one too few": Mistake(
            lambda reads, layers: _reach_by_walking(reads, max(0, layers - 1)),
            "it is one layer behind. After 1 layer each token holds what it reads.",
        ),
        "one too many": Mistake(
            lambda reads, layers: _reach_by_walking(reads, layers + 1),
            "it is one layer ahead. After 0 layers each token holds only itself.",
        ),
        "no growth": Mistake(
            lambda reads, layers: reads | torch.eye(len(reads), dtype=torch.bool),
            "it shows one layer, however many there are. Each layer spreads what came before.",
        ),
        "in place": Mistake(
            lambda reads, layers: _reach_by_walking(reads.fill_diagonal_(True), layers),
            "it changes its argument reads",
        ),
        "transposed": Mistake(
            lambda reads, layers: _reach_by_walking(reads, layers).T,
            "it is on its side. Row i says what token i holds; column j where token j went.",
        ),
    },
)


# 3. Leak hunt

SLIPS = {
    1: "trunk: audio reads video in one layer",
    2: "trunk: audio reads fusion in one layer",
    3: "trunk: video reads fusion in one layer",
    4: "trunk: fusion does not read video",
    5: "readout: `mask | kind == GLOBAL` without parentheses (audio and video queries read all)",
    6: "readout: the fusion query reads the audio stream",
    7: "readout: the global query reads the video stream only",
}
_GUILTY = {"A": 2, "B": 5, "C": 1, "D": 4, "E": 6}

Model = Callable[..., dict[str, Tensor]]


def _suspect(number: int, seed: int) -> Model:
    """A bare Zorro of four layers with one slip: attention, residuals and a pooled readout."""
    trunk = [dict(zorro_trunk("audio", "video").reads) for _ in range(4)]
    readout = dict(zorro_readout("audio", "video").reads)
    if number == 1:
        trunk[2]["audio"] = ("audio", "video")
    elif number == 2:
        trunk[2]["audio"] = ("audio", "fusion")
    elif number == 3:
        trunk[2]["video"] = ("video", "fusion")
    elif number == 4:
        trunk = [{**layer, "fusion": ("audio", "fusion")} for layer in trunk]
    elif number == 5:
        readout |= dict.fromkeys(("audio", "video"), ("audio", "video", "fusion"))
    elif number == 6:
        readout["fusion"] = ("audio",)
    elif number == 7:
        readout["global"] = ("video",)
    layers = [Visibility(rules) for rules in trunk]
    pool = Visibility(readout, ("audio", "video", "fusion"))
    generator = torch.Generator().manual_seed(seed)
    queries = {kind: torch.randn(1, 1, 1, 8, generator=generator) for kind in pool.readers}

    def model(audio: Tensor, video: Tensor, fusion: Tensor) -> dict[str, Tensor]:
        streams = {"audio": audio, "video": video, "fusion": fusion}
        for layer in layers:
            split = {name: stream[:, None] for name, stream in streams.items()}
            read = attend(split, split, split, layer)
            streams = {name: stream + read[name][:, 0] for name, stream in streams.items()}
        split = {name: stream[:, None] for name, stream in streams.items()}
        return attend(queries, split, split, pool)

    return model


def leak_hunt() -> dict[str, Influence]:
    """What moves what in five models with one slip each; the inputs are the three streams."""
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "audio": 0.3 * torch.randn(1, 3, 8, generator=generator),
        "video": 0.3 * torch.randn(1, 4, 8, generator=generator),
        "fusion": 0.3 * torch.randn(1, 2, 8, generator=generator),
    }
    promise = zorro_readout("audio", "video") @ zorro_trunk("audio", "video").after(4)
    return {
        letter: influence(_suspect(number, seed), inputs, promise=promise)
        for seed, (letter, number) in enumerate(_GUILTY.items())
    }


_CLUES = {
    1: "slip 1 moves the audio output by video, but not by the fusion tokens.",
    2: "slip 2 moves the audio output by video and by the fusion tokens.",
    3: "slip 3 moves the video output; its audio output stays pure.",
    4: "slip 4 adds no leak; the fusion output loses its video.",
    5: "slip 5 lets everything into the audio output and into the video output.",
    6: "slip 6 adds no leak; the fusion output loses both its video and its fusion tokens.",
    7: "slip 7 adds no leak; the global output loses its audio and its fusion tokens.",
}


find_the_slips = Exercise(
    chapter="zorro_mask",
    name="find_the_slips",
    minutes=12,
    difficulty=2,
    hints=(
        "First count the leaks in each table. A leak in one row, in two rows, or a cell that "
        "has gone missing?",
        "One row leaks: did the fusion tokens come along with the video? If so, the way led "
        "through fusion.",
    ),
    verify=matching(_GUILTY, _CLUES, "model"),
    mistakes={
        "straight or around": Mistake(
            lambda: {**_GUILTY, "A": 1, "C": 2}, "but not by the fusion tokens"
        ),
        "row and column": Mistake(lambda: {**_GUILTY, "A": 3}, "slip 3 moves the video output"),
        "all leaks alike": Mistake(
            lambda: {**_GUILTY, "A": 5}, "slip 5 lets everything into the audio output and into"
        ),
        "another output": Mistake(
            lambda: {**_GUILTY, "D": 7}, "the global output loses its audio and its fusion"
        ),
        "missing cells": Mistake(
            lambda: {**_GUILTY, "D": 6, "E": 4}, "loses both its video and its fusion tokens"
        ),
    },
)


# Gem: slow bridge


def _three_layers_exactly(rules: Visibility) -> str | None:
    if not isinstance(rules, Visibility):
        return f"it returned {type(rules).__name__}, wanted a Visibility."
    missing = {"audio", "video"} - set(rules.readers)
    if missing:
        return f"it has no group {sorted(missing)[0]!r}; keep audio and video among the groups."
    for layers in range(4):
        if "audio" in rules.after(layers).reads["video"]:
            if layers == 3:
                return None
            return (
                f"video holds audio after {layers} layer{'s' * (layers != 1)} already. "
                "Each layer is one step: put more groups between them."
            )
    if "audio" in rules.after(len(rules.readers)).reads["video"]:
        return "audio reaches video, but in more than 3 layers. Take a group out of its way."
    if "video" in rules.after(3).reads["audio"]:
        return (
            "the bridge runs the other way: audio reads from video. "
            "What flows goes from the key to the reader."
        )
    return "audio has not reached video after 3 layers. Follow its way: who reads audio first?"


slow_bridge = Exercise(
    chapter="zorro_mask",
    name="slow_bridge",
    minutes=6,
    difficulty=2,
    hints=(
        "With one group between audio and video, the way takes two layers. You may add groups.",
        "Two relays: one reads audio, two reads one, video reads two. Each group reads itself too.",
    ),
    verify=_three_layers_exactly,
    mistakes={
        "straight": Mistake(
            lambda: Visibility({"audio": "audio", "video": "all"}), "after 1 layer already"
        ),
        "one relay": Mistake(
            lambda: Visibility({"audio": "audio", "relay": "all", "video": ("video", "relay")}),
            "after 2 layers already",
        ),
        "backwards": Mistake(
            lambda: Visibility(
                {
                    "audio": ("audio", "one"),
                    "one": ("one", "two"),
                    "two": ("two", "video"),
                    "video": "video",
                }
            ),
            "the bridge runs the other way",
        ),
        "three relays": Mistake(
            lambda: Visibility(
                {
                    "audio": "audio",
                    "one": ("one", "audio"),
                    "two": ("two", "one"),
                    "three": ("three", "two"),
                    "video": ("video", "three"),
                }
            ),
            "in more than 3 layers",
        ),
        "no bridge": Mistake(
            lambda: Visibility({"audio": "audio", "video": "video"}), "has not reached video"
        ),
    },
)


# Gem: a third modality

_TOUCH = {
    "audio": {"audio"},
    "video": {"video"},
    "touch": {"touch"},
    "sight and sound": {"audio", "video", "sight and sound"},
    "fusion": {"audio", "video", "touch", "sight and sound", "fusion"},
}


def draw_third_modality() -> Axes:
    """What each group of `third_modality` must hold of the three modalities in the end."""
    groups, modalities = [*_TOUCH], ["audio", "video", "touch"]

    def held(i: int, j: int) -> bool:
        return modalities[j] in _TOUCH[groups[i]]

    ax = table(
        canvas(None, 4.6, 3.2),
        groups,
        modalities,
        strength=held,
        text=lambda i, j: "" if held(i, j) else "never",
    )
    ax.set_title("wanted, after any number of layers")
    return ax


def _with_touch(rules: Visibility) -> str | None:
    if not isinstance(rules, Visibility):
        return f"it returned {type(rules).__name__}, wanted a Visibility."
    if set(rules.readers) != set(_TOUCH):
        return f"its groups are {list(rules.readers)}, wanted {list(_TOUCH)}."
    settled = rules.after(len(_TOUCH))
    for reader, wanted in _TOUCH.items():
        held = set(settled.reads[reader])
        strange = (held & {"audio", "video", "touch"}) - wanted
        if strange:
            extra = sorted(strange)[0]
            if extra in rules.reads[reader]:
                return f"{reader!r} reads {extra!r}, and it must not."
            ways = [key for key in rules.reads[reader] if key != reader]
            way = next(key for key in ways if extra in settled.reads[key])
            return f"{reader!r} gets {extra!r} in a later layer, by way of {way!r}."
        if wanted - held:
            return f"{reader!r} never gets {sorted(wanted - held)[0]!r}."
    return None


def _touch_rules(**changed: tuple[str, ...]) -> Visibility:
    return Visibility({name: tuple(keys) for name, keys in {**_TOUCH, **changed}.items()})


third_modality = Exercise(
    chapter="zorro_mask",
    name="third_modality",
    minutes=6,
    difficulty=2,
    hints=(
        "Write one line a group: what must it hold in the end? May it read that directly?",
        "'sight and sound' reads audio, video and itself; if it read fusion, touch would come "
        "along in the next layer.",
    ),
    verify=_with_touch,
    mistakes={
        "through fusion": Mistake(
            lambda: _touch_rules(**{"sight and sound": ("audio", "video", "fusion")}),
            "'sight and sound' gets 'touch' in a later layer, by way of 'fusion'",
        ),
        "all": Mistake(
            lambda: _touch_rules(**{"sight and sound": tuple(_TOUCH)}),
            "'sight and sound' reads 'touch', and it must not",
        ),
        "not pure": Mistake(
            lambda: _touch_rules(audio=("audio", "sight and sound")),
            "'audio' gets 'video' in a later layer, by way of 'sight and sound'",
        ),
        "one sense": Mistake(
            lambda: _touch_rules(**{"sight and sound": ("audio", "sight and sound")}),
            "'sight and sound' never gets 'video'",
        ),
        "senses alone": Mistake(
            lambda: _touch_rules(fusion=("audio", "video", "touch", "fusion")),
            "'fusion' never gets 'sight and sound'",
        ),
        "fusion blind to touch": Mistake(
            lambda: _touch_rules(fusion=("audio", "video", "sight and sound", "fusion")),
            "'fusion' never gets 'touch'",
        ),
    },
)
