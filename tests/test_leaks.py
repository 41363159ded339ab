"""`influence` finds what moves what, by gradient or by value, and refuses what it cannot judge."""

import re

import pytest
import torch

from avlib import Influence, Visibility, influence, zorro_readout


def measure(fn, *, promise=None, groups=None, **inputs):
    inputs = inputs or {"audio": torch.randn(2, 3), "video": torch.randn(2, 3)}
    return influence(fn, inputs, groups, promise)


SEPARATE = Visibility({"audio": "audio", "video": "video"})


def leaky(leak):
    return lambda audio, video: {"audio": audio + leak(video), "video": video}


def test_influence_finds_no_leak_where_there_is_none():
    found = measure(leaky(lambda video: 0), promise=SEPARATE)
    assert found.moves.tolist() == [[True, False], [False, True]]
    assert found.poisoned.tolist() == [[True, False], [False, True]]
    assert found.leaks == []
    assert str(found) == (
        "audio output: moved by audio; not by video.\n"
        "video output: moved by video; not by audio.\n"
        "The promise holds."
    )


def test_influence_finds_a_leak_by_its_gradient():
    found = measure(leaky(lambda video: 1e-3 * video), promise=SEPARATE)
    assert found.leaks == [("video", "audio")]
    assert found.gradient[0, 1] > 0
    assert found.gradient[1, 0] == 0
    assert re.search(r"LEAK: video moves the audio output \(gradient [1-9]e-0\d\)", str(found))
    assert "holds" not in str(found)


@pytest.mark.parametrize(
    "leak",
    [
        lambda video: video.round(),
        lambda video: video.argmax().float(),
        lambda video: 1e-6 * video.detach(),
        lambda video: (video > 10).float(),
        lambda video: (video == 0).float(),
        lambda video: torch.tensor(float((video * 1e-3).sum() > 0)),
    ],
)
def test_influence_finds_leaks_that_have_no_gradient(leak):
    found = measure(leaky(leak), promise=SEPARATE)
    assert found.gradient[0, 1] == 0
    assert found.leaks == [("video", "audio")]


def test_influence_tells_a_leak_of_nan_alone_from_a_leak_of_values():
    found = measure(leaky(lambda video: 0 * video), promise=SEPARATE)
    assert found.leaks == []
    assert found.poisoned.tolist() == [[True, True], [False, True]]
    assert "NaN or inf in video reaches the audio output, though no finite value does." in str(
        found
    )
    assert "holds" not in str(found)


def test_gradients_that_cancel_in_the_sum_of_an_output_are_found():
    found = measure(leaky(lambda video: video - video.mean()), promise=SEPARATE)
    assert found.gradient[0, 1] > 0.1


def test_a_gradient_of_nan_is_not_zero():
    found = measure(leaky(lambda video: (0 * video.nan_to_num()).sqrt()), promise=SEPARATE)
    assert not found.changed[0, 1]
    assert not found.poisoned[0, 1]
    assert found.leaks == [("video", "audio")]


@pytest.mark.parametrize("broken", [torch.isnan, torch.isinf])
def test_a_broken_value_need_not_stay_broken_to_count(broken):
    found = measure(leaky(lambda video: broken(video).any().float()), promise=SEPARATE)
    assert found.poisoned[0, 1]
    assert "holds" not in str(found)


def test_minus_zero_is_another_bit():
    fn = lambda audio, video: {"audio": (0 * audio.detach()).copysign(video), "video": video}  # noqa: E731
    assert measure(fn, promise=SEPARATE).leaks == [("video", "audio")]


def test_a_gate_that_is_shut_for_the_given_inputs_is_opened():
    fn = lambda audio, video: {"audio": audio * (1 + audio * video), "video": video}  # noqa: E731
    found = measure(fn, promise=SEPARATE, audio=torch.zeros(2, 3), video=torch.randn(2, 3))
    assert found.leaks == [("video", "audio")]


