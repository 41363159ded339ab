"""Batches: what is padded, what is left out, and that no model sees the padding."""

import numpy as np
import pytest
import torch

from avlib.examples import UNKNOWN, Batch, Example, collate
from avlib.objective import Objective
from avlib.trained import small_zorro
from avlib.world import World


def example(samples=None, frames=None, size=(4, 6), **labels):
    """A clip of chance; a modality is left out where it has no length."""
    audio = None if samples is None else torch.rand(samples) * 2 - 1
    video = None if frames is None else torch.rand(3, frames, *size)
    return Example(audio, video, labels)


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


# Side by side


def test_equal_clips_are_stacked_without_lengths():
    examples = [example(5, 2, kind=k) for k in (1, 0, 2)]
    batch = collate(examples)
    assert list(batch.inputs) == ["audio", "video"]
    assert len(batch) == 3
    for i, one in enumerate(examples):
        assert torch.equal(batch.inputs["audio"][i], one.audio)
        assert torch.equal(batch.inputs["video"][i], one.video)
    assert batch.labels["kind"].tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("samples", "frames"),
    [
        ([5, 3, 1], [2, 4, 6]),
        ([5, None, 7], [4, 2, None]),
        ([None, 3], [None, 2]),
        ([None, 3, 4], [2, None, None]),
        ([0, 3], [2, 0]),
        ([2, 3], [4, 4]),
        ([3, 3], [None, 4]),
        ([None, 9], [4, 4]),
    ],
)
def test_shorter_and_missing_clips_are_padded_with_zeros_and_lengths_say_so(samples, frames):
    examples = [example(s, f) for s, f in zip(samples, frames, strict=True)]
    batch = collate(examples)
    for name, wanted in (("audio", samples), ("video", frames)):
        wanted = [length or 0 for length in wanted]
        lengths = batch.inputs.get(f"{name}_lengths")
        assert (lengths is None) == (len(set(wanted)) == 1)
        assert lengths is None or lengths.tolist() == wanted
        for i, length in enumerate(wanted):
            row, alone = batch.inputs[name][i], getattr(examples[i], name)
            row = row if name == "audio" else row.transpose(0, 1)  # frames come first
            assert len(row) == max(wanted)
            if length:
                assert torch.equal(row[:length], alone if name == "audio" else alone.movedim(1, 0))
            assert not row[length:].any()
        assert batch.has(name).tolist() == [length > 0 for length in wanted]


@pytest.mark.parametrize("nothing", [None, 0])
@pytest.mark.parametrize("name", ["audio", "video"])
def test_a_modality_that_no_clip_has_is_left_out(name, nothing):
    lengths = {"samples": [5, 3], "frames": [2, 4]}
    lengths["samples" if name == "audio" else "frames"] = [nothing] * 2
    batch = collate([example(s, f) for s, f in zip(*lengths.values(), strict=True)])
    other = {"audio": "video", "video": "audio"}[name]
    assert list(batch.inputs) == [other, f"{other}_lengths"]
    assert len(batch) == 2
    assert batch.has(name).tolist() == [False, False]
    assert batch.has(other).tolist() == [True, True]


def test_a_clip_with_nothing_may_be_among_others():
    batch = collate([example(5, 2), example()])
    assert batch.has("audio").tolist() == batch.has("video").tolist() == [True, False]


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_classes_may_be_whole_numbers_of_any_kind(number, no_shape_checks):
    labels = collate([example(5, kind=number), example(5, kind=UNKNOWN)]).labels["kind"]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [3, -1]
    assert collate([example(5, kind=True)]).labels["kind"].tolist() == [1]


def test_labels_are_told_apart_by_name_in_whatever_order():
    batch = collate([example(5, a=1, b=2), Example(torch.rand(5), None, {"b": 3, "a": 4})])
    assert {name: labels.tolist() for name, labels in batch.labels.items()} == {
        "a": [1, 4],
        "b": [2, 3],
    }


