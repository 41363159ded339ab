"""The world with known answers: each clip by itself, and all that is asked is seen or heard."""

import csv
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from avlib.data import load_clip
from avlib.examples import collate
from avlib.world import (
    COLOURS,
    FACTORS,
    FPS,
    HEARD,
    LABELS,
    PITCHES,
    SAMPLE_RATE,
    SEEN,
    SHAPES,
    World,
    best_accuracy,
    every_case,
    export,
    joint,
)

CLIPS = 200


@pytest.fixture(scope="module")
def world():
    return World(CLIPS)


@pytest.fixture(scope="module")
def audio(world):
    return world.audio(torch.arange(CLIPS))


@pytest.fixture(scope="module")
def video(world):
    return world.video(torch.arange(CLIPS))


def same(one, other):
    equal = torch.equal(one.audio, other.audio) and torch.equal(one.video, other.video)
    return equal and one.labels == other.labels


# One clip


def test_a_clip_does_not_depend_on_which_are_made_with_it(world, audio, video):
    for rows in ([7], [7, 7], [3, 199, 7, 0], torch.randperm(CLIPS).tolist(), range(5, 9)):
        clips = world.__getitems__(rows)
        assert len(clips) == len(rows)
        for row, clip in zip(rows, clips, strict=True):
            assert torch.equal(clip.audio, audio[row])
            assert torch.equal(clip.video, video[row])
            assert clip.labels == {name: int(values[row]) for name, values in world.labels.items()}


def test_shapes_ranges_and_types(world, audio, video):
    assert len(world) == CLIPS
    assert audio.shape == (CLIPS, 8000)
    assert video.shape == (CLIPS, 3, 8, 16, 16)
    assert audio.dtype == video.dtype == torch.float32
    assert audio.abs().max() <= 1
    assert video.min() >= 0
    assert video.max() <= 1
    assert audio.abs().amax(1).min() > 0.2  # nobody is silent
    clip = world[3]
    assert clip.audio.shape == (8000,)
    assert clip.video.shape == (3, 8, 16, 16)
    assert list(clip.labels) == list(LABELS)
    assert {type(number) for number in clip.labels.values()} == {int}
    for name, values in world.labels.items():
        assert values.unique().tolist() == list(range(LABELS[name]))


def test_the_same_seed_gives_the_same_world_and_another_gives_another():
    one, again, other = World(40), World(40, seed=0), World(40, seed=1)
    assert all(same(*pair) for pair in zip(one, again, strict=True))
    assert not any(torch.equal(a.audio, b.audio) for a, b in zip(one, other, strict=True))
    assert not any(torch.equal(a.video, b.video) for a, b in zip(one, other, strict=True))
    assert all((one.labels[name] != other.labels[name]).any() for name in LABELS)


