"""Right answers, counted: against a loop over single clips, and without a modality."""

import pytest
import torch
import training_runs
from training_runs import Clips, mixed

from avlib import Visibility
from avlib.evaluation import Scores, answers, evaluate
from avlib.examples import UNKNOWN, collate
from avlib.objective import Objective
from avlib.world import World

OBJECTIVE = Objective({"shape": 4, "pitch": 4, "xor": 2}, [("audio", "video")], features=3)
KINDS = ("audio", "video", "fusion", "global")
READS = {"audio": {"audio"}, "video": {"video"}, "fusion": {"audio", "video"}}


def zorro(objective=OBJECTIVE, **changes):
    return training_runs.zorro(objective, **changes).eval()


@pytest.fixture(scope="module")
def model():
    return zorro()


def slow_scores(model, clips, without=None):
    """Right and counted for (readout, label), one clip and one answer at a time."""
    right = dict.fromkeys([(k, n) for k in KINDS for n in OBJECTIVE.labels], 0)
    counted = dict(right)
    for clip in clips:
        inputs = {"audio": clip.audio, "video": clip.video}
        inputs = {n: x[None] for n, x in inputs.items() if x is not None and n != without}
        for row, kind in enumerate(KINDS):
            if not READS.get(kind, {"audio", "video"}) & set(inputs):
                continue
            (numbers,) = model(**inputs, return_token_indices=(row,))[0].tolist()
            for label, begin, end in (("shape", 0, 4), ("pitch", 4, 8), ("xor", 8, 10)):
                if clip.labels[label] == UNKNOWN:
                    continue
                logits = numbers[begin:end]
                counted[kind, label] += 1
                right[kind, label] += logits.index(max(logits)) == clip.labels[label]
    return right, counted


@pytest.mark.parametrize("without", [None, "audio", "video"])
@pytest.mark.parametrize(("batch_size", "workers"), [(250, 0), (5, 0), (1, 0), (7, 2)])
def test_scores_are_those_of_a_loop_over_single_clips(model, without, batch_size, workers):
    clips = mixed()
    right, counted = slow_scores(model, clips, without)
    settings = {"without": without, "batch_size": batch_size, "workers": workers}
    scores = evaluate(model, clips, OBJECTIVE, **settings)
    assert (scores.readouts, scores.labels) == (KINDS, ("shape", "pitch", "xor"))
    for i, kind in enumerate(KINDS):
        for j, label in enumerate(scores.labels):
            cell = kind, label
            assert (int(scores.right[i, j]), int(scores.counted[i, j])) == (
                right[cell],
                counted[cell],
            )
            if counted[cell]:
                assert scores[cell] == pytest.approx(right[cell] / counted[cell])
                assert float(scores.accuracy[i, j]) == scores[cell]
            else:
                assert scores[cell] != scores[cell]
    assert 0 < scores.right.sum() < scores.counted.sum()
    assert (scores.counted < 24).all()


def test_the_world_itself_is_scored(model):
    world = World(30)
    right, counted = slow_scores(model, world)
    scores = evaluate(model, world, OBJECTIVE)
    assert scores.right.flatten().tolist() == list(right.values())
    assert set(counted.values()) == {30}
    assert (scores.counted == 30).all()


# Without a modality


@pytest.mark.parametrize("name", ["audio", "video"])
def test_a_pure_readout_answers_bit_for_bit_as_with_the_other_modality(model, name):
    other, row = {"audio": ("video", 0), "video": ("audio", 1)}[name]
    batch = collate(list(World(8)))
    with torch.no_grad():
        whole, _ = answers(model, batch)
        part, readable = answers(model, batch.without(other))
    assert torch.equal(part[:, row], whole[:, row])
    assert not torch.equal(part[:, 2], whole[:, 2])
    wanted = {"audio": [True, False, True, True], "video": [False, True, True, True]}[name]
    assert readable.tolist() == [wanted] * 8


@pytest.mark.parametrize("name", ["audio", "video"])
def test_the_other_pure_readout_is_not_counted(model, name):
    world, row = World(12), KINDS.index(name)
    whole, part = evaluate(model, world, OBJECTIVE), evaluate(model, world, OBJECTIVE, without=name)
    assert not part.counted[row].any()
    assert part.accuracy[row].isnan().all()
    assert torch.equal(part.right[1 - row], whole.right[1 - row])
    for line in str(part).splitlines()[1:]:
        assert line.split()[1 + row] == "–"
        assert line.split()[2 - row] != "–"


def test_scores_do_not_depend_on_who_is_in_a_batch(model):
    clips = [clip._replace(audio=None) if i < 6 else clip for i, clip in enumerate(World(12))]
    scores = [
        evaluate(model, Clips(clips), OBJECTIVE, without="video", batch_size=size)
        for size in (3, 5, 12)
    ]
    for one in scores:
        assert torch.equal(one.right, scores[0].right)
        assert one.counted[[0, 2, 3]].unique().tolist() == [6]


def test_a_readout_that_reads_no_clip_is_not_counted():
    """Fusion tokens that read themselves alone."""
    alone = Visibility(dict.fromkeys(("audio", "video", "fusion"), "all"))
    alone = Visibility({**{name: (name,) for name in alone.keys}}, alone.keys)
    model = zorro(trunk=alone)
    scores = evaluate(model, World(10), OBJECTIVE)
    assert scores.counted[:, 0].tolist() == [10, 10, 0, 10]


