"""Notebook 08: the exercises, and pictures of what a twin decoder writes and reads."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from operator import index
from typing import Any

import matplotlib.pyplot as plt
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from avlib import bounce, plots
from avlib.course import results
from avlib.course.exercise import Exercise, Mistake
from avlib.nuwa import TwinDecoder
from avlib.plots.style import ink_on
from avlib.reversible import ReversibleSequence
from avlib.token_masks import Mask, as_mask
from avlib.trained import trained_twin
from avlib.widgets import LivePicture

# 1. Who reads whom


def _by_frames(frames: int, film: int, sound: int) -> tuple[Tensor, Tensor]:
    sound_reads = torch.zeros(frames * sound, frames * film, dtype=torch.bool)
    film_reads = torch.zeros(frames * film, frames * sound, dtype=torch.bool)
    for i in range(frames * sound):
        for j in range(frames * film):
            sound_reads[i, j] = j // film <= i // sound
            film_reads[j, i] = i // sound < j // film
    return sound_reads, film_reads


def _of_frames(frames: int, readers: int, keys: int) -> tuple[Tensor, Tensor]:
    """The frame of each reader, as a column, and of each key, as a row."""
    return torch.arange(frames * readers)[:, None] // readers, torch.arange(frames * keys) // keys


def _both(rule: Any) -> Any:
    """A wrong answer, from a rule for (frame of reader, frame of key, lag)."""

    def answer(frames: int, film: int, sound: int) -> tuple[Tensor, Tensor]:
        one = rule(*_of_frames(frames, sound, film), 0)
        return one, rule(*_of_frames(frames, film, sound), 1)

    return answer


def _by_numbers(frames: int, film: int, sound: int, frame_of: Any) -> tuple[Tensor, Tensor]:
    """A wrong answer, from a rule that gives a token's number a frame."""
    film_at, sound_at = (frame_of(torch.arange(frames * count)) for count in (film, sound))
    return film_at <= sound_at[:, None], sound_at < film_at[:, None]


