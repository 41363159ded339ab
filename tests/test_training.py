"""Training against a plain loop, stopped at any moment, and shared by processes."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import chain
from math import cos, pi
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import IterableDataset
from training_runs import (
    CONTRAST,
    OBJECTIVE,
    PURE,
    SHAPE,
    SHARED,
    Clips,
    Noise,
    Stopped,
    mixed,
    shared_training,
    stop_after,
    train_with_stops,
    zorro,
)

from avlib.checkpoint import load_tensors, save_tensors
from avlib.examples import UNKNOWN, Batch, Example, collate
from avlib.objective import Objective
from avlib.plan import Plan
from avlib.training import LOOK_EVERY, History, train
from avlib.world import World

PLAN = {
    "steps": 10,
    "batch_size": 4,
    "learning_rate": 0.1,
    "warmup": 0.2,
    "weight_decay": 0.01,
    "clip": 1.0,
    "modality_dropout": 0.0,
    "precision": "float32",
    "seed": 0,
    "processes": 1,
}
SHORT = {"steps": 6, "batch_size": 4, "progress": False}


def plan(**changes):
    return Plan(**{**PLAN, **changes})


def fit(model=None, data=None, objective=OBJECTIVE, **changes):
    """A short training; what is not given is as it should be."""
    model = zorro(objective) if model is None else model
    return train(model, mixed() if data is None else data, objective, **{**SHORT, **changes})


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# Who is in which batch


@pytest.mark.parametrize(
    ("clips", "batch", "steps"), [(13, 4, 20), (4, 4, 5), (7, 6, 9), (1, 1, 3)]
)
def test_each_epoch_has_every_clip_once_and_no_place_is_lost(clips, batch, steps):
    batches = list(plan(steps=steps, batch_size=batch).order(clips, 0, 0))
    assert [len(one) for one in batches] == [batch] * steps
    order = [*chain(*batches)]
    epochs = [order[i : i + clips] for i in range(0, len(order), clips)]
    whole = epochs[: len(order) // clips]
    for epoch in whole:
        assert sorted(epoch) == list(range(clips))
    assert len(set(epochs[-1])) == len(epochs[-1])
    if clips == 13:
        assert len({tuple(epoch) for epoch in whole}) == len(whole) == 6
        assert sorted(whole[0]) not in whole


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_share_the_batches_of_one(processes):
    whole = list(plan().order(13, 0, 0))
    parts = [list(plan(processes=processes).order(13, 0, rank)) for rank in range(processes)]
    assert [[*chain(*batch)] for batch in zip(*parts, strict=True)] == whole


def test_a_training_that_goes_on_has_the_batches_of_one_that_was_never_stopped():
    whole = list(plan().order(13, 0, 0))
    for start in range(11):
        assert list(plan().order(13, start, 0)) == whole[start:]


def test_another_seed_gives_another_order():
    orders = [list(plan(seed=seed).order(13, 0, 0)) for seed in (0, 1, 10**18)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_the_clips_are_really_taken_in_that_order():
    data = mixed(13)
    fit(data=data, steps=9)
    assert data.asked == [*chain(*plan(steps=9).order(13, 0, 0))]


# Modalities that are left out


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_so_many_clips_lose_one_modality_and_each_as_often(probability):
    clips = [Example(torch.ones(4), torch.ones(3, 2, 1, 1), {})] * 4000
    dropped = plan(batch_size=4000, modality_dropout=probability).drop_modalities(
        collate(clips), 7, 0
    )
    silent, blind = (~dropped.has(name) for name in ("audio", "video"))
    assert not (silent & blind).any()
    for lost in (silent, blind):
        assert float(lost.float().mean()) == pytest.approx(probability / 2, abs=0.03)


def test_what_is_left_out_depends_on_step_and_seed_and_not_on_the_processes():
    clips = [Example(torch.ones(4), torch.ones(3, 2, 1, 1), {})] * 40

    def silent(step, rank=0, **changes):
        one = plan(batch_size=40, modality_dropout=0.5, **changes)
        share = collate(clips[: 40 // one.processes])
        return one.drop_modalities(share, step, rank).has("audio").tolist()

    assert silent(3) == silent(3)
    assert silent(3) != silent(4)
    assert silent(3) != silent(3, seed=1)
    assert silent(3) == silent(3, 0, processes=2) + silent(3, 1, processes=2)


# The learning rate


def test_the_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    # Two steps rise: to a third, to two thirds, and there is the top.
    wanted = [0.1 / 3, 0.2 / 3, *(0.05 * (1 + cos(pi * i / 8)) for i in range(8))]
    assert [plan().rate(step) for step in range(10)] == pytest.approx(wanted, rel=1e-12)
    assert plan().rate(2) == pytest.approx(0.1, rel=1e-12)
    assert plan().rate(6) == pytest.approx(0.05, rel=1e-12)
    assert plan(warmup=0).rate(0) == 0.1
    # Half a step rises: 0.1 / (0.5 + 1)
    assert plan(warmup=0.05).rate(0) == pytest.approx(0.2 / 3, rel=1e-12)
    assert plan(steps=1, warmup=0.99).rate(0) == pytest.approx(0.1 / 1.99, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_every_step_has_some_rate_and_none_is_too_high(steps, warmup):
    one = plan(steps=steps, warmup=warmup)
    rates = [one.rate(step) for step in range(steps)]
    assert all(0 < rate <= 0.1 for rate in rates)
    top = rates.index(max(rates))
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


# Against a plain loop of PyTorch


def readable(clip):
    """Which of audio, video, fusion and global have something to read."""
    pure = [i for i, part in enumerate((clip.audio, clip.video)) if part is not None]
    return [*pure, 2, 3]


def mean(losses):
    return sum(losses) / len(losses) if losses else torch.zeros(()).double()


def losses_by_hand(model, clips):
    """Every term of OBJECTIVE, from clips that are asked one by one."""
    rows = []
    for clip in clips:
        inputs = {"audio": clip.audio, "video": clip.video}
        inputs = {name: part[None] for name, part in inputs.items() if part is not None}
        (answers,) = model(**inputs, return_token_indices=readable(clip))
        rows.append(dict(zip(readable(clip), answers, strict=True)))

    def entropy(scores, wanted):
        return F.cross_entropy(scores, torch.tensor(wanted))

    found = []
    for label, begin, end in (("shape", 0, 4), ("pitch", 4, 8)):
        classes = [clip.labels[label] for clip in clips]
        for kind in range(4):
            asked = [
                (r, c) for r, c in zip(rows, classes, strict=True) if kind in r and c != UNKNOWN
            ]
            found.append(mean([entropy(row[kind][begin:end], one) for row, one in asked]))
    both = [row for row in rows if 0 in row and 1 in row]
    heard, seen = ([F.normalize(row[kind][8:], dim=0) for row in both] for kind in (0, 1))
    ways = [
        entropy(torch.stack([one @ each for each in others]) / 0.1, i)
        for ones, others in ((heard, seen), (seen, heard))
        for i, one in enumerate(ones)
    ]
    return torch.stack([*found, mean(ways)])


def test_training_is_a_plain_loop():
    data = mixed(10)
    settings = {"learning_rate": 0.02, "warmup": 0.2, "weight_decay": 0.3, "clip": 0.5}
    model, plain = zorro().double(), zorro().double()
    history = fit(model, data, steps=5, **settings)

    linear = {f"{name}.weight" for name, m in plain.named_modules() if isinstance(m, nn.Linear)}
    first, second = (
        {n: torch.zeros_like(p) for n, p in plain.named_parameters()} for _ in range(2)
    )
    clipped = 0
    for step in range(5):
        clips = [data.clips[i] for i in data.asked[4 * step : 4 * step + 4]]
        losses = losses_by_hand(plain, clips)
        assert losses.tolist() == pytest.approx(history.losses[step].tolist(), abs=1e-5)
        plain.zero_grad()
        losses.sum().backward()
        rate = 0.02 * (1 / 2 if step < 1 else (1 + cos(pi * (step - 1) / 4)) / 2)
        norm = sum(p.grad.square().sum() for p in plain.parameters()) ** 0.5
        clipped += bool(norm > 0.5)
        with torch.no_grad():
            for name, weight in plain.named_parameters():
                grad = weight.grad * min(1.0, 0.5 / (norm + 1e-6))
                if name in linear:
                    weight -= rate * 0.3 * weight
                first[name] = 0.9 * first[name] + 0.1 * grad
                second[name] = 0.95 * second[name] + 0.05 * grad**2
                smooth = first[name] / (1 - 0.9 ** (step + 1))
                spread = second[name] / (1 - 0.95 ** (step + 1))
                weight -= rate * smooth / (spread.sqrt() + 1e-8)
    assert clipped == 5
    assert history["audio - video"].count_nonzero() > 2
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-9, atol=1e-10)


def test_training_lowers_the_loss():
    history = fit(data=World(24), steps=80, batch_size=8, learning_rate=5e-3)
    assert history.losses.shape == (80, 9)
    assert history.total[-10:].mean() < 0.85 * history.total[:10].mean()
    assert torch.equal(history.total, history.losses.sum(1))
    assert torch.equal(history["audio - video"], history.losses[:, 8])
    assert torch.equal(history["video shape"], history.losses[:, 1])
    with pytest.raises(ValueError, match=r"History: no term 'audio'; give one of \['audio shape',"):
        history["audio"]


def test_a_history_names_its_losses():
    history = History(("a", "b"), torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    assert history["b"].tolist() == [2, 5]
    assert history.total.tolist() == [3, 8]


def test_the_rate_is_that_of_the_plan(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def remember(self):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self)

    monkeypatch.setattr("torch.optim.AdamW.step", remember)
    fit(steps=10, learning_rate=0.1, warmup=0.2)
    assert rates == [[plan().rate(step)] * 2 for step in range(10)]


# Which weights change, and how


def test_weight_decay_reaches_the_matrices_of_linear_layers_alone():
    start, plain, decayed = zorro(), zorro(), zorro()
    fit(plain, steps=1, learning_rate=1e-2, weight_decay=0.0, warmup=0)
    fit(decayed, steps=1, learning_rate=1e-2, weight_decay=0.5, warmup=0)
    linear = {f"{name}.weight" for name, m in start.named_modules() if isinstance(m, nn.Linear)}
    assert len(linear) == 14
    for name, weight in start.named_parameters():
        one, other = plain.get_parameter(name), decayed.get_parameter(name)
        if name in linear:
            assert_close = torch.testing.assert_close
            assert_close(other - one, -1e-2 * 0.5 * weight, rtol=0, atol=1e-6)
            assert not torch.equal(one, other)
        else:
            assert torch.equal(one, other)


def test_frozen_weights_stay_and_their_old_gradients_count_for_nothing():
    trained = []
    for old in (None, 1e3):
        model = zorro()
        for name, weight in model.named_parameters():
            if "embedding" in name or "layers" in name:
                weight.requires_grad_(False)
                weight.grad = None if old is None else torch.full_like(weight, old)
        before = weights(model)
        fit(model)
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name]) != weight.requires_grad
        trained.append(weights(model))
    assert same(*trained)


def test_no_gradients_are_left_behind():
    model = zorro()
    model.fusion_tokens.grad = torch.ones_like(model.fusion_tokens)
    fit(model)
    assert all(weight.grad is None for weight in model.parameters())
    other = zorro()
    fit(other)
    assert same(weights(model), weights(other))


def test_one_weight_may_have_two_names(tmp_path):
    model, path = zorro(), tmp_path / "tied"
    model.class_heads[1] = model.class_heads[0]
    fit(model, checkpoint=path)
    again = zorro(seed=4)
    again.class_heads[1] = again.class_heads[0]
    fit(again, checkpoint=path)
    assert same(weights(model), weights(again))


@pytest.mark.parametrize("changes", [{}, {"reversible": True}, {"checkpoint": True}], ids=str)
def test_bfloat16_computes_in_less_and_keeps_weights_in_float32(changes):
    model, exact = zorro(**changes), zorro(**changes)
    kinds = []
    model.class_heads[0].register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    history = fit(model, precision="bfloat16", steps=20)
    assert set(kinds) == {torch.bfloat16}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert history.losses.dtype == torch.float32
    wanted = fit(exact, steps=20)
    assert not same(weights(model), weights(exact))
    torch.testing.assert_close(history.losses, wanted.losses, rtol=0.2, atol=0.1)


def test_a_model_in_half_precision_is_refused_and_one_in_double_is_not():
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=rf"weights in {dtype}, which loses small steps; use"):
            fit(zorro().to(dtype))
    model = zorro().double()
    fit(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}


# Chance


def test_the_same_seed_gives_the_same_weights_whatever_the_caller_drew():
    trained = []
    for seed, drawn in ((0, 1), (0, 2), (1, 1)):
        model = zorro(dropout=0.3)
        torch.manual_seed(drawn)
        before = torch.get_rng_state()
        fit(model, seed=seed, modality_dropout=0.5)
        assert torch.equal(torch.get_rng_state(), before)
        trained.append(weights(model))
    assert same(trained[0], trained[1])
    assert not same(trained[0], trained[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_workers_changes_nothing(workers):
    model, other = zorro(dropout=0.3), zorro(dropout=0.3)
    before = torch.get_rng_state()
    fit(model, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
    fit(other)
    assert same(weights(model), weights(other))


def noise_heard(monkeypatch, **changes):
    """The first sample of each clip that a training hears."""
    heard, to = [], Batch.to

    def listen(self, device):
        heard.extend(self.inputs["audio"][:, 0].tolist())
        return to(self, device)

    monkeypatch.setattr(Batch, "to", listen)
    with suppress(Stopped):
        fit(zorro(SHAPE), Noise(8), SHAPE, **changes)
    monkeypatch.setattr(Batch, "to", to)
    return heard


@pytest.mark.parametrize("workers", [0, 1])
def test_random_data_are_drawn_by_the_seed(monkeypatch, workers):
    one, again, other = (noise_heard(monkeypatch, workers=workers, seed=s) for s in (0, 0, 1))
    assert one == again
    assert not set(one) & set(other)
    assert len(set(one)) == 24


def test_random_data_are_not_drawn_again_after_a_stop(monkeypatch, tmp_path):
    for workers in (0, 1):
        settings = {
            "workers": workers,
            "checkpoint": tmp_path / str(workers),
            "checkpoint_every": 3,
        }
        with stop_after(1):
            before = noise_heard(monkeypatch, **settings)
        after = noise_heard(monkeypatch, **settings)
        assert len(before) == len(after) == 12
        assert not set(before) & set(after)
        if not workers:
            assert before + after == noise_heard(monkeypatch)


# Stopped and gone on with


RESTLESS = {"modality_dropout": 0.5, "checkpoint_every": 3, "steps": 10, "seed": 5}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights, losses and the last checkpoint of a training that nobody stops."""
    path = tmp_path_factory.mktemp("undisturbed") / "a"
    model = zorro(dropout=0.3)
    history = fit(model, checkpoint=path, **RESTLESS)
    return weights(model), history.losses, load_tensors(path)