def test_the_callers_chance_is_left_alone():
    before = torch.get_rng_state()
    World(3)[1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", FACTORS)
def test_only_what_is_heard_changes_the_sound_and_only_what_is_seen_the_pictures(name):
    world, changed = World(60), World(60)
    for step in range(1, FACTORS[name]):
        changed.factors[name] = (world.factors[name] + step) % FACTORS[name]
        rows = torch.arange(60)
        for heard, one, other in (
            (name in HEARD, world.audio(rows), changed.audio(rows)),
            (name in SEEN, world.video(rows), changed.video(rows)),
        ):
            differs = (one != other).flatten(1).any(1)
            assert differs.tolist() == [heard] * 60


def test_single_indices_are_those_of_a_list(no_shape_checks):
    world = World(5)
    clips = list(world)
    assert len(clips) == 5
    for index in range(-5, 5):
        for kind in (int, np.int64, torch.tensor):
            assert same(world[kind(index)], clips[index])
    for index in (5, -6, 10**30):
        with pytest.raises(IndexError):
            world[index]


@pytest.mark.parametrize("index", [slice(0, 2), 1.0, "1", None, [1, 2]])
def test_what_is_no_index_is_refused(index, no_shape_checks):
    with pytest.raises((TypeError, RuntimeError)):
        World(5)[index]


@pytest.mark.parametrize("clips", [0, -3, 1.5, "3", True, None])
def test_a_world_of_no_whole_number_of_clips_is_refused(clips, no_shape_checks):
    with pytest.raises(ValueError, match=f"World: clips is {clips!r}; give a positive whole"):
        World(clips)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_the_same_clips(world, workers, monkeypatch):
    asked = []
    at_once = World.__getitems__
    monkeypatch.setattr(World, "__getitems__", lambda w, rows: asked.append(1) or at_once(w, rows))
    some = Subset(world, range(0, 50, 5))
    for data, rows in ((world, range(CLIPS)), (some, range(0, 50, 5))):
        loader = DataLoader(data, 16, collate_fn=collate, num_workers=workers)
        wanted = list(rows)
        for batch in loader:
            for i in range(len(batch)):
                clip = world[wanted.pop(0)]
                assert torch.equal(batch.inputs["audio"][i], clip.audio)
                assert torch.equal(batch.inputs["video"][i], clip.video)
                assert {
                    name: int(labels[i]) for name, labels in batch.labels.items()
                } == clip.labels
        assert not wanted
    assert workers or len(asked) == 13 + CLIPS + 1 + 10  # by batches, and ours one by one


# What is asked


def test_labels_follow_from_the_factors():
    world = World(2000)
    for i in range(2000):
        factors = {name: int(values[i]) for name, values in world.factors.items()}
        labels = {name: int(values[i]) for name, values in world.labels.items()}
        assert labels == {
            **factors,
            "xor": int((factors["tone"] == 1) != (factors["motion"] == 1)),
            "sync": int(factors["click"] == factors["flash"]),
        }


@pytest.fixture(scope="module")
def many():
    """Enough clips to count: a share is known within three thousandths."""
    return World(100_000, seed=3)


def share(condition):
    return float(condition.double().mean())


def test_xor_is_even_whoever_knows_one_side(many):
    xor = many.labels["xor"]
    for known in (HEARD, SEEN):
        for name in known:
            for value in range(FACTORS[name]):
                assert share(xor[many.factors[name] == value]) == pytest.approx(0.5, abs=0.02)
    both = many.factors["tone"] * 2 + many.factors["motion"]
    assert [share(xor[both == case]) for case in range(4)] == [0, 1, 1, 0]


def test_click_and_flash_fall_together_in_half_of_all_clips(many):
    click, flash, sync = (many.labels[name] for name in ("click", "flash", "sync"))
    for value in range(4):
        assert share(click == value) == pytest.approx(1 / 4, abs=0.01)
        assert share(flash == value) == pytest.approx(1 / 4, abs=0.01)
        assert share(sync[click == value]) == pytest.approx(1 / 2, abs=0.02)
        assert share(sync[flash == value]) == pytest.approx(1 / 2, abs=0.02)
        for other in set(range(4)) - {value}:
            assert share(flash[click == value] == other) == pytest.approx(1 / 6, abs=0.02)


def test_all_other_factors_are_independent(many):
    names = list(FACTORS)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if {one, other} == {"click", "flash"}:
                continue
            for a, b in product(range(FACTORS[one]), range(FACTORS[other])):
                both = share((many.factors[one] == a) & (many.factors[other] == b))
                assert both == pytest.approx(1 / FACTORS[one] / FACTORS[other], abs=0.007)


def test_nothing_left_to_chance_tells_a_label():
    world = World(20_000, seed=5)
    tables = {name: t for name, t in vars(world).items() if isinstance(t, torch.Tensor)}
    assert len(tables) == 9
    chances = torch.cat([t.double().reshape(len(world), -1) for t in tables.values()], 1).T
    assert len(chances) == 11
    for numbers in chances:
        assert numbers.std() > 0
        for name, labels in world.labels.items():
            for value in range(LABELS[name]):
                mine, rest = numbers[labels == value], numbers[labels != value]
                error = (mine.var() / len(mine) + rest.var() / len(rest)).sqrt()
                assert (mine.mean() - rest.mean()).abs() < 5 * error


# Each factor can be read off the clip, by a simple rule


def spectrum(wave):
    """Loudness of each whole frequency, of one second."""
    return torch.fft.rfft(wave).abs()


def heard_hum(wave):
    """Pitch: the loudest of four fundamentals. Instrument: which two harmonics sound with it."""
    loud = spectrum(wave)
    pitch = max(range(4), key=lambda i: loud[round(PITCHES[i])])
    first, second, third = (loud[round(PITCHES[pitch]) * times] for times in (1, 2, 3))
    return pitch, int(second > first / 3) + 2 * int(third > first / 3)


def heard_tone(wave):
    """Whether the loudest high frequency is higher at the end than at the beginning."""
    places = []
    for part in wave.split(1000):
        loud = spectrum(part)
        loud[: 2300 // 8] = 0
        loud[3700 // 8 :] = 0
        places.append(int(loud.argmax()))
    return int(sorted(places[4:])[2] > sorted(places[:4])[2])


def heard_click(wave):
    """The quarter with most of what is higher than hum and tone."""
    high = torch.fft.rfft(wave)
    high[:3700] = 0
    return int(torch.fft.irfft(high).view(4, 2000).square().sum(1).argmax())


def test_every_heard_factor_can_be_heard(world, audio):
    for i, wave in enumerate(audio):
        heard = dict(zip(("pitch", "instrument"), heard_hum(wave), strict=True))
        heard |= {"tone": heard_tone(wave), "click": heard_click(wave)}
        assert heard == {name: int(world.factors[name][i]) for name in HEARD}


def seen_sprite(film):
    """Where there is colour; the ground is grey."""
    return film.amax(0) - film.amin(0) > 0.4


def templates():
    """Each shape at each place, as a boolean picture."""
    for shape, left, top in product(range(4), range(16), range(12)):
        drawn = torch.zeros(16, 16, dtype=torch.bool)
        for y, row in enumerate(SHAPES[shape]):
            for x, dot in enumerate(row):
                drawn[top + y, (left + x) % 16] = dot == "#"
        yield shape, drawn


def seen_shape(picture, drawn):
    """The template that covers exactly the coloured pixels at some place."""
    (shape,) = {shape for shape, template in drawn if torch.equal(template, picture)}
    return shape


def seen_colour(film, sprite):
    colour = film[:, sprite].mean(1)
    return min(range(4), key=lambda i: float((colour - torch.tensor(COLOURS[i])).abs().sum()))


def seen_motion(sprite):
    """The way in which each picture is the one before, moved by a pixel."""
    (step,) = {
        step
        for step in (-1, 1)
        if all(torch.equal(sprite[t + 1], sprite[t].roll(step, 1)) for t in range(7))
    }
    return int(step > 0)


def test_every_seen_factor_can_be_seen(world, video):
    drawn = list(templates())
    for i, film in enumerate(video):
        sprite = seen_sprite(film)
        seen = {
            "shape": seen_shape(sprite[0], drawn),
            "instrument": seen_colour(film, sprite),
            "motion": seen_motion(sprite),
            "flash": int(film.sum((0, 2, 3)).argmax()) // 2,
        }
        assert seen == {name: int(world.factors[name][i]) for name in SEEN}


# What can be known at best


def votes(factors, answers, known):
    """How often the majority is right, in other clips than those that voted."""
    keys = list(zip(*(factors[name].tolist() for name in known), strict=True))
    keys, answers = keys or [()] * len(answers), answers.tolist()
    half = len(answers) // 2
    ballots = defaultdict(Counter)
    for key, answer in zip(keys[:half], answers[:half], strict=True):
        ballots[key][answer] += 1
    elected = {key: ballot.most_common(1)[0][0] for key, ballot in ballots.items()}
    pairs = zip(keys[half:], answers[half:], strict=True)
    return sum(elected.get(key) == answer for key, answer in pairs) / half


@pytest.mark.parametrize(
    "known", [(), ("click",), ("tone", "shape"), HEARD, SEEN, FACTORS], ids=" ".join
)
def test_the_best_accuracy_is_that_of_a_majority_vote(many, known):
    for label in LABELS:
        vote = votes(many.factors, many.labels[label], tuple(known))
        assert best_accuracy(label, known) == pytest.approx(vote, abs=0.01)


def test_the_best_accuracy_of_an_answer_of_ones_own(many):
    def answer(factors):
        return (factors["pitch"] * 3 + factors["shape"] * factors["flash"]) % 5

    for known in ((), ("pitch", "shape"), HEARD, SEEN, FACTORS):
        vote = votes(many.factors, answer(many.factors), tuple(known))
        found = best_accuracy(answer(every_case().factors), known)
        assert found == pytest.approx(vote, abs=0.01)


EXACT = [
    *((name, HEARD, 1.0) for name in HEARD),
    *((name, SEEN, 1.0) for name in SEEN),
    *((name, FACTORS, 1.0) for name in LABELS),
    ("pitch", SEEN, 1 / 4),
    ("tone", SEEN, 1 / 2),
    ("shape", HEARD, 1 / 4),
    ("motion", HEARD, 1 / 2),
    ("click", SEEN, 1 / 2),
    ("flash", HEARD, 1 / 2),
    ("flash", (), 1 / 4),
    ("instrument", ("pitch", "shape"), 1 / 4),
    ("xor", HEARD, 1 / 2),
    ("xor", SEEN, 1 / 2),
    ("xor", ("tone", "motion"), 1.0),
    ("sync", HEARD, 1 / 2),
    ("sync", SEEN, 1 / 2),
    ("sync", (), 1 / 2),
    ("sync", ("click", "flash"), 1.0),
]


@pytest.mark.parametrize(("label", "known", "wanted"), EXACT)
def test_best_accuracies_that_are_known_exactly(label, known, wanted):
    assert best_accuracy(label, known) == pytest.approx(wanted, abs=1e-7)


def test_every_case_is_there_once_with_its_probability():
    cases = every_case()
    rows = torch.stack(list(cases.factors.values()), 1)
    assert rows.shape == (4096, 8 - 1)
    assert len(rows.unique(dim=0)) == 4096
    for i in range(0, 4096, 37):
        sync = cases.factors["click"][i] == cases.factors["flash"][i]
        # pitch, instrument, tone, shape, motion and click are even; the flash is as likely there
        # as in the three other quarters together
        wanted = 1 / (4 * 4 * 2 * 4 * 2 * 4) * (1 / 2 if sync else 1 / 6)
        assert float(cases.probability[i]) == pytest.approx(wanted, rel=1e-7)
        assert bool(cases.labels["sync"][i]) == sync
    assert float(cases.probability.sum()) == pytest.approx(1, abs=1e-12)


def test_the_joint_table_counts_every_case():
    cases = every_case()
    table = joint("flash", ("motion", "click"))
    assert table.shape == (8, 4)
    wanted = torch.zeros(8, 4, dtype=torch.float64)
    for i in range(len(cases.probability)):
        motion, click, flash = (int(cases.factors[n][i]) for n in ("motion", "click", "flash"))
        wanted[motion * 4 + click, flash] += cases.probability[i]
    torch.testing.assert_close(table, wanted)
    assert float(table.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("answers", "known", "message"),
    [
        ("colour", HEARD, "joint: no label 'colour'; give one of .*'pitch'"),
        (
            torch.zeros(7, dtype=torch.long),
            HEARD,
            r"joint: answers have shape \(7,\), wanted one for each of 4096 cases; compute them",
        ),
        ("pitch", ("pitch", "xor"), r"joint: \['xor'\] are no factors; give some of .*'shape'"),
    ],
)
def test_questions_that_make_no_sense_are_refused(answers, known, message, no_shape_checks):
    with pytest.raises(ValueError, match=message):
        best_accuracy(answers, known)


# For people


@pytest.mark.parametrize("scale", [1, 3, 16])
def test_a_clip_for_people_is_the_same_enlarged(world, video, audio, scale):
    clip = world.clip(-4, scale)
    assert clip.video.shape == (3, 8, 16 * scale, 16 * scale)
    for y, x in product(range(scale), range(scale)):
        assert torch.equal(clip.video[:, :, y::scale, x::scale], video[-4])
    assert torch.equal(clip.audio, audio[-4])
    assert (clip.fps, clip.sample_rate) == (FPS, SAMPLE_RATE)


def test_exported_clips_can_be_read_back(world, tmp_path):
    folder = tmp_path / "deep" / "inside"
    assert export(world, folder, [5, 0, 123]) == folder / "labels.csv"
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("file") for row in rows] == ["00005.mp4", "00000.mp4", "00123.mp4"]
    for i, row in zip([5, 0, 123], rows, strict=True):
        wanted = world[i]
        assert list(row) == list(LABELS)
        assert {name: int(value) for name, value in row.items()} == wanted.labels
        clip = load_clip(folder / f"{i:05}.mp4", size=16)
        assert (clip.fps, clip.sample_rate) == (FPS, SAMPLE_RATE)
        assert clip.video.shape == wanted.video.shape
        assert (clip.video - wanted.video).abs().mean() < 0.03
        audio = clip.audio[: len(wanted.audio)]
        assert torch.corrcoef(torch.stack([audio, wanted.audio]))[0, 1] > 0.99
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000.mp4",
        "00005.mp4",
        "00123.mp4",
        "labels.csv",
    ]


def test_by_default_all_clips_are_exported_over_those_that_were_there(tmp_path):
    small, other = World(3), World(3, seed=1)
    export(other, tmp_path, scale=2)
    table = export(small, str(tmp_path), scale=2)
    assert len(table.read_text().splitlines()) == 4
    for i in range(3):
        video = load_clip(tmp_path / f"{i:05}.mp4", size=16).video
        assert (video - small[i].video).abs().mean() < 0.04
        assert (video - other[i].video).abs().mean() > 0.06