who_reads_whom = Exercise(
    chapter="twin_decoder",
    name="who_reads_whom",
    minutes=8,
    difficulty=2,
    hints=(
        "To which frame does token number i belong, if a frame has `film` tokens? Make such "
        "numbers for all readers and all keys.",
        "film_at = torch.arange(frames * film) // film, and sound_at in the same way. Compare one "
        "as a column, with [:, None], with the other: sound reads film where film_at <= sound_at, "
        "film reads sound where sound_at < film_at.",
    ),
    cases=[(3, 4, 1), (2, 2, 3), (4, 1, 2), (1, 3, 2)],
    reference=_by_frames,
    returns=("sound_reads_film", "film_reads_sound"),
    mistakes={
        "too careful": Mistake(
            _both(lambda i, j, lag: j < i),
            "its sound waits for the next frame. The film of a frame is written before its sound, "
            "so sound reads the film of its own frame too.",
        ),
        "leak": Mistake(
            _both(lambda i, j, lag: j <= i),
            "its film reads the sound of its own frame, which is written after it: a leak.",
        ),
        "own frame only": Mistake(
            _both(lambda i, j, lag: j == i - lag),
            "it reads one frame alone. All the frames before are read too.",
        ),
        "exchanged": Mistake(
            lambda frames, film, sound: _by_frames(frames, film, sound)[::-1],
            "the two are exchanged: sound_reads_film comes first.",
        ),
        "transposed": Mistake(
            lambda frames, film, sound: tuple(m.T for m in _by_frames(frames, film, sound)),
            "its masks are transposed: a row is who reads, a column is what is read.",
        ),
        "token by token": Mistake(
            lambda frames, film, sound: (
                torch.ones(frames * sound, frames * film).tril().bool(),
                torch.ones(frames * film, frames * sound).tril(-1).bool(),
            ),
            "it compares numbers of tokens. Film and sound have different numbers of tokens in a "
            "frame: compare frames.",
        ),
        "remainder": Mistake(
            lambda frames, film, sound: _by_numbers(frames, film, sound, lambda i: i % frames),
            "it counts frames by a remainder. Tokens are counted frame by frame: token i of the "
            "film is in frame i // film.",
        ),
        "divided by frames": Mistake(
            lambda frames, film, sound: _by_numbers(frames, film, sound, lambda i: i // frames),
            "it divides by the number of frames. Token i of the film is in frame i // film.",
        ),
        "future": Mistake(
            _both(lambda i, j, lag: j >= i + lag),
            "it reads what comes later. What is not written yet cannot be read.",
        ),
    },
)


def draw_who_reads_whom() -> Figure:
    """The two masks for two frames with two tokens of film and one of sound."""
    masks = _by_frames(2, 2, 1)
    figure, axes = plt.subplots(
        1, 2, figsize=(7.5, 3.2), width_ratios=(4, 2), dpi=85, layout="constrained"
    )
    sizes = {"film": 2, "sound": 1}
    pairs = ("sound", "film"), ("film", "sound")
    for ax, mask, (reader, key) in zip(axes, masks, pairs, strict=True):
        group = {"film": "video", "sound": "audio"}
        names = {n: [f"{n} {t}" for t in range(2) for _ in range(sizes[n])] for n in sizes}
        for i, row in enumerate(mask.tolist()):
            for j, seen in enumerate(row):
                face = plots.COLOURS[group[key]] if seen else plots.HIDDEN
                ax.add_patch(Rectangle((j, i), 1, 1, fc=face, ec="white", lw=2))
                letter = key[0].upper() if seen else "·"
                ax.text(j + 0.5, i + 0.5, letter, ha="center", va="center", color=ink_on(face))
        plots.bare(ax)
        ax.set(xlim=(0, mask.shape[1]), ylim=(mask.shape[0], 0), aspect="equal")
        ax.set_xticks([j + 0.5 for j in range(mask.shape[1])], names[key])
        ax.set_yticks([i + 0.5 for i in range(mask.shape[0])], names[reader])
        ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        ax.set_title(f"{reader}_reads_{key}")
    return figure


# 2. How a code is drawn


def _tempered_by_loop(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    values = logits.double().tolist()
    kept = sorted(range(len(values)), key=lambda i: -values[i])[:top_k]
    weights = [0.0] * len(values)
    for i in kept:
        weights[i] = float(torch.tensor(values[i] / temperature, dtype=torch.float64).exp())
    return torch.tensor([weight / sum(weights) for weight in weights])


def _kept(logits: Tensor, top_k: int) -> Bool[Tensor, " n"]:
    kept = torch.zeros(len(logits), dtype=torch.bool)
    kept[logits.topk(top_k).indices] = True
    return kept


_LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0])

