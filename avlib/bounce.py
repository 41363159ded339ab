"""A small world to write about: a square bounces between four walls, and each hit is heard.

A sentence such as "a red square moves up and left" and the square's first place decide all that
follows, so whatever a model writes can be called right or wrong. Frames are 4 × 4 codes: 0 is empty
ground, 1 to 4 are the colours. Each frame has one code of sound: 0 is silence, 1 to 4 a hit of that
colour. A hit is heard in the frame in which the square stands at a wall that it moves towards; then
it turns around.

4 colours, 8 directions and 16 first places make 512 clips of 8 frames.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from math import tau

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avlib.checks import check_codes, check_counts
from avlib.data import Clip
from avlib.world import COLOURS as RGB
from avlib.world import FPS, PITCHES, SAMPLE_RATE

FRAMES, SIZE = 8, 4
COLOURS = ("red", "green", "blue", "yellow")
# In words → rows and columns moved in a frame.
DIRECTIONS = {
    "up": (-1, 0),
    "down": (1, 0),
    "left": (0, -1),
    "right": (0, 1),
    "up and left": (-1, -1),
    "up and right": (-1, 1),
    "down and left": (1, -1),
    "down and right": (1, 1),
}
CODES = 1 + len(COLOURS)  # of a place in a frame, and of a sound
PADDING = ""
WORDS = (PADDING, "a", *COLOURS, "square", "moves", "up", "down", "left", "right", "and")
LONGEST = 7  # words
# Sentences that no model was trained on: each of their words, but not together.
HELD_OUT = (
    "a red square moves up and left",
    "a green square moves right",
    "a blue square moves down and right",
    "a yellow square moves up",
)


def sentences() -> list[str]:
    """All 32, colour by colour."""
    return [f"a {colour} square moves {way}" for colour in COLOURS for way in DIRECTIONS]


def encode(texts: str | Sequence[str]) -> Int[Tensor, "b words"]:
    """Sentences as numbers of words in `WORDS`, padded with 0.

    Raises:
        TypeError: no text.
        ValueError: a word that is not in `WORDS`, or more than `LONGEST` of them.
    """
    texts = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(
                f"encode: got a {type(text).__name__}, wanted sentences; write {HELD_OUT[0]!r}"
            )
    codes = torch.zeros(len(texts), LONGEST, dtype=torch.long)
    for row, text in zip(codes, texts, strict=True):
        words = text.lower().split()
        for word in words:
            if word not in WORDS:
                near = get_close_matches(word, WORDS[1:], 1)
                hint = f"did you mean {near[0]!r}" if near else f"use {', '.join(WORDS[1:])}"
                raise ValueError(f"encode: {word!r} is no word of this world; {hint}")
        if len(words) > LONGEST:
            raise ValueError(f"encode: {text!r} has {len(words)} words; write {LONGEST} at most")
        row[: len(words)] = torch.tensor([WORDS.index(word) for word in words], dtype=torch.long)
    return codes


def decode(text: Int[Tensor, " words"]) -> str:
    """The sentence of such numbers.

    Raises:
        TypeError, ValueError: they are no codes of one sentence.
    """
    codes = check_codes("text", text, ("words",), len(WORDS), where="decode", empty=True)
    return " ".join(WORDS[code] for code in codes.tolist() if code)


def clips(
    texts: str | Sequence[str] | None = None,
) -> tuple[Int[Tensor, "b words"], Int[Tensor, "b t y x"], Int[Tensor, "b t 1"]]:
    """Text, frames and sounds of all clips of these sentences (by default all), 16 for each.

    The square begins at each place in turn, row by row.

    Raises:
        TypeError, ValueError: see `encode` and `play`.
    """
    texts = sentences() if texts is None else [texts] if isinstance(texts, str) else texts
    first = torch.arange(SIZE * SIZE).repeat(len(texts))
    text = encode([each for each in texts for _ in range(SIZE * SIZE)])
    return text, *play(text, first)


def play(
    text: Int[Tensor, "b words"], first: Int[Tensor, " b"], frames: int = FRAMES
) -> tuple[Int[Tensor, "b t y x"], Int[Tensor, "b t 1"]]:
    """What this world does from each first place (row · 4 + column) on: frames and sounds.

    Raises:
        ValueError: a text that is none of the `sentences`, or a place that is not there.
    """
    check_counts("play", frames=frames)
    if first.shape != text.shape[:1] or not ((first >= 0) & (first < SIZE * SIZE)).all():
        raise ValueError(
            f"play: first is {first.tolist()}, wanted a place for each of {len(text)} texts; count "
            f"them row by row from 0 to {SIZE * SIZE - 1}"
        )
    colours, ways = [], []
    for said in map(decode, text):
        who, _, how = said.removeprefix("a ").partition(" square moves ")
        if who not in COLOURS or how not in DIRECTIONS:
            raise ValueError(
                f"play: {said!r} is no sentence of this world; write it as {HELD_OUT[0]!r}"
            )
        colours.append(1 + COLOURS.index(who))
        ways.append(DIRECTIONS[how])
    colour = text.new_tensor(colours, dtype=torch.long)
    way = text.new_tensor(ways, dtype=torch.long).view(-1, 2)
    place = torch.stack([first // SIZE, first % SIZE], 1).to(way)
    clip = torch.arange(len(text), device=text.device)
    video = way.new_zeros(len(text), frames, SIZE, SIZE)
    audio = way.new_zeros(len(text), frames, 1)
    for frame in range(frames):
        video[clip, frame, place[:, 0], place[:, 1]] = colour
        hit = ((place == 0) & (way < 0)) | ((place == SIZE - 1) & (way > 0))
        audio[:, frame, 0] = torch.where(hit.any(1), colour, 0)
        way = torch.where(hit, -way, way)
        place = place + way
    return video, audio


def right(
    text: Int[Tensor, "b words"], video: Int[Tensor, "b t y x"], audio: Int[Tensor, "b t 1"]
) -> tuple[Bool[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Which frames and which sounds are what this world makes of the sentence and the first frame.

    A first frame is right if it shows one square in the colour of the sentence; if not, nothing
    that follows is.

    Raises:
        ValueError: shapes that are not those of `play`, or see there.
    """
    shape = video.shape[:2]
    if video.shape != (len(text), *shape[1:], SIZE, SIZE) or audio.shape != (*shape, 1):
        raise ValueError(
            f"right: got {len(text)} texts, video of shape {tuple(video.shape)} and audio of shape "
            f"{tuple(audio.shape)}, wanted (b, t, {SIZE}, {SIZE}) and (b, t, 1); give as many "
            "frames of each, for each text"
        )
    first = (video[:, 0] != 0).flatten(1).long().argmax(1)
    frames, sounds = play(text, first, video.shape[1])
    begun = (frames[:, 0] == video[:, 0]).flatten(1).all(1)
    return (
        begun[:, None] & (frames == video).flatten(2).all(2),
        begun[:, None] & (sounds == audio).all(2),
    )