class Stateful(torch.nn.Module):
    """Keeps a running mean, and the first video that it meets."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.first = None

    def forward(self, audio, video):
        self.first = video if self.first is None else self.first
        return {"audio": self.norm(audio) + self.first, "video": video}


def test_a_module_is_measured_as_it_is_and_left_as_it_was():
    module = Stateful()
    found = measure(module, promise=SEPARATE)
    assert found.leaks == [("video", "audio")], "a copy that was used before hides the leak"
    assert module.first is None
    assert torch.equal(module.norm.running_mean, torch.zeros(3))


def test_inputs_are_left_as_they_were_by_a_function_that_writes_on_them():
    audio, video = torch.randn(2, 3), torch.randn(2, 3)
    kept = audio.clone()
    measure(lambda audio, video: {"audio": audio.mul_(2), "video": video}, audio=audio, video=video)
    assert torch.equal(audio, kept)


def test_influence_takes_a_reading_of_a_mapping_or_of_named_parts():
    whole = lambda audio, video: torch.stack([audio, video, audio + video], 1)  # noqa: E731
    groups = {"first": 0, "last two": slice(1, 3), "sum": lambda out: out[:, 2].sum()}
    found = measure(whole, groups=groups)
    assert found.outputs == ("first", "last two", "sum")
    assert found.inputs == ("audio", "video")
    assert found.moves.tolist() == [[True, False], [True, True], [True, True]]


def test_influence_passes_over_promised_names_that_are_no_input():
    promise = zorro_readout("audio", "video")
    found = measure(lambda audio, video: {"global": audio + video}, promise=promise)
    assert found.leaks == []


def test_influence_leaves_gradients_and_the_random_generator_alone():
    layer = torch.nn.Linear(3, 3)
    layer.weight.grad = before = torch.ones(3, 3)
    audio, video = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    state = torch.get_rng_state()
    with torch.no_grad():
        found = measure(lambda audio, video: {"audio": layer(audio)}, audio=audio, video=video)
    assert found.gradient[0, 0] > 0
    assert layer.weight.grad is before
    assert torch.equal(before, torch.ones(3, 3))
    assert layer.bias.grad is None
    assert audio.grad is None
    assert not video.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_influence_seeds_dropout_so_that_only_inputs_differ():
    drop = torch.nn.Dropout(0.5)
    found = measure(leaky(lambda video: drop(torch.ones(2, 3))))
    assert found.moves.tolist() == [[True, False], [False, True]]


def test_a_change_of_size_is_a_change():
    found = measure(lambda audio, video: {"audio": video[video > 0]})
    assert found.changed.tolist() == [[False, True]]


def test_influence_refuses_what_it_cannot_judge():
    counter = iter(range(100))
    with pytest.raises(ValueError, match=r"gives two answers for one input; call .eval\(\) first"):
        measure(lambda audio, video: {"audio": audio + next(counter)})
    with pytest.raises(ValueError, match=r"input 'ids' is torch.int64.*embed tokens first"):
        measure(lambda ids: {"ids": ids}, ids=torch.arange(3))
    with pytest.raises(ValueError, match=r"input 'audio' is not finite; start from finite"):
        measure(lambda audio: {"audio": audio}, audio=torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match=r"returned one output; name its parts, .*groups="):
        measure(lambda audio, video: audio)
    with pytest.raises(
        ValueError, match=r"says nothing about the outputs \['sum'\]; it names \['au"
    ):
        measure(lambda audio, video: {"sum": audio + video}, promise=SEPARATE)
    with pytest.raises(ValueError, match=r"says nothing about the inputs \['sound'\]; it names"):
        measure(lambda sound: {"audio": sound}, promise=SEPARATE, sound=torch.ones(2))
    with pytest.raises(ValueError, match=r"returned the groups \['a'\] and groups names \['b'\]"):
        measure(lambda audio, video: {"a": audio}, groups={"b": 0})
    with pytest.raises(ValueError, match=r"output 'audio' is empty, of shape \(2, 0\)"):
        measure(lambda audio, video: audio, groups={"audio": slice(7, 8)})
    with pytest.raises(ValueError, match="got no outputs; give at least one"):
        measure(lambda audio, video: {})
    with pytest.raises(ValueError, match="output 'audio' is not finite; start from finite"):
        measure(leaky(lambda video: torch.nan))
    with pytest.raises(TypeError, match="output 'audio' is a NoneType, wanted a tensor; wrap fn"):
        measure(lambda audio, video: {"audio": None})


def test_a_promise_covers_every_pair_of_the_table():
    yes, no = torch.ones(2, 2), torch.zeros(2, 2).bool()
    found = Influence(("audio", "video"), ("audio", "video"), yes.double(), no, no, SEPARATE)
    assert found.leaks == [("video", "audio"), ("audio", "video")]