def test_what_a_batch_lacks_is_given_as_padding_that_nothing_reads(model):
    clips = [clip._replace(video=None) for clip in World(5)]
    with torch.no_grad():
        found, readable = answers(model, collate(clips))
        wanted = model(audio=torch.stack([c.audio for c in clips]), return_token_indices=(0, 2, 3))
    torch.testing.assert_close(found[:, [0, 2, 3]], wanted, rtol=1e-5, atol=1e-6)
    assert readable.tolist() == [[True, False, True, True]] * 5
    out, _ = answers(model, collate(clips))
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()


# What is left as it was


@pytest.mark.parametrize("mode", [True, False])
def test_dropout_is_off_and_the_mode_is_given_back(mode):
    model = zorro(dropout=0.5).train(mode)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state()
    scores = [evaluate(model, World(20), OBJECTIVE) for _ in range(2)]
    assert torch.equal(scores[0].right, scores[1].right)
    assert torch.equal(scores[0].right, evaluate(model.eval(), World(20), OBJECTIVE).right)
    assert torch.equal(torch.get_rng_state(), before)
    model.train(mode)
    bad = Clips([World(1)[0]._replace(labels={})])
    with pytest.raises(ValueError, match="the clips have the labels"):
        evaluate(model, bad, OBJECTIVE)
    assert model.training == mode
    assert all(torch.equal(tensor, weights[n]) for n, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_mode_is_that_from_before(model):
    model.train()
    evaluate(model, World(2), OBJECTIVE)
    assert model.training
    model.eval()
    evaluate(model, World(2), OBJECTIVE)
    assert not model.training


def test_nothing_is_kept_for_a_backward_pass(model):
    kept = []
    hook = model.register_forward_hook(lambda _, __, out: kept.append(out.requires_grad))
    evaluate(model, World(4), OBJECTIVE, batch_size=2)
    hook.remove()
    assert kept == [False, False]


# Half precision, one clip, nothing to ask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_is_scored_too(dtype):
    model = zorro().to(dtype)
    scores = evaluate(model, World(20), OBJECTIVE, without="audio")
    assert scores.counted[1].tolist() == [20] * 3
    if dtype == torch.float64:
        assert (
            scores.right.tolist()
            == evaluate(zorro(), World(20), OBJECTIVE, without="audio").right.tolist()
        )


def test_one_clip_of_one_label():
    objective = Objective({"xor": 2})
    scores = evaluate(zorro(objective), World(1), objective)
    assert scores.counted.tolist() == [[1]] * 4
    assert set(scores.right.flatten().tolist()) <= {0, 1}


def test_an_objective_without_labels_has_an_empty_table():
    objective = Objective(contrast=[("audio", "video")], features=3)
    scores = evaluate(zorro(objective), World(3), objective)
    assert scores.right.shape == (4, 0)
    assert str(scores).split() == list(KINDS)


def test_no_clips_give_no_accuracy(model):
    assert evaluate(model, Clips([]), OBJECTIVE).accuracy.isnan().all()


# The table


def test_the_table_has_a_column_for_each_readout_and_a_line_for_each_label():
    scores = Scores(
        ("audio", "video"),
        ("pitch", "instrument"),
        torch.tensor([[3, 0], [1, 0]]),
        torch.tensor([[4, 5], [3, 0]]),
    )
    assert str(scores).splitlines() == [
        "               audio   video",
        "pitch          0.750   0.333",
        "instrument     0.000       –",
    ]
    assert scores["video", "pitch"] == pytest.approx(1 / 3)
    assert scores["audio", "instrument"] == 0
    assert scores["video", "instrument"] != scores["video", "instrument"]
    swapped = scores.only("video", "audio")
    assert swapped.readouts == ("video", "audio")
    assert swapped["video", "pitch"] == pytest.approx(1 / 3)
    assert scores.only("video").counted.tolist() == [[3, 0]]
    for cell in (("sound", "pitch"), ("audio", "colour")):
        with pytest.raises(ValueError, match=r"Scores: no cell .*; give one of the readouts \['au"):
            scores[cell]


# What is refused


def test_another_objective_than_the_models_is_refused(model):
    with pytest.raises(ValueError, match="has num_classes=13, the objective needs 4; make it with"):
        evaluate(model, World(2), Objective({"shape": 4}))


def test_clips_that_lack_a_label_or_are_of_no_class_are_refused(model):
    clip = World(1)[0]
    labels = dict(clip.labels)
    labels.pop("xor")
    with pytest.raises(ValueError, match=r"the clips have the labels .*, wanted 'xor' too"):
        evaluate(model, Clips([clip._replace(labels=labels)]), OBJECTIVE)
    with pytest.raises(ValueError, match="a clip has class 2 of 'xor', wanted 0 to 1"):
        evaluate(model, Clips([clip._replace(labels={**labels, "xor": 2})]), OBJECTIVE)


@pytest.mark.parametrize("name", ["sound", "", "audio_lengths"])
def test_a_modality_that_there_is_not_cannot_be_left_out(model, name):
    with pytest.raises(ValueError, match=rf"Batch\.without: got '{name}'; give one of"):
        evaluate(model, World(2), OBJECTIVE, without=name)
