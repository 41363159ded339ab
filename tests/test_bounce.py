"""The world of bouncing squares: what it shows and sounds like, what is right in it, its words."""

from collections import Counter
from itertools import product

import pytest
import torch

from avlib import bounce, load_clip, save_clip
from avlib.world import COLOURS, FPS, PITCHES, SAMPLE_RATE

WAYS = {"up": (0, -1), "down": (0, 1), "left": (1, -1), "right": (1, 1)}


def simulated(sentence, row, column, frames=8):
    """Frames as lists of rows and sounds, by walking from wall to wall."""
    _, colour, _, _, *way = sentence.split()
    code = 1 + ["red", "green", "blue", "yellow"].index(colour)
    at, going = [row, column], [0, 0]
    for word in way:
        if word != "and":
            axis, sign = WAYS[word]
            going[axis] = sign
    film, sound = [], []
    for _ in range(frames):
        film.append([[code if [y, x] == at else 0 for x in range(4)] for y in range(4)])
        heard = 0
        for axis in (0, 1):
            if not 0 <= at[axis] + going[axis] <= 3:  # it would leave
                going[axis] = -going[axis]
                heard = code
            at[axis] += going[axis]
        sound.append([heard])
    return film, sound


@pytest.fixture(scope="module")
def everything():
    return bounce.clips()


def test_all_clips_are_what_a_slow_simulation_does(everything):
    starts = product(bounce.sentences(), range(4), range(4))
    for (sentence, row, column), text, video, audio in zip(starts, *everything, strict=True):
        film, sound = simulated(sentence, row, column)
        assert bounce.decode(text) == sentence
        assert video.tolist() == film
        assert audio.tolist() == sound


def test_there_are_512_clips_and_no_two_are_alike(everything):
    text, video, audio = everything
    assert len(text) == 4 * 8 * 16 == 512
    assert text.shape == (512, 7)
    assert video.shape == (512, 8, 4, 4)
    assert audio.shape == (512, 8, 1)
    whole = torch.cat([text, video.flatten(1), audio.flatten(1)], 1)
    assert len(whole.unique(dim=0)) == 512
    # Without words: in a corner three ways look and sound alike.
    assert len(whole[:, 7:].unique(dim=0)) == 480
    assert len(set(bounce.sentences())) == 32


def test_a_hit_is_heard_at_a_wall_before_it_turns_around():
    text = bounce.encode(["a blue square moves right"])
    video, audio = bounce.play(text, torch.tensor([5]))
    assert video[0, :, 1].argmax(-1).tolist() == [1, 2, 3, 2, 1, 0, 1, 2]
    assert audio[0, :, 0].tolist() == [0, 0, 3, 0, 0, 3, 0, 0]
    text = bounce.encode(["a green square moves up and left"])
    video, audio = bounce.play(text, torch.tensor([1]), frames=6)
    places = video[0].flatten(1).argmax(-1)
    assert [divmod(place, 4) for place in places.tolist()] == [
        (0, 1), (1, 0), (2, 1), (3, 2), (2, 3), (1, 2)
    ]  # fmt: skip
    assert audio[0, :, 0].tolist() == [2, 2, 0, 2, 2, 0]


def test_clips_of_some_sentences_are_those_among_all(everything):
    for texts in ("a red square moves down", ["a red square moves down"]):
        for some, every in zip(bounce.clips(texts), everything, strict=True):
            assert torch.equal(some, every[16:32])
    assert [len(part) for part in bounce.clips([])] == [0, 0, 0]


# Right and wrong


def test_the_truth_is_right(everything):
    frames, sounds = bounce.right(*everything)
    assert frames.all()
    assert sounds.all()


def test_each_wrong_code_is_found(everything):
    text, video, audio = (part[::37].clone() for part in everything)
    clip = torch.arange(len(text))
    for frame in range(1, 8):
        place = torch.randint(4, (2, len(text)))
        wrong = video.clone()
        wrong[clip, frame, place[0], place[1]] += 1
        wrong[wrong == 5] = 0
        frames, sounds = bounce.right(text, wrong, audio)
        assert (~frames).nonzero().tolist() == [[i, frame] for i in clip.tolist()]
        assert sounds.all()
    for frame in range(8):
        wrong = audio.clone()
        wrong[:, frame] = (wrong[:, frame] + 1) % 5
        frames, sounds = bounce.right(text, video, wrong)
        assert frames.all()
        assert (~sounds).nonzero().tolist() == [[i, frame] for i in clip.tolist()]