def assert_as_undisturbed(undisturbed, model, history, path):
    wanted, losses, (tensors, facts) = undisturbed
    assert same(weights(model), wanted)
    assert torch.equal(history.losses, losses)
    found, told = load_tensors(path)
    assert same(found, tensors)
    assert told == facts
    assert not model.training


def test_a_checkpoint_changes_nothing(undisturbed):
    model = zorro(dropout=0.3)
    history = fit(model, **RESTLESS)
    assert same(weights(model), undisturbed[0])
    assert torch.equal(history.losses, undisturbed[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stops", [[1], [2], [3], [1, 1, 1]], ids=str)
def test_a_training_stopped_after_a_checkpoint_ends_bit_for_bit(
    undisturbed, tmp_path, workers, stops
):
    path = tmp_path / "b"
    for seed, saves in enumerate(stops):
        model = zorro(dropout=0.3, seed=3 + seed)  # what a restarted script makes is not used
        with stop_after(saves), pytest.raises(Stopped):
            fit(model, checkpoint=path, workers=workers, **RESTLESS)
        assert not model.training
    model = zorro(dropout=0.3, seed=99)
    history = fit(model, checkpoint=path, workers=workers, **RESTLESS)
    assert_as_undisturbed(undisturbed, model, history, path)


class Failing(Clips):
    """Stops at the clip asked for at some time."""

    def __init__(self, clips, time, error):
        super().__init__(clips)
        self.time, self.error = time, error

    def __getitem__(self, clip):
        if len(self.asked) == self.time:
            raise self.error
        return super().__getitem__(clip)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("time", [0, 5, 11, 12, 13, 39])
def test_a_training_stopped_between_checkpoints_ends_bit_for_bit(
    undisturbed, tmp_path, time, error
):
    path = tmp_path / "c"
    model = zorro(dropout=0.3)
    with pytest.raises(error):
        fit(model, Failing(mixed().clips, time, error), checkpoint=path, **RESTLESS)
    assert not model.training
    assert path.exists() == (time // 4 >= 3)
    # A training that had not saved anything begins again, with a new model.
    model = zorro(dropout=0.3, seed=99 if path.exists() else 3)
    history = fit(model, checkpoint=path, **RESTLESS)
    assert_as_undisturbed(undisturbed, model, history, path)


def test_a_crash_while_saving_leaves_the_checkpoint_before(undisturbed, tmp_path, monkeypatch):
    path = tmp_path / "d"
    replace, left = Path.replace, [None, None]

    def crash(self, target):
        if not left:
            raise OSError("disk full")
        left.pop()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        fit(zorro(dropout=0.3), checkpoint=path, **RESTLESS)
    monkeypatch.undo()
    assert load_tensors(path)[1]["step"] == 6
    model = zorro(seed=99, dropout=0.3)
    history = fit(model, checkpoint=path, **RESTLESS)
    assert_as_undisturbed(undisturbed, model, history, path)


def test_a_training_that_has_ended_is_not_repeated(undisturbed, tmp_path, monkeypatch):
    path = tmp_path / "e"
    fit(zorro(dropout=0.3), checkpoint=path, **RESTLESS)
    before = path.read_bytes()
    monkeypatch.setattr("os.access", lambda *_: False)  # it may lie where nobody can write
    model = zorro(dropout=0.3, seed=99)
    history = fit(model, Failing(mixed().clips, 0, AssertionError), checkpoint=path, **RESTLESS)
    assert path.read_bytes() == before
    assert_as_undisturbed(undisturbed, model, history, path)


def test_weights_that_never_had_a_gradient_are_gone_on_with(tmp_path):
    """Fusion tokens, where only pure readouts are asked."""
    path, models = tmp_path / "f", [zorro(CONTRAST, **PURE) for _ in range(2)]
    fit(models[0], objective=CONTRAST)
    with stop_after(1), pytest.raises(Stopped):
        fit(zorro(CONTRAST, **PURE), objective=CONTRAST, checkpoint=path, checkpoint_every=2)
    fit(models[1], objective=CONTRAST, checkpoint=path, checkpoint_every=2)
    assert same(*map(weights, models))
    assert "optimizer.0.step" in load_tensors(path)[0]


def test_checkpoints_may_be_saved_more_or_less_often_than_before(undisturbed, tmp_path):
    path = tmp_path / "g"
    with stop_after(2), pytest.raises(Stopped):
        fit(zorro(dropout=0.3), checkpoint=path, **{**RESTLESS, "checkpoint_every": 2})
    model = zorro(dropout=0.3, seed=99)
    history = fit(
        model, checkpoint=str(path), progress=True, **{**RESTLESS, "checkpoint_every": 100}
    )
    assert_as_undisturbed(undisturbed, model, history, path)


def test_numbers_of_numpy_can_be_saved(undisturbed, tmp_path, no_shape_checks):
    path = tmp_path / "h"
    objective = Objective({"shape": np.int64(4), "pitch": np.int64(4)}, [("audio", "video")], 3)
    settings = {name: np.array(value)[()] for name, value in {**SHORT, **RESTLESS}.items()}
    settings |= {"learning_rate": np.float64(2e-3), "progress": False}
    for _ in range(2):
        model = zorro(dropout=0.3)
        history = fit(model, objective=objective, checkpoint=path, **settings)
        assert_as_undisturbed(undisturbed, model, history, path)


# In processes of their own


def run_script(*command):
    script = str(Path(__file__).with_name("training_runs.py"))
    done = subprocess.run(
        [sys.executable, *command[0], script, *command[1:]],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_that_is_killed_again_and_again_ends_bit_for_bit(tmp_path):
    codes = [int(code) for code in run_script([], "killed", tmp_path).split()]
    assert codes[-1] == 0
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) > 2
    (found, told), (wanted, facts) = (
        load_tensors(tmp_path / f"{name}.safetensors") for name in ("killed", "undisturbed")
    )
    assert same(found, wanted)
    assert told == facts
    assert facts["step"] == 40


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes under `torchrun` left behind."""
    folder = tmp_path_factory.mktemp("shared")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run_script(torchrun, "shared", folder)
    return folder


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_find_the_weights_of_one(two_processes, name):
    wanted = shared_training(name)
    for rank in (0, 1):
        found, _ = load_tensors(two_processes / f"{name} {rank}.safetensors")
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    objective, _, changes = SHARED[name]
    start = zorro(objective, **changes).double().state_dict()
    moved = [n for n in start if not torch.equal(start[n], wanted[n])]
    assert len(moved) > 20
    assert any(n.startswith("audio_embedding") for n in moved)
    assert wanted["losses"].sum(1)[[0, 1, 2, 4]].all()


def test_two_processes_that_are_stopped_end_bit_for_bit(two_processes):
    (found, told), (wanted, facts) = (
        load_tensors(two_processes / f"{name}.safetensors") for name in ("stopped", "undisturbed")
    )
    assert same(found, wanted)
    assert told == facts
    assert not torch.equal(wanted["random.0.cpu"], wanted["random.1.cpu"])


def test_two_processes_draw_different_numbers(two_processes):
    one, other = (
        load_tensors(two_processes / f"noise {rank}.safetensors")[1]["drawn"] for rank in (0, 1)
    )
    assert len(one) == len(other) == 8
    assert not set(one) & set(other)


def test_another_number_of_processes_cannot_go_on(two_processes):
    with pytest.raises(ValueError, match=r"was made with processes 2 \(now 1\); give the same, or"):
        train_with_stops(two_processes / "stopped.safetensors", 0)


def test_processes_that_see_different_checkpoints_are_refused(two_processes):
    for rank in (0, 1):
        message = (two_processes / f"error {rank}.txt").read_text()
        assert message.startswith("train: the processes go on from steps [6, 0], wanted one step;")


# Numbers that are not finite


def poisoned(time, **changes):
    """Clips, of which the one that is asked for at some time is NaN."""
    data = mixed(40)
    place = [*chain(*plan(steps=10).order(40, 0, 0))][time]
    clip = World(40)[place]
    data.clips[place] = clip._replace(audio=clip.audio * torch.nan, **changes)
    return data


def test_a_clip_of_nan_stops_training_and_the_last_good_checkpoint_stays(tmp_path):
    path, good = tmp_path / "nan", tmp_path / "good"
    settings = {"checkpoint_every": 2, "steps": 10}
    message = (
        r"train: the loss 'audio shape' is nan at step 8; lower learning_rate, or look for NaN"
    )
    with pytest.raises(FloatingPointError, match=message):
        fit(data=poisoned(7 * 4 + 2), checkpoint=path, **settings)
    with stop_after(3), pytest.raises(Stopped):
        fit(data=mixed(40), checkpoint=good, **settings)
    assert path.read_bytes() == good.read_bytes()
    with pytest.raises(FloatingPointError, match=message):
        fit(data=poisoned(7 * 4 + 2), checkpoint=path, **settings)


def test_a_clip_of_nan_with_unknown_labels_is_found_by_its_gradients(tmp_path):
    """The losses do not count it, and are finite."""
    path = tmp_path / "nan"
    labels = dict.fromkeys(("shape", "pitch"), UNKNOWN)
    data = poisoned(5 * 4 + 1, labels={**World(1)[0].labels, **labels}, video=None)
    with pytest.raises(
        FloatingPointError, match="the norm of the gradients is nan at step 6; lower"
    ):
        fit(data=data, checkpoint=path, checkpoint_every=3, steps=10)
    tensors, facts = load_tensors(path)
    assert facts["step"] == 3
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_without_a_checkpoint_it_is_noticed_soon(tmp_path):
    data = poisoned(2)
    with pytest.raises(FloatingPointError, match="loss 'audio shape' is nan at step 1;"):
        fit(data=data, steps=200)
    assert len(data.asked) == 4 * LOOK_EVERY


# Checkpoints that are refused, before anything changes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a"
    with stop_after(1), pytest.raises(Stopped):
        fit(checkpoint=path, checkpoint_every=3)
    return load_tensors(path)


def refuse_checkpoint(path, message, model=None, objective=OBJECTIVE, error=ValueError, **changes):
    """A refusal that leaves the model, its mode and all chance as they were."""
    model = zorro(objective, seed=7) if model is None else model
    for mode in (True, False):
        model.train(mode)
        before, chance = weights(model), torch.get_rng_state()
        with pytest.raises(error, match=message):
            fit(model, objective=objective, checkpoint=path, checkpoint_every=3, **changes)
        assert same(weights(model), before)
        assert model.training == mode
        assert torch.equal(torch.get_rng_state(), chance)


PLANS = [
    ({"steps": 7}, r"steps 6 \(now 7\)"),
    ({"steps": 2}, r"steps 6 \(now 2\)"),
    ({"batch_size": 8}, r"batch_size 4 \(now 8\)"),
    ({"learning_rate": 1e-3}, r"learning_rate 0.002 \(now 0.001\)"),
    ({"warmup": 0.5}, r"warmup 0.05 \(now 0.5\)"),
    ({"weight_decay": 0}, r"weight_decay 0.01 \(now 0\)"),
    ({"clip": 2}, r"clip 1.0 \(now 2\)"),
    ({"modality_dropout": 0.5}, r"modality_dropout 0.0 \(now 0.5\)"),
    ({"precision": "bfloat16"}, r"precision float32 \(now bfloat16\)"),
    ({"seed": 1, "clip": 2}, r"clip 1.0 \(now 2\), seed 0 \(now 1\); give the same, or name"),
    ({"data": World(23)}, r"clips 24 \(now 23\)"),
]


@pytest.mark.parametrize(("changes", "message"), PLANS)
def test_a_checkpoint_of_another_plan_is_refused(saved, tmp_path, changes, message):
    save_tensors(tmp_path / "a", *saved)
    refuse_checkpoint(
        tmp_path / "a", f"train: the checkpoint .* was made with {message}", **changes
    )


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Objective({"shape": 4, "tone": 4}, OBJECTIVE.contrast, 3), "terms .*'audio pitch'.* tone"),
        (Objective({"shape": 3, "pitch": 5}, OBJECTIVE.contrast, 3), r"classes \[4, 4\] \(now \[3"),
        (Objective(OBJECTIVE.labels, OBJECTIVE.contrast, 3, 0.2), r"temperature 0.1 \(now 0.2\)"),
        (Objective(OBJECTIVE.labels, [("audio", "fusion")], 3), "terms .*audio - fusion"),
    ],
)
def test_a_checkpoint_of_another_objective_is_refused(saved, tmp_path, objective, message):
    save_tensors(tmp_path / "a", *saved)
    data = Clips(
        [clip._replace(labels=dict.fromkeys((*objective.labels,), 0)) for clip in mixed().clips]
    )
    refuse_checkpoint(tmp_path / "a", message, objective=objective, data=data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 2}, r"has nothing for 'model.layers.1.* wanted torch.float32 \("),
        ({"depth": 0}, r"has torch.float32 \(.*\) for '.*', wanted"),
        (
            {"dim": 24},
            r"has torch.float32 \(4, 16\) for 'model.audio_.*', wanted torch.float32 \(4, 24",
        ),
        (
            {"positions": False},
            r"has torch.float32 \(4, 16\) for 'model.audio.*', wanted nothing; it is",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(saved, tmp_path, changes, message):
    save_tensors(tmp_path / "a", *saved)
    refuse_checkpoint(tmp_path / "a", message, zorro(seed=7, **changes))


def test_a_checkpoint_in_another_precision_is_refused(saved, tmp_path):
    save_tensors(tmp_path / "a", *saved)
    message = r"has torch.float32 .* wanted torch.float64"
    refuse_checkpoint(tmp_path / "a", message, zorro().double())


def changed(name, change):
    """The checkpoint with one tensor replaced, or left out."""

    def with_change(tensors, facts):
        tensors = {**tensors, name: None if change is None else change(tensors.get(name))}
        return {n: t for n, t in tensors.items() if t is not None}, facts

    return with_change


def told(**changes):
    return lambda tensors, facts: (tensors, {**facts, **changes})


ODD = {
    "no weights": (changed("model.norm.weight", None), "has nothing for 'model.norm.weight'"),
    "no moments": (changed("optimizer.3.exp_avg", None), "has nothing for 'optimizer.3.exp_avg'"),
    "no step": (changed("optimizer.3.step", None), "for 'optimizer.3.exp_avg', wanted nothing"),
    "no losses": (changed("losses", None), "has nothing for 'losses'"),
    "no chance": (changed("random.0.cpu", None), "has nothing for 'random.0.cpu'"),
    "short chance": (changed("random.0.cpu", lambda t: t[:9]), "for 'random.0.cpu', wanted"),
    "more": (
        changed("model.more", lambda _: torch.ones(2)),
        r"\(2,\) for 'model.more', wanted noth",
    ),
    "a moment of none": (
        changed("optimizer.999.exp_avg", lambda _: torch.ones(2)),
        "for 'optimizer.999.exp_avg', wanted nothing",
    ),
    "a moment of no number": (
        changed("optimizer.x.y.z", lambda _: torch.ones(2)),
        r"for 'optimizer.x.y.z', wanted nothing",
    ),
    "turned": (changed("losses", lambda t: t.T.contiguous()), r"\(9, 6\) for 'losses', wanted"),
    "doubled": (changed("losses", lambda t: t.double()), "torch.float64 .* for 'losses', wanted"),
    "no settings": (told(settings=None), "is no checkpoint of a training; name another file"),
    "settings of a list": (told(settings=[1]), "is no checkpoint of a training"),
    "no number of steps": (told(step="3"), "is no checkpoint of a training"),
    "half a step": (told(step=3.5), "is no checkpoint of a training"),
    "a step before the first": (told(step=-1), "is of step -1, wanted 0 to 6; name another file"),
    "a step after the last": (told(step=7), "is of step 7, wanted 0 to 6"),
}


@pytest.mark.parametrize(("change", "message"), ODD.values(), ids=ODD)
def test_a_checkpoint_that_is_not_whole_is_refused(saved, tmp_path, change, message):
    save_tensors(tmp_path / "a", *change(*saved))
    refuse_checkpoint(tmp_path / "a", message)


def test_chance_that_no_generator_knows_is_refused(saved, tmp_path):
    tensors, facts = changed("random.0.cpu", lambda t: torch.full_like(t, 255))(*saved)
    save_tensors(tmp_path / "a", tensors, facts)
    refuse_checkpoint(tmp_path / "a", "mt19937", error=RuntimeError)


def test_damaged_files_and_other_weights_are_refused(saved, tmp_path):
    path = tmp_path / "a"
    save_tensors(path, *saved)
    content = path.read_bytes()
    for wrong in (b"", content[:5000], content[:-1], content[:-1] + b"?", os.urandom(9999)):
        path.write_bytes(wrong)
        refuse_checkpoint(path, "load_tensors: .* is damaged, cut off or no safetensors file")
    save_tensors(path, zorro().state_dict(), {"objective": {}})
    refuse_checkpoint(path, "is no checkpoint of a training")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no/where", FileNotFoundError, "no folder '.*/no'; make it first"),
        (".", IsADirectoryError, "is a folder; name a file in it"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_noticed_before_the_first_step(
    tmp_path, name, error, message
):
    data = mixed()
    refuse_checkpoint(tmp_path / name, message, error=error, data=data)
    assert not data.asked


def test_a_checkpoint_that_may_not_be_written_is_noticed_before_the_first_step(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("os.access", lambda *_: False)
    data = mixed()
    refuse_checkpoint(tmp_path / "a", "nothing may be written", error=PermissionError, data=data)
    assert not data.asked


# Arguments that are refused


ARGUMENTS = [
    *(
        ({"steps": wrong}, f"train: steps is {wrong}; give a positive whole")
        for wrong in (0, -1, 1.5)
    ),
    *(
        ({"batch_size": wrong}, f"train: batch_size is {wrong}; give")
        for wrong in (0, 2.0, True, None)
    ),
    *(({"checkpoint_every": wrong}, f"checkpoint_every is {wrong}; give") for wrong in (0, 0.5)),
    *(
        ({"learning_rate": wrong}, f"learning_rate is {wrong}; give a po")
        for wrong in (0, -1, np.nan)
    ),
    *(
        ({"clip": wrong}, f"train: clip is {wrong!r}; give a positive number")
        for wrong in (0, "1", None)
    ),
    *(
        ({"warmup": wrong}, f"warmup is {wrong!r}; give a share in ")
        for wrong in (1, -0.1, np.nan, "a")
    ),
    *(
        ({"weight_decay": wrong}, f"weight_decay is {wrong}; give a number, 0 or")
        for wrong in (-1, None)
    ),
    *(
        ({"modality_dropout": wrong}, f"modality_dropout is {wrong!r}; give a probability in ")
        for wrong in (-0.1, 1.1, np.nan, "half")
    ),
    *(
        ({"precision": wrong}, f"precision is {wrong!r}; give one of .*'float32', 'bfloat16'")
        for wrong in ("float16", torch.bfloat16, None)
    ),
    *(
        ({"seed": wrong}, f"seed is {wrong!r}; give a whole number from 0 to 2")
        for wrong in (-1, 2**63, 10**30, 0.5, "1", None)
    ),
    ({"batch_size": 25}, "train: batch_size 25 is more than the 24 clips; give 24 or less"),
    ({"data": Clips([])}, "train: data has no clips; give some"),
]


@pytest.mark.parametrize(("changes", "message"), ARGUMENTS)
def test_arguments_that_make_no_sense_are_refused(no_shape_checks, changes, message):
    model, data = zorro(), changes.get("data", mixed())
    before, chance = weights(model), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        fit(model, **{"data": data, **changes})
    assert same(weights(model), before)
    assert torch.equal(torch.get_rng_state(), chance)
    assert not data.asked


def test_processes_that_do_not_divide_a_batch_are_refused(monkeypatch):
    monkeypatch.setattr("avlib.training.meet", lambda device: (0, 3))
    with pytest.raises(
        ValueError, match="batch_size 4 does not divide by 3 processes; give a mult"
    ):
        fit()


@pytest.mark.parametrize("seed", [0, 2**31, 2**63 - 1])
def test_seeds_may_be_large(seed):
    fit(steps=1, seed=seed)


class Stream(IterableDataset):
    def __iter__(self):
        yield from World(4)


def test_data_without_a_length_are_refused():
    with pytest.raises(
        TypeError, match="data is a Stream without a length; give a dataset with __"
    ):
        fit(data=Stream())


def test_a_model_with_nothing_to_learn_is_refused():
    with pytest.raises(
        ValueError, match="train: all weights are frozen; set requires_grad of some"
    ):
        fit(zorro().requires_grad_(False))


def test_a_model_that_does_not_fit_the_objective_is_refused():
    for num_classes in (None, 5):
        with pytest.raises(
            ValueError, match=f"has num_classes={num_classes}, the objective needs 11"
        ):
            fit(zorro(num_classes=num_classes))
    with pytest.raises(ValueError, match="contrast names the readout 'video', the model has"):
        fit(zorro(return_token_types=("audio", "fusion")))
    with pytest.raises(ValueError, match="give each kind once"):
        fit(zorro(return_token_types=("audio", "video", "video")))


# Data


def relabelled(**labels):
    return Clips([clip._replace(labels={**clip.labels, **labels}) for clip in mixed().clips])


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_that_do_not_fit_are_refused_before_the_first_step(workers):
    model = zorro()
    before = weights(model)
    lacking = Clips([clip._replace(labels={"shape": 0}) for clip in mixed().clips])
    with pytest.raises(
        ValueError, match=r"the clips have the labels \['shape'\], wanted 'pitch' too"
    ):
        fit(model, lacking, workers=workers)
    for number in (4, -2, 10**6):
        with pytest.raises(
            ValueError, match=f"a clip has class {number} of 'pitch', wanted 0 to 3"
        ):
            fit(model, relabelled(pitch=number), workers=workers)
    assert same(weights(model), before)
    assert not model.training


def test_labels_that_nobody_asks_for_change_nothing():
    models = [zorro() for _ in range(2)]
    fit(models[0])
    fit(models[1], relabelled(another=10**6, shapes=-7))
    assert same(*map(weights, models))


def test_batches_of_one_clip_and_of_all_clips():
    for batch_size in (1, 24):
        history = fit(batch_size=batch_size)
        assert history.losses.isfinite().all()
        assert history["audio - video"].any() == (batch_size > 1)  # one alone has no contrast


@pytest.mark.parametrize("name", ["audio", "video"])
def test_data_of_one_modality_train_what_can_be_trained(name):
    clips = Clips([clip._replace(**{name: None}) for clip in World(8)])
    history = fit(data=clips, modality_dropout=0.5)
    other = {"audio": "video", "video": "audio"}[name]
    assert not history[f"{name} shape"].any()
    assert not history["audio - video"].any()
    assert history[f"{other} shape"].all()
    assert history["fusion shape"].all()


def test_labels_that_nobody_knows_give_no_loss():
    history = fit(data=relabelled(shape=UNKNOWN))
    assert not history.losses[:, :4].any()
    assert history.losses[:, 4:].any()


def test_a_model_in_either_mode_is_trained_alike():
    models = [zorro(dropout=0.3).train(mode) for mode in (True, False)]
    for model in models:
        fit(model)
        assert not model.training
    assert same(*map(weights, models))


def test_a_model_can_be_trained_on():
    """A second training begins with new moments, and from the weights of the first."""
    model = zorro()
    first = fit(model, World(24), steps=40, learning_rate=5e-3)
    second = fit(model, World(24), steps=40, learning_rate=5e-3)
    assert second.total[:5].mean() < first.total[:5].mean()