def render(video: Int[Tensor, "t y x"], audio: Int[Tensor, "t 1"], scale: int = 16) -> Clip:
    """One clip to watch and hear: codes as pixels and as notes.

    Args:
        video: codes of its frames.
        audio: codes of its sounds; a hit is a note that fades, in the pitch of its colour.
        scale: pixels along each side of a place.

    Raises:
        TypeError, ValueError: no codes of one clip of this world.
    """
    check_counts("render", scale=scale)
    video = check_codes("video", video, ("frames", "rows", "columns"), CODES, where="render").cpu()
    rgb = torch.cat([torch.full((1, 3), 0.1), torch.tensor(RGB)])
    pixels = rgb[video].permute(3, 0, 1, 2)
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return Clip(pixels, waveform(audio), float(FPS), SAMPLE_RATE)


def waveform(audio: Int[Tensor, "t 1"]) -> Float[Tensor, " samples"]:
    """Codes of sounds as a waveform in [-1, 1] at 8 kHz, an eighth of a second for each frame."""
    audio = check_codes("audio", audio, ("frames", "1"), CODES, where="render").cpu()
    if audio.shape[1] != 1:
        raise ValueError(
            f"render: audio has {audio.shape[1]} codes for each frame, wanted one; use audio[:, :1]"
        )
    time = torch.arange(SAMPLE_RATE // FPS) / SAMPLE_RATE
    notes = (tau * torch.tensor([0.0, *PITCHES])[:, None] * time).sin() * (-30 * time).exp() * 0.6
    return notes[audio[:, 0]].flatten()