def test_a_batch_goes_to_another_device_with_all_that_it_has():
    batch = collate([example(5, 2, kind=1), example(3, None, kind=0)])
    moved = batch.to("meta")
    assert list(moved.inputs) == list(batch.inputs)
    tensors = [*moved.inputs.values(), *moved.labels.values()]
    assert len(tensors) == 5
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        ([], ValueError, "collate: got no examples; give at least one"),
        (
            [example(5), (torch.rand(5), None, {})],
            TypeError,
            r"collate: got a tuple, wanted an Example; return Example\(audio, video, labels\) from",
        ),
        ([{"audio": torch.rand(5)}], TypeError, "collate: got a dict, wanted an Example"),
        ([example()], ValueError, "got clips without sound and without pictures; leave them out"),
        ([example(0, 0)], ValueError, "got clips without sound and without pictures"),
        (
            [example(5, a=1), example(5, b=1)],
            ValueError,
            r"an example has the labels \['b'\], another \['a'\]; give all the same names, UNKNOWN",
        ),
        (
            [example(None, 2, (4, 6)), example(None, 2, (4, 8))],
            ValueError,
            r"video comes as \['torch.float32 \(3, 2, 4, 6\)', 'torch.float32 \(3, 2, 4, 8\)'\]; "
            "only its length may differ: scale pictures to one size",
        ),
        (
            [example(5), Example(torch.ones(5, dtype=torch.int16), None, {})],
            ValueError,
            r"audio comes as \['torch.float32 \(5,\)', 'torch.int16 \(5,\)'\]",
        ),
        (
            [Example(np.zeros(5), None, {})],
            TypeError,
            "audio is a ndarray, wanted a tensor; use torch.as_tensor",
        ),
        ([example(5, kind=None)], TypeError, "a clip has None for 'kind', wanted the number of a"),
        (
            [example(5, kind=1.5)],
            TypeError,
            "a clip has 1.5 for 'kind'.* give UNKNOWN where nobody",
        ),
        ([example(5, kind="cat")], TypeError, "a clip has 'cat' for 'kind'"),
    ],
)
def test_what_makes_no_batch_is_refused(examples, error, message, no_shape_checks):
    with pytest.raises(error, match=message):
        collate(examples)


# With something left out


def test_a_batch_without_a_modality_keeps_the_rest():
    batch = collate([example(5, 2, kind=1), example(3, 4, kind=0)])
    silent = batch.without("audio")
    assert list(silent.inputs) == ["video", "video_lengths"]
    assert silent.labels is batch.labels
    assert list(batch.without("video").inputs) == ["audio", "audio_lengths"]
    assert list(silent.without("audio").inputs) == ["video", "video_lengths"]
    with pytest.raises(ValueError, match=r"Batch\.without: video is all that there is; leave out"):
        silent.without("video")
    for name in ("sound", "vid", "", "audio_lengths"):
        with pytest.raises(ValueError, match=f"Batch.without: got '{name}'; give one of .*audio"):
            batch.without(name)


# Clip by clip: both, sound alone, pictures alone, nothing.
SAMPLES, FRAMES = [5, 3, None, None], [4, None, 2, None]


@pytest.mark.parametrize("names", [("audio",), ("video",), ("audio", "video"), ()])
def test_a_clip_keeps_what_it_has_alone(names):
    """Against a loop over clips, for all that can be dropped of four."""
    batch = collate([example(s, f) for s, f in zip(SAMPLES, FRAMES, strict=True)])
    before = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    for code in range(4 ** len(names) * 2):
        generator = torch.Generator().manual_seed(code)
        drop = {name: torch.rand(4, generator=generator) < 0.5 for name in names}
        dropped = batch.dropping(drop)
        for i, (samples, frames) in enumerate(zip(SAMPLES, FRAMES, strict=True)):
            has = {"audio": bool(samples), "video": bool(frames)}
            keeps = {n: has[n] and not (n in drop and bool(drop[n][i])) for n in has}
            if not any(keeps.values()):
                keeps = has
            assert {name: bool(dropped.has(name)[i]) for name in has} == keeps
        for name in ("audio", "video"):
            assert dropped.inputs[name] is batch.inputs[name]
            left = dropped.inputs[f"{name}_lengths"]
            assert ((left == before[f"{name}_lengths"]) | (left == 0)).all()
    for name, tensor in before.items():
        assert torch.equal(batch.inputs[name], tensor)  # nothing is written into it