@pytest.mark.parametrize("fault", ["colour", "nothing", "two"])
def test_after_a_wrong_first_frame_nothing_is_right(everything, fault):
    text, video, audio = (part[40:44].clone() for part in everything)
    if fault == "colour":
        video[video > 0] = 1 + video[video > 0] % 4
    elif fault == "nothing":
        video[:, 0] = 0
    else:
        video[:, 0, 3, 3] = video[:, 0].amax((1, 2))  # and the rest goes on as from the first
    for part in bounce.right(text, video, audio):
        assert not part.any()


def test_a_square_may_begin_elsewhere(everything):
    text, video, audio = everything
    here = slice(0, 16)
    for shift in (1, 7):
        order = (torch.arange(16) + shift) % 16
        for part in bounce.right(text[here], video[here][order], audio[here][order]):
            assert part.all()


def test_shorter_clips_are_judged_too(everything):
    text, video, audio = everything
    for part in bounce.right(text, video[:, :3], audio[:, :3]):
        assert part.shape == (512, 3)
        assert part.all()


# Words


def test_sentences_become_numbers_and_sentences_again():
    codes = bounce.encode(bounce.sentences())
    assert codes.shape == (32, bounce.LONGEST)
    assert [bounce.decode(row) for row in codes] == bounce.sentences()
    assert int(codes.max()) == len(bounce.WORDS) - 1
    assert torch.equal(codes != 0, codes.cumsum(1).diff(1, prepend=codes.new_zeros(32, 1)) != 0)
    assert bounce.encode("A  Red square moves UP").tolist() == [[1, 2, 6, 7, 8, 0, 0]]
    assert bounce.encode(["", "a"]).tolist() == [[0] * 7, [1] + [0] * 6]
    assert bounce.encode([]).shape == (0, 7)


def test_words_and_sentences_that_were_held_out_are_known():
    assert set(bounce.HELD_OUT) < set(bounce.sentences())
    rest = [text.split() for text in bounce.sentences() if text not in bounce.HELD_OUT]
    seen = Counter(word for words in rest for word in words)
    assert set(seen) == set(bounce.WORDS) - {bounce.PADDING}
    for text in bounce.HELD_OUT:
        assert set(text.split()) <= set(seen)
    assert {text.split()[1] for text in bounce.HELD_OUT} == set(bounce.COLOURS)
    # Each way that is held out is shown in the other colours.
    for text in bounce.HELD_OUT:
        _, colour, *way = text.split()
        assert {words[1] for words in rest if words[2:] == way} == {*bounce.COLOURS} - {colour}


# To watch and to hear