tempered = Exercise(
    chapter="twin_decoder",
    name="tempered",
    minutes=8,
    difficulty=2,
    hints=(
        "Codes that are left out must get probability 0, and the others still sum to 1. Which "
        "logit has probability 0 after softmax?",
        "Divide by the temperature, set all but the top_k largest to -inf "
        "(logits.topk(top_k).indices are those to keep), then take the softmax.",
    ),
    cases=[
        (_LOGITS, 1.0, 4),
        (_LOGITS, 0.5, 4),
        (_LOGITS, 1.0, 2),
        (_LOGITS.flip(0) - 3, 2.0, 3),
        (_LOGITS, 0.5, 1),
    ],
    reference=_tempered_by_loop,
    mistakes={
        "times": Mistake(
            lambda x, t, k: (x * t).masked_fill(~_kept(x, k), -torch.inf).softmax(0),
            "it multiplies by the temperature. Divide: a low one makes likely codes likelier.",
        ),
        "no temperature": Mistake(
            lambda x, t, k: x.masked_fill(~_kept(x, k), -torch.inf).softmax(0),
            "it leaves out the temperature.",
        ),
        "no top_k": Mistake(
            lambda x, t, k: (x / t).softmax(0), "it leaves out top_k: all codes have a chance."
        ),
        "sum below 1": Mistake(
            lambda x, t, k: (x / t).softmax(0) * _kept(x, k),
            "its probabilities do not sum to 1. Leave codes out before the softmax, not after it.",
        ),
        "zero logits": Mistake(
            lambda x, t, k: ((x / t) * _kept(x, k)).softmax(0),
            "it sets the logits of the others to 0, and exp(0) is 1. A logit of -inf has "
            "probability 0.",
        ),
        "the smallest": Mistake(
            lambda x, t, k: (x / t).masked_fill(~_kept(-x, k), -torch.inf).softmax(0),
            "it keeps the least likely codes.",
        ),
        "the first": Mistake(
            lambda x, t, k: (x / t).masked_fill(torch.arange(len(x)) >= k, -torch.inf).softmax(0),
            "it keeps the first codes of the list. Keep those with the largest logits.",
        ),
        "one too few": Mistake(
            lambda x, t, k: (x / t).masked_fill(x <= x.sort().values[-k], -torch.inf).softmax(0),
            "it keeps one code too few: the last of the top_k may be drawn too.",
        ),
        "logits": Mistake(
            lambda x, t, k: (x / t).masked_fill(~_kept(x, k), -torch.inf),
            "it returns logits. Probabilities come out of the softmax.",
        ),
        "temperature after": Mistake(
            lambda x, t, k: x.masked_fill(~_kept(x, k), -torch.inf).softmax(0) / t,
            "it divides probabilities by the temperature. Divide the logits, before the softmax.",
        ),
    },
)


# 3. A score for sounds


