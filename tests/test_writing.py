"""A twin decoder in `train`: what is minimised, stops and goes on, several processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset
from twins import make_twin

from avlib import Writing, bounce, small_zorro, train
from avlib.checkpoint import load_tensors
from avlib.objective import Objective
from avlib.plan import Plan

CLIPS = TensorDataset(*(part[::9] for part in bounce.clips(["a red square moves up"] * 9)))
SHORT = {"steps": 6, "batch_size": 4, "progress": False}
TASK = Writing(audio_weight=0.5, text_dropout=0.3)


def world_twin(**changes):
    torch.manual_seed(0)
    sizes = {"text_words": 13, "video_codes": 5, "audio_codes": 5, "video_size": (4, 4)}
    return make_twin(**{**sizes, "max_frames": 8, "max_words": 7, **changes})


def plan(**changes):
    numbers = dict(steps=9, batch_size=8, learning_rate=1e-3, warmup=0.0, weight_decay=0.0)
    more = dict(clip=1.0, modality_dropout=0.0, precision="float32", seed=0, processes=1)
    return Plan(**{**numbers, **more, **changes})


def test_its_losses_are_those_of_the_model_weighed():
    model = world_twin().eval()
    task = Writing(video_weight=2.0, audio_weight=0.5)
    batch = task.batch([CLIPS[i] for i in range(5)])
    found = task.found(model, batch, task.outputs(model, batch, model))
    text, video, audio, _ = batch
    losses = model.losses(text=text, video=video, audio=audio)
    assert task.names(model) == ("video", "audio")
    torch.testing.assert_close(found, torch.stack([2 * losses.video, losses.audio / 2]))


def test_some_clips_are_learned_without_their_text_others_in_each_step():
    task = Writing(text_dropout=0.5)
    batch = task.batch([CLIPS[i] for i in range(8)])
    dropped = [task.prepare(batch, plan(), step, 0).dropped.tolist() for step in range(40)]
    assert 0.4 < torch.tensor(dropped).float().mean() < 0.6
    assert len(set(map(tuple, dropped))) > 30
    assert dropped == [task.prepare(batch, plan(), step, 0).dropped.tolist() for step in range(40)]
    assert not Writing().prepare(batch, plan(), 0, 0).dropped.any()


def test_processes_drop_what_one_would():
    task = Writing(text_dropout=0.5)
    whole = task.batch([CLIPS[i] for i in range(8)])
    wanted = task.prepare(whole, plan(), 3, 0).dropped
    halves = [
        task.prepare(task.batch([CLIPS[i] for i in rows]), plan(processes=2), 3, rank).dropped
        for rank, rows in enumerate((range(4), range(4, 8)))
    ]
    assert torch.equal(torch.cat(halves), wanted)


@pytest.mark.parametrize("reversible", [False, True])
def test_a_training_that_was_stopped_ends_with_the_same_weights(reversible, tmp_path):
    whole, parts = (world_twin(dropout=0.1, reversible=reversible) for _ in range(2))
    history = train(whole, CLIPS, TASK, **SHORT)

    def stop(done):
        if done == 4:
            raise KeyboardInterrupt

    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(parts, CLIPS, TASK, checkpoint=file, checkpoint_every=2, watch=stop, **SHORT)
    again = world_twin(dropout=0.1, reversible=reversible)
    later = train(again, CLIPS, TASK, checkpoint=file, checkpoint_every=2, **SHORT)
    assert torch.equal(later.losses, history.losses)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_two_processes_find_the_weights_of_one(tmp_path):
    file, here = tmp_path / "weights.safetensors", Path(__file__).parent
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = [sys.executable, *torchrun, str(here / "writing_ddp.py"), str(file)]
    subprocess.run(run, check=True, capture_output=True, timeout=300)
    alone = world_twin().double()
    train(alone, CLIPS, TASK, **SHORT)
    torch.testing.assert_close(load_tensors(file)[0], alone.state_dict(), rtol=0, atol=1e-12)


def test_a_checkpoint_of_other_weights_of_the_losses_is_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    train(world_twin(), CLIPS, Writing(), checkpoint=file, **SHORT)
    with pytest.raises(ValueError, match=r"made with audio_weight 1\.0 \(now 2\.0\)"):
        train(world_twin(), CLIPS, Writing(audio_weight=2.0), checkpoint=file, **SHORT)


def test_watch_is_told_of_each_step():
    told = []
    train(world_twin(), CLIPS, Writing(), watch=told.append, **SHORT)
    assert told == [1, 2, 3, 4, 5, 6]


def test_every_weight_gets_a_gradient():
    for reversible in (False, True):
        model = world_twin(reversible=reversible)
        task = Writing(text_dropout=1.0)
        batch = task.prepare(task.batch([CLIPS[0]]), plan(batch_size=1), 0, 0)
        task.found(model, batch, task.outputs(model, batch, model)).sum().backward()
        assert not task.unused(model)
        assert all(weight.grad is not None for weight in model.parameters())


def test_what_does_not_fit_is_refused():
    zorro = small_zorro(Objective({"xor": 2}))
    with pytest.raises(TypeError, match="Writing: the model is a Zorro, wanted a TwinDecoder; for"):
        train(zorro, CLIPS, Writing(), **SHORT)
    with pytest.raises(TypeError, match="an example is a tuple, wanted codes"):
        train(world_twin(), TensorDataset(torch.ones(8, 2).long()), Writing(), **SHORT)
    with pytest.raises(ValueError, match=r"modality_dropout is 0\.1, and a twin decoder"):
        train(world_twin(), CLIPS, Writing(), modality_dropout=0.1, **SHORT)
    for changes in ({"video_weight": -1}, {"audio_weight": float("nan")}, {"text_dropout": 1.5}):
        (name,) = changes
        with pytest.raises(ValueError, match=f"Writing: {name} is .*; give a number"):
            Writing(**changes)