def test_whole_clips_can_be_dropped_too():
    batch = collate([example(5, 4), example(5, 4), example(5, 4)])
    dropped = batch.dropping({"audio": flags(1, 0, 1), "video": flags(0, 1, 1)})
    assert dropped.inputs["audio_lengths"].tolist() == [0, 5, 5]
    assert dropped.inputs["video_lengths"].tolist() == [4, 0, 4]
    assert list(batch.dropping({"audio": flags(1, 0, 1)}).inputs) == [
        *batch.inputs,
        "audio_lengths",
    ]


def test_nothing_is_dropped_of_what_is_not_there():
    batch = collate([example(5), example(3)])
    dropped = batch.dropping({"audio": flags(1, 1), "video": flags(1, 0)})
    assert list(dropped.inputs) == ["audio", "audio_lengths"]
    assert dropped.inputs["audio_lengths"].tolist() == [5, 3]


# What the model makes of it


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    objective = Objective({"shape": 4})
    changes = {"dim": 24, "depth": 2, "heads": 2, "dim_head": 8, "num_fusion_tokens": 3}
    return small_zorro(objective, **changes).eval()


def shortened():
    """Clips of the world, cut to different lengths."""
    clips = World(6)
    lengths = [(8000, 8), (5000, 4), (2500, 2), (8000, 2), (250, 8), (1, 6)]
    return [
        Example(one.audio[:samples], one.video[:, :frames], one.labels)
        for one, (samples, frames) in zip(clips, lengths, strict=True)
    ]


def test_padding_does_not_change_what_a_model_says_of_a_clip(model):
    clips = shortened()
    with torch.no_grad():
        together = model(**collate(clips).inputs)
        alone = torch.cat([model(**collate([clip]).inputs) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-2


def test_padding_may_hold_anything(model):
    batch = collate(shortened())
    wanted = model(**batch.inputs)
    audio, video = (batch.inputs[name].clone() for name in ("audio", "video"))
    for i in range(6):
        audio[i, batch.inputs["audio_lengths"][i] :] = torch.nan
        video[i, :, batch.inputs["video_lengths"][i] :] = torch.inf
    inputs = {**batch.inputs, "audio": audio, "video": video}
    assert not audio.isfinite().all()
    assert torch.equal(model(**inputs), wanted)


@pytest.mark.parametrize("name", ["audio", "video"])
def test_a_clip_that_lacks_a_modality_is_answered_as_without_it(model, name):
    clips = [clip._replace(**{name: None}) if i % 2 else clip for i, clip in enumerate(World(4))]
    other = 1 if name == "audio" else 0
    asked = {"return_token_indices": [other, 2, 3]}
    with torch.no_grad():
        together = model(**collate(clips).inputs)
        for i, clip in enumerate(clips):
            alone = model(**collate([clip]).inputs, **asked)[0]
            torch.testing.assert_close(together[i, [other, 2, 3]], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["audio", "video"])
def test_a_modality_that_is_dropped_is_one_that_was_never_there(model, name):
    clips = list(World(4))
    drop = {name: flags(1, 0, 1, 0)}
    lacking = [
        clip._replace(**{name: None}) if i % 2 == 0 else clip for i, clip in enumerate(clips)
    ]
    with torch.no_grad():
        dropped, missing = (
            model(**batch.inputs) for batch in (collate(clips).dropping(drop), collate(lacking))
        )
        whole = model(**collate(clips).inputs)
    torch.testing.assert_close(dropped, missing, rtol=1e-5, atol=1e-5)
    assert (dropped[0] - whole[0]).abs().max() > 1e-2
    torch.testing.assert_close(dropped[1], whole[1], rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_clip():
    batch = collate([example(5, 2, kind=3)])
    assert len(batch) == 1
    assert batch.inputs["audio"].shape == (1, 5)
    assert isinstance(batch, Batch)