def test_places_become_pixels(everything):
    _, video, audio = everything
    clip = bounce.render(video[70], audio[70], scale=3)
    assert clip.video.shape == (3, 8, 12, 12)
    assert (clip.fps, clip.sample_rate) == (FPS, SAMPLE_RATE)
    for frame, row, column in product(range(8), range(4), range(4)):
        pixels = clip.video[:, frame, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        code = int(video[70, frame, row, column])
        colour = torch.tensor(COLOURS[code - 1] if code else (0.1, 0.1, 0.1))
        assert torch.equal(pixels, colour[:, None, None].expand(3, 3, 3))


def test_hits_become_notes_in_their_eighths():
    audio = torch.tensor([[0], [1], [0], [2], [3], [0], [4], [0]])
    eighths = bounce.waveform(audio).view(8, 1000)
    assert eighths.abs().max() <= 1
    for (code,), eighth in zip(audio.tolist(), eighths, strict=True):
        if code == 0:
            assert not eighth.any()
            continue
        spectrum = torch.fft.rfft(eighth).abs()
        assert abs(int(spectrum.argmax()) * 8 - PITCHES[code - 1]) <= 8
        assert eighth[:250].square().sum() > 10 * eighth[-250:].square().sum()
        assert eighth.abs().max() > 0.3
        assert eighth[0] == 0  # no click
    assert torch.equal(bounce.render(torch.zeros(8, 4, 4).long(), audio).audio, eighths.flatten())


def test_a_clip_is_saved_and_loaded(everything, tmp_path):
    _, video, audio = everything
    clip = bounce.render(video[100], audio[100])
    save_clip(tmp_path / "clip.mp4", clip)
    loaded = load_clip(tmp_path / "clip.mp4")
    assert loaded.video.shape == (3, 8, 64, 64)
    assert (loaded.fps, loaded.sample_rate) == (FPS, SAMPLE_RATE)
    seen = loaded.video.unflatten(2, (4, 16)).unflatten(4, (4, 16))[:, :, :, 6:10, :, 6:10]
    codes = torch.tensor(((0.1, 0.1, 0.1), *COLOURS))
    away = (seen.mean((3, 5))[..., None] - codes.T[:, None, None, None]).square().sum(0)
    assert torch.equal(away.argmin(-1), video[100])
    loud = loaded.audio[:8000].view(8, 1000)[:, :500].square().mean(1) > 1e-3
    assert loud.tolist() == (audio[100, :, 0] > 0).tolist()


# Wrong calls


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bounce.encode("a gren square"), ValueError, "encode: 'gren' is no word of this w"),
        (lambda: bounce.encode("a gren square"), ValueError, "did you mean 'green'"),
        (lambda: bounce.encode("xyzzy"), ValueError, "'xyzzy' is no word .*; use a, red, green"),
        (
            lambda: bounce.encode(" ".join(["a"] * 8)),
            ValueError,
            "encode: 'a a .*' has 8 words; write 7 at most",
        ),
        (lambda: bounce.encode(None), TypeError, "encode: got a NoneType, wanted sentences; write"),
        (lambda: bounce.encode([1]), TypeError, "encode: got a int, wanted sentences; write 'a"),
        (
            lambda: bounce.clips("a red square"),
            ValueError,
            "play: 'a red square' is no sentence of this world; write it as 'a red square moves",
        ),
        (
            lambda: bounce.clips("a red red square moves up"),
            ValueError,
            "'a red red square moves up' is no sentence",
        ),
        (
            lambda: bounce.clips("a red square moves left and up"),
            ValueError,
            "'a red square moves left and up' is no sentence",
        ),
        (
            lambda: bounce.right(*(0 * part[:1] for part in bounce.clips())),
            ValueError,
            "play: '' is no sentence",
        ),
        (
            lambda: bounce.play(bounce.encode(bounce.HELD_OUT), torch.tensor([0, 1, 2, 16])),
            ValueError,
            r"first is \[0, 1, 2, 16\], wanted a place for each of 4 texts; .* from 0 to 15",
        ),
        (
            lambda: bounce.play(bounce.encode(bounce.HELD_OUT), torch.tensor([-1] * 4)),
            ValueError,
            r"first is \[-1, -1, -1, -1\]",
        ),
        (
            lambda: bounce.play(bounce.encode(bounce.HELD_OUT), torch.tensor([1])),
            ValueError,
            r"first is \[1\], wanted a place for each of 4 texts",
        ),
        (
            lambda: bounce.play(bounce.encode("a"), torch.tensor([1]), 1.5),
            ValueError,
            "play: frames is 1.5; give a positive whole number",
        ),
        (
            lambda: bounce.right(bounce.clips()[0][:2], *(part[:3] for part in bounce.clips()[1:])),
            ValueError,
            r"right: got 2 texts, video of shape \(3, 8, 4, 4\) and audio of shape \(3, 8, 1\)",
        ),
        (
            lambda: bounce.render(torch.zeros(8, 4, 4).long(), torch.zeros(8, 1).long(), 0),
            ValueError,
            "render: scale is 0; give a positive whole",
        ),
        (
            lambda: bounce.render(torch.full((8, 4, 4), 5), torch.zeros(8, 1).long()),
            ValueError,
            "render: video has the code 5, there are 5, counted from 0",
        ),
        (
            lambda: bounce.render(torch.zeros(1, 8, 4, 4).long(), torch.zeros(8, 1).long()),
            ValueError,
            r"render: video has shape \(1, 8, 4, 4\), wanted \(frames, rows, columns\)",
        ),
        (
            lambda: bounce.waveform(torch.zeros(8, 1)),
            TypeError,
            "render: audio is torch.float32, wanted whole numbers",
        ),
    ],
)  # fmt: skip
def test_what_is_not_of_this_world(no_shape_checks, call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_codes_of_small_types_are_rendered(no_shape_checks):
    video, audio = torch.randint(5, (8, 4, 4)), torch.randint(5, (8, 1))
    wanted = bounce.render(video, audio)
    found = bounce.render(video.byte(), audio.int())
    assert torch.equal(found.video, wanted.video)
    assert torch.equal(found.audio, wanted.audio)