def _score_by_loop(written: Tensor, wanted: Tensor) -> float:
    right = hits = 0
    for said, meant in zip(written.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        if meant != 0:
            hits += 1
            right += said == meant
    return right / hits


_WANTED = torch.tensor([[0, 0, 1, 0, 0, 1, 0, 0], [2, 0, 0, 2, 0, 0, 2, 0]])
_SOUNDS = [
    torch.tensor([[0, 0, 1, 0, 0, 0, 0, 0], [2, 0, 0, 1, 0, 2, 2, 0]]),
    torch.zeros(2, 8, dtype=torch.long),
    torch.tensor([[1, 0, 1, 0, 0, 1, 0, 0], [0, 0, 2, 0, 0, 0, 0, 0]]),
    _WANTED,
]


def _share(right: Tensor) -> float:
    return float(right.float().mean())


_WRITTEN = (
    "it looks at frames in which something was written. Who writes one sound, and that one right, "
    "would have full marks."
)


def _of_written(written: Tensor, wanted: Tensor, nothing: float = float("nan")) -> float:
    hit = written != 0
    return _share(written[hit] == wanted[hit]) if hit.any() else nothing


impact_score = Exercise(
    chapter="twin_decoder",
    name="impact_score",
    minutes=5,
    difficulty=1,
    hints=(
        "Which frames count? Those in which something should be heard: select them first.",
        "hit = wanted != 0 is True in those frames. written[hit] == wanted[hit] says which of them "
        "are right.",
    ),
    cases=[(sounds, _WANTED) for sounds in _SOUNDS],
    reference=_score_by_loop,
    mistakes={
        "all frames": Mistake(
            lambda written, wanted: _share(written == wanted),
            "it counts silent frames too. There are many, so eternal silence would score well.",
        ),
        "written hits": Mistake(_of_written, _WRITTEN),
        "written hits, or 0": Mistake(partial(_of_written, nothing=0.0), _WRITTEN),
        "any sound": Mistake(
            lambda written, wanted: _share(written[wanted != 0] != 0),
            "any sound will do for it. The sound must be the right one.",
        ),
        "a number of frames": Mistake(
            lambda written, wanted: int((written == wanted)[wanted != 0].sum()),
            "it counts. Divide by the number of frames with an impact.",
        ),
        "clip by clip": Mistake(
            lambda written, wanted: (
                sum(map(_score_by_loop, written, wanted)) / len(wanted)  # one clip after another
            ),
            "it takes the mean of the clips' scores. Take all impacts of all clips together: a "
            "clip with many counts more.",
        ),
        "over all": Mistake(
            lambda written, wanted: _share((written == wanted) & (wanted != 0)),
            "it divides by all frames. Divide by those with an impact.",
        ),
    },
)


# 4. Dub a silent film


def _dub_by_rule(film: Tensor, moves: tuple[int, int]) -> tuple[int, ...]:
    sounds = []
    for frame, picture in enumerate(film.tolist()):
        ((row, column, code),) = (
            (y, x, code) for y, line in enumerate(picture) for x, code in enumerate(line) if code
        )
        hit = False
        for place, move in ((row, moves[0]), (column, moves[1])):
            at_wall = place in (0, len(picture) - 1)
            towards = move < 0 if place == 0 else move > 0
            hit = hit or (at_wall and move != 0 and (frame > 0 or towards))
        sounds.append(code if hit else 0)
    return tuple(sounds)


def _dubbed(rule: Any) -> Any:
    """A wrong answer, from a rule for (frame, row, column, code, moves)."""

    def answer(film: Tensor, moves: tuple[int, int]) -> tuple[int, ...]:
        places = [(picture != 0).nonzero()[0].tolist() for picture in film]
        codes = [int(picture.max()) for picture in film]
        frames = enumerate(zip(places, codes, strict=True))
        return tuple(rule(frame, *place, code, moves) for frame, (place, code) in frames)

    return answer


def _at_wall(row: int, column: int, moves: tuple[int, int]) -> bool:
    along = zip((row, column), moves, strict=True)
    return any(place in (0, bounce.SIZE - 1) and move for place, move in along)


def _films() -> list[tuple[Tensor, tuple[int, int]]]:
    cases = []
    for colour, way, first in (
        ("red", "right", 1),
        ("blue", "up and left", 10),
        ("green", "down", 0),
        ("yellow", "down and right", 13),
        ("blue", "left", 15),
    ):
        text = bounce.encode(f"a {colour} square moves {way}")
        cases.append((bounce.play(text, torch.tensor([first]))[0][0], bounce.DIRECTIONS[way]))
    return cases


def _ahead(turned: Any) -> Any:
    """A wrong answer: a hit is where the next step would leave; `turned` says how it goes on."""

    def answer(film: Tensor, moves: tuple[int, int]) -> tuple[int, ...]:
        sounds = []
        for picture in film:
            places = picture.nonzero()[0].tolist()
            out = [not 0 <= p + m < bounce.SIZE for p, m in zip(places, moves, strict=True)]
            sounds.append(int(picture.max()) * any(out))
            moves = turned(moves, out)
        return tuple(sounds)

    return answer


dub = Exercise(
    chapter="twin_decoder",
    name="dub",
    minutes=10,
    difficulty=2,
    hints=(
        "Where is the square in each frame, and along which axes does it move at all? After the "
        "first frame, a square at a wall of such an axis has just come to it.",
        "For frame > 0: a hit if moves[0] != 0 and the row is 0 or 3, or moves[1] != 0 and the "
        "column is 0 or 3. In frame 0 the move must also point at that wall. The sound is the "
        "square's code.",
    ),
    cases=_films(),
    reference=_dub_by_rule,
    mistakes={
        "any wall": Mistake(
            _dubbed(lambda t, y, x, code, moves: code * bool({y, x} & {0, bounce.SIZE - 1})),
            "it hears every wall that the square touches. One that moves to the right along the "
            "upper wall does not hit it.",
        ),
        "first frame too": Mistake(
            _dubbed(lambda t, y, x, code, moves: code * _at_wall(y, x, moves)),
            "in the first frame it hears a square that moves away from its wall.",
        ),
        "never at first": Mistake(
            _dubbed(lambda t, y, x, code, moves: code * (t > 0 and _at_wall(y, x, moves))),
            "it is silent in the first frame. There a square may stand at a wall that it moves "
            "towards.",
        ),
        "one sound": Mistake(
            lambda film, moves: tuple(int(code != 0) for code in _dub_by_rule(film, moves)),
            "each hit has the same sound. A hit has the code of the square's colour.",
        ),
        "never turns": Mistake(
            _ahead(lambda moves, out: moves),
            "its square never turns around. After a hit it moves the other way.",
        ),
        "turns both ways": Mistake(
            _ahead(lambda moves, out: tuple(-m for m in moves) if any(out) else moves),
            "at one wall it turns both ways. Only the direction towards that wall turns.",
        ),
        "exchanged": Mistake(
            lambda film, moves: _dub_by_rule(film, moves[::-1]),
            "rows and columns are exchanged: moves[0] is along rows, so it is up or down.",
        ),
        "late": Mistake(
            lambda film, moves: (0, *_dub_by_rule(film, moves)[:-1]),
            "its sounds come a frame late: the hit is in the frame that shows the square at the "
            "wall.",
        ),
        "rows only": Mistake(
            _dubbed(
                lambda t, y, x, code, moves: (
                    code
                    * (moves[0] != 0 and y in (0, 3) and (t > 0 or moves[0] == (1 if y else -1)))
                )
            ),
            "it looks at the upper and the lower wall alone. There are two more.",
        ),
        "silent": Mistake(
            lambda film, moves: (0,) * len(film),
            "it is always silent. Most films have an impact.",
        ),
    },
)


# 5. Find the token that silences the sound

SENTENCE, FIRST, IMPACT = "a red square moves up and left", 11, 2  # the scene, and its frame
QUIET = 0.9  # so likely silence must be


@cache
def scene() -> tuple[Tensor, Tensor, Tensor]:
    """Text, film and sound, each a batch of one: a hit at the upper wall in frame `IMPACT`."""
    text = bounce.encode(SENTENCE)
    return text, *bounce.play(text, torch.tensor([FIRST]))


@cache
def _writer() -> TwinDecoder:
    return trained_twin()


@torch.no_grad()
def silence(films: Int[Tensor, "b t y x"]) -> Float[Tensor, " b"]:
    """How likely the trained model thinks silence in frame `IMPACT` of the scene, for other films.

    Each film is read with the sentence and the sounds of the scene.
    """
    text, _, audio = scene()
    count = len(films)
    _, heard = _writer()(text=text.repeat(count, 1), video=films, audio=audio.repeat(count, 1, 1))
    return heard[:, IMPACT, 0].softmax(-1)[:, 0]


@cache
def every_change() -> Float[Tensor, "frame row column code"]:
    """The probability of silence when one token of the film is changed, for each that comes first.

    That is each place in frames up to `IMPACT`, and each code; the code that stands there already
    changes nothing.
    """
    _, video, _ = scene()
    shape = IMPACT + 1, bounce.SIZE, bounce.SIZE, bounce.CODES
    films = video.repeat(torch.Size(shape).numel(), 1, 1, 1)
    for number, (frame, row, column, code) in enumerate(torch.ones(shape).nonzero().tolist()):
        films[number, frame, row, column] = code
    return silence(films).view(shape)


def _silences(answer: Any) -> str | None:
    listed = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(listed, tuple | list) or len(listed) != 4:
        return f"it returns {answer!r:.80}. Wanted four numbers: frame, row, column, code."
    try:
        frame, row, column, code = map(index, listed)  # NumPy's and tensors' numbers too
    except TypeError:
        return f"it returns {answer!r:.80}. Wanted four whole numbers: frame, row, column, code."
    for name, number, count in (
        ("frame", frame, bounce.FRAMES),
        ("row", row, bounce.SIZE),
        ("column", column, bounce.SIZE),
        ("code", code, bounce.CODES),
    ):
        if not 0 <= number < count:
            return f"there is no {name} {number}; count from 0 to {count - 1}."
    if frame > IMPACT:
        return (
            f"frame {frame} comes after the sound of frame {IMPACT}, which never reads it. Change "
            "a token of the past."
        )
    if code == int(scene()[1][0, frame, row, column]):
        return f"the code at frame {frame}, row {row}, column {column} is {code} already."
    found = float(every_change()[frame, row, column, code])
    if found < QUIET:
        more = (
            f"The sound of frame {IMPACT} does not hang on that token."
            if frame < IMPACT
            else "Does the square still stand at the wall?"
        )
        return f"with this change silence has a probability of {found:.2f}. {more}"
    return None


silence_it = Exercise(
    chapter="twin_decoder",
    name="silence_it",
    minutes=4,
    difficulty=1,
    hints=(
        "There is a sound because something stands at the wall. Which token says so? Look at frame "
        "2 in the picture of the clip.",
        "Let twin_decoder.every_change() tell: which entry is above 0.9? (changes > 0.9).nonzero() "
        "lists frame, row, column and code.",
    ),
    verify=_silences,
    mistakes={
        "the future": Mistake(lambda: (IMPACT + 1, 1, 1, 0), "never reads it"),
        "nothing": Mistake(lambda: (IMPACT, 0, 1, 1), "is 1 already"),
        "the frame before": Mistake(lambda: (IMPACT - 1, 1, 2, 0), "does not hang on that token"),
        "another place": Mistake(lambda: (IMPACT, 3, 3, 0), "is 0 already"),
        "another colour": Mistake(lambda: (IMPACT, 0, 1, 3), "still stand at the wall"),
        "row and column": Mistake(lambda: (IMPACT, 1, 0, 2), "still stand at the wall"),
        "no code": Mistake(lambda: (IMPACT, 0, 1), "four numbers"),
        "counted from 1": Mistake(lambda: (IMPACT, 4, 4, 0), "no row 4"),
    },
)


# What is trained


class Watch:
    """What a model writes while it is trained, drawn anew after some steps.

    Give it to `train(…, watch=…)`, and display its `picture`.

    Args:
        model: the one that is trained.
        text: a sentence. It is written about, with the same chance each time, after the first
            frame of a true clip.
        first: where the square is in that frame.
        every: steps from one picture to the next.

    Attributes:
        picture: a widget.
        stages: how many steps were done → (video, audio).
    """

    def __init__(self, model: TwinDecoder, text: str, first: int, every: int) -> None:
        self.model, self.every, self.title = model, every, text
        self.text = bounce.encode(text)
        self.video, self.audio = bounce.play(self.text, torch.tensor([first]))
        self.stages: dict[int, tuple[Tensor, Tensor]] = {}
        self.picture = LivePicture(self._stage(0), f"before training: {text}")

    def __call__(self, done: int) -> None:
        """Write and draw, if it is time."""
        if done % self.every == 0:
            self.picture.show(self._stage(done), f"after {done} steps: {self.title}")

    def _stage(self, done: int) -> Figure:
        video, audio = self.model.generate(
            self.text,
            video=self.video[:, :1],
            generator=torch.Generator().manual_seed(0),
            progress=False,
        )
        self.stages[done] = video[0], audio[0]
        return self.draw([done])

    def draw(self, steps: Sequence[int]) -> Figure:
        """What was written after so many steps, one below the other, and the truth."""
        rows = {f"after {done} steps": self.stages[done] for done in steps}
        return draw_clips({**rows, "the truth": (self.video[0], self.audio[0])})


# Pictures


def draw_clips(clips: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Clips by name, (video, audio) in codes, one below the other."""
    figure, axes = plt.subplots(
        len(clips), 1, figsize=(9, 1.8 * len(clips)), dpi=85, layout="constrained", squeeze=False
    )
    for ax, (name, (video, audio)) in zip(axes[:, 0], clips.items(), strict=True):
        plots.codes(video, audio, title=name, ax=ax)
    return figure


def whole_mask(model: TwinDecoder, words: int) -> Mask:
    """Who reads whom in one layer, all its attentions together: text, film and sound.

    Args:
        model: with attention between the towers.
        words: of the text.
    """
    masks = {pair: kinds[0].dense() for pair, kinds in model.masks.items()}
    video, audio = masks["video", "video"], masks["audio", "audio"]
    # Without the learned key, which is always there.
    film_reads, sound_reads = masks["video", "audio"][:, 1:], masks["audio", "video"][:, 1:]
    text = torch.ones(words, words, dtype=torch.bool)
    rows = [
        torch.cat([text, text.new_zeros(words, len(video) + len(audio))], 1),
        torch.cat([text.new_ones(len(video), words), video, film_reads], 1),
        torch.cat([text.new_ones(len(audio), words), sound_reads, audio], 1),
    ]
    ends = {name: (model.max_frames, 1, end.places) for name, end in model.ends.items()}
    return as_mask(torch.cat(rows), {"text": words, **ends})


def draw_changes(changes: Float[Tensor, "frame row column code"]) -> Figure:
    """For each place of a frame the highest probability of silence that a change there gives."""
    most = changes.amax(-1)
    figure, axes = plt.subplots(
        1, len(most), figsize=(3.1 * len(most), 3.4), dpi=85, layout="constrained"
    )
    film = scene()[1][0]
    for frame, ax in enumerate(axes):
        ax.imshow(most[frame], cmap="Greys", vmin=0, vmax=1)
        for y in range(bounce.SIZE):
            for x in range(bounce.SIZE):
                value = float(most[frame, y, x])
                ink = "white" if value > 0.5 else plots.INK
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
                if film[frame, y, x]:
                    corner = x - 0.45, y - 0.45
                    ax.add_patch(Rectangle(corner, 0.9, 0.9, fill=False, ec=plots.FOCUS, lw=3))
        ax.set(title=f"frame {frame}", xticks=range(bounce.SIZE), yticks=range(bounce.SIZE))
        ax.tick_params(length=0)
    return figure


# What the three kinds of block do


def one_block(model: TwinDecoder, kind: str) -> Callable[..., dict[str, Tensor]]:
    """The first block of a kind alone: text, video and audio in, both towers out.

    Args:
        model: has such a block.
        kind: a name from `BLOCK_TYPES`.
    """
    block = model.towers.sequence.blocks[model.towers.block_types.index(kind)]
    alone = ReversibleSequence([block])

    def run(text: Tensor, video: Tensor, audio: Tensor) -> dict[str, Tensor]:
        halves = {"x1": video, "x2": video, "m1": audio, "m2": audio}
        names = "context_mask", "video_mask", "audio_mask"
        inputs: dict[str, Tensor | None] = {"context": text, **dict.fromkeys(names)}
        out = alone(halves, inputs, reverse=False)
        return {"video": out["x1"] + out["x2"], "audio": out["m1"] + out["m2"]}

    return run


# What was found by `benchmarks/writing.py`

_SHOWN = {
    "frames from the first on": ("frames,\nfirst one given", "video"),
    "dubbed sound on impact": ("sounds on impact,\nfilm given", "audio"),
    "dubbed sound elsewhere": ("silence elsewhere,\nfilm given", "audio"),
}


def curve(modality: str) -> list[float]:
    """The loss of "video" or "audio" while the model that ships was trained, every 20 steps."""
    return results.one("twin decoder", 0, results.WRITING)["curves"][modality]


def draw_shares(runs: Sequence[str]) -> Axes:
    """What is right on held-out sentences, for trainings of these names with the first seed."""
    found = {run: results.one(run, 0, results.WRITING)["held out"] for run in runs}
    ax = plots.canvas(None, 8, 0.75 * len(runs) * len(_SHOWN) / 2 + 0.8)
    height = 0.8 / len(runs)
    for row, (what, (_, group)) in enumerate(_SHOWN.items()):
        for i, run in enumerate(runs):
            y, value = row + (i - (len(runs) - 1) / 2) * height, found[run][what]
            face = plots.COLOURS[group] if i == 0 else "white"
            hatch = ("", "//", "..")[i % 3]
            ax.barh(y, value, 0.9 * height, fc=face, ec=plots.COLOURS[group], hatch=hatch)
            ax.text(value + 0.01, y, f"{value:.2f}  {run}", va="center", color=plots.INK)
    ax.set_yticks(range(len(_SHOWN)), [name for name, _ in _SHOWN.values()])
    ax.set(xlim=(0, 1.35), ylim=(len(_SHOWN) - 0.5, -0.5), xticks=[0, 0.5, 1], xlabel="share")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
