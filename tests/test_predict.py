"""Predicted memory, against measured memory and against what is known of CUDA."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avlib.course.reversible import towers
from avlib.memory import KINDS, make_step, measure
from avlib.predict import predict, predict_by_depth

WAYS = {"stored": {}, "checkpointed": {"checkpoint": True}, "reversible": {"reversible": True}}
MILLION = 10**6


def signals(**changes):
    return {"audio": torch.randn(2, 8000), "video": torch.rand(2, 3, 4, 16, 16), **changes}


def measured(model, inputs, *, optimizer=None, **settings):
    made = None if optimizer is None else optimizer(model.parameters())
    step = make_step(model, inputs, optimizer=made, **settings)
    return measure(step, model=model, optimizer=made)


class Towers(nn.Module):
    """The dual-modality sequence, reversible or not, as one module."""

    def __init__(self, depth, reverse, dropout=0.0):
        super().__init__()
        self.towers, self.reverse = towers(depth, 32, dropout=dropout), reverse

    def forward(self, video, audio):
        return self.towers(video, audio, reverse=self.reverse)


# Against measure


@pytest.mark.parametrize(
    ("optimizer", "autocast"),
    [(None, None), (torch.optim.AdamW, torch.bfloat16), (partial(torch.optim.SGD, lr=0.1), None)],
    ids=["float32", "AdamW, bfloat16", "SGD"],
)
@pytest.mark.parametrize("way", WAYS)
def test_zorro_needs_what_was_predicted(make_zorro, way, optimizer, autocast):
    settings = {"optimizer": optimizer, "autocast": autocast}
    model_fn = partial(make_zorro, 3, **WAYS[way])
    found = measured(model_fn(), signals(), **settings)
    wanted = predict(model_fn, signals(), **settings)
    assert wanted.peak == pytest.approx(found.peak, rel=0.001)
    for kind, count in wanted.at_peak.items():
        assert count == pytest.approx(found.at_peak[kind], rel=0.01, abs=1000), kind


@pytest.mark.parametrize(
    "inputs",
    [
        signals(audio_lengths=[8000, 3000], video_lengths=[4, 2]),
        {"audio": torch.randn(2, 8000), "return_token_indices": (0,)},
    ],
    ids=["padded", "audio alone"],
)
@pytest.mark.parametrize("way", WAYS)
def test_other_inputs(make_zorro, way, inputs):
    model_fn = partial(make_zorro, **WAYS[way])
    assert predict(model_fn, inputs).peak == pytest.approx(
        measured(model_fn(), inputs).peak, rel=0.001
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_towers_need_what_was_predicted(reverse):
    inputs = [torch.randn(2, 40, 32), torch.randn(2, 12, 32)]
    model_fn = partial(Towers, 6, reverse)
    assert predict(model_fn, inputs).peak == pytest.approx(
        measured(model_fn(), inputs).peak, rel=0.001
    )


def test_anyones_module_needs_what_was_predicted():
    def model_fn():
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    inputs = [torch.randn(4, 50, 32)]
    for training in (True, False):
        found = measured(model_fn(), inputs, training=training)
        wanted = predict(model_fn, inputs, training=training)
        assert wanted.peak == pytest.approx(found.peak, rel=0.001)


def test_a_loss_of_ones_own():
    def model_fn():
        return nn.Linear(100, 1000)

    def loss(logits):
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    inputs = [torch.randn(50, 100)]
    found = measured(model_fn(), inputs, loss=loss)
    assert predict(model_fn, inputs, loss=loss).peak == pytest.approx(found.peak, rel=0.001)
    assert predict(model_fn, inputs).peak < 0.9 * found.peak


class Halves(nn.Sequential):
    """A model that is converted on its way, as many are."""

    def __init__(self):
        layer = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 32))
        super().__init__(layer, copy.deepcopy(layer), nn.Dropout(0.1))
        self.to(torch.float64)


def test_converted_and_copied_layers():
    inputs = [torch.randn(50, 32, dtype=torch.float64)]
    for _ in range(2):  # torch's cache of fake results must not matter
        wanted = predict(Halves, inputs, optimizer=torch.optim.AdamW)
        found = measured(Halves(), inputs, optimizer=torch.optim.AdamW)
        assert wanted.peak == pytest.approx(found.peak, rel=0.001)


def test_gradients_that_no_optimizer_frees():
    inputs = [torch.randn(1000, 32, requires_grad=True)]
    settings = {"optimizer": partial(torch.optim.SGD, lr=0.1)}
    found = measured(nn.Linear(32, 8), inputs, **settings)
    assert predict(partial(nn.Linear, 32, 8), inputs, **settings).peak == found.peak


def test_inputs_that_share_memory_share_it_in_the_prediction():
    class Both(nn.Linear):
        def forward(self, one, other):
            return super().forward(one) + super().forward(other)

    rows = torch.randn(1000, 32)
    inputs = [rows[100:200], rows[200:300]]
    found = measured(Both(32, 8), inputs)
    assert predict(partial(Both, 32, 8), inputs).peak == found.peak


def test_inference_keeps_nothing(make_zorro):
    video = {"video": torch.rand(2, 3, 4, 16, 16), "return_token_indices": (1,)}
    uses = [predict(partial(make_zorro, depth), video, training=False) for depth in (2, 6)]
    assert uses[0].at_peak["activations"] == uses[0].at_peak["gradients"] == 0
    assert uses[0].at_peak["temporaries"] == uses[1].at_peak["temporaries"]


# What it costs


def test_nothing_is_allocated():
    """Four terabytes."""
    use = predict(
        partial(nn.Linear, MILLION, MILLION),
        [torch.empty(8, MILLION, device="meta")],
        optimizer=torch.optim.AdamW,
    )
    assert use.at_peak["parameters"] == 4 * (MILLION**2 + MILLION)
    assert use.at_peak["optimizer"] >= 2 * use.at_peak["parameters"]


def test_random_numbers_are_left_alone():
    before = torch.get_rng_state()

    def seeds():
        torch.manual_seed(1)
        return nn.Linear(2, 2)

    predict(seeds, [torch.zeros(1, 2)])
    predict(partial(Towers, 2, True, dropout=0.1), [torch.empty(1, 9, 32), torch.empty(1, 5, 32)])
    assert torch.equal(torch.get_rng_state(), before)


# Any depth, from two


@pytest.mark.parametrize(
    ("device", "optimizer", "size"),
    [("cpu", None, 64), ("cuda", torch.optim.AdamW, 8)],
    ids=["activations dominate", "weights dominate"],
)
@pytest.mark.parametrize("way", WAYS)
def test_two_depths_tell_the_others(make_zorro, way, device, optimizer, size):
    def model_fn(depth):
        return make_zorro(depth, **WAYS[way])

    video = torch.empty(2, 3, 4, size, size, device="meta")
    inputs = {"video": video, "return_token_indices": (1, 2)}
    settings = {"optimizer": optimizer, "device": device}
    by_depth = predict_by_depth(model_fn, inputs, **settings)
    direct = predict(partial(model_fn, 11), inputs, **settings)
    # The fake window of the spectrogram was seen to take 4100 bytes at first, 4096 later.
    assert by_depth.at(11).peak == pytest.approx(direct.peak, abs=100)
    assert by_depth.at(11).at_peak == pytest.approx(direct.at_peak, abs=100)


class WideBegin(nn.Sequential):
    """Shallow, it holds the most at the end of the backward pass; deep, where that begins."""

    def __init__(self, depth):
        layers = [layer for _ in range(depth) for layer in (nn.Linear(50, 50), nn.GELU())]
        super().__init__(nn.Linear(10, 2000), nn.GELU(), nn.Linear(2000, 50), *layers)


def test_the_peak_may_move_with_depth():
    rows = [torch.empty(1000, 10, device="meta")]
    by_depth = predict_by_depth(WideBegin, rows)
    shallow, deep = (predict(partial(WideBegin, depth), rows) for depth in (5, 80))
    moments = [use.total.argmax() / len(use.phases) for use in (shallow, deep)]
    assert moments[0] > moments[1]
    assert by_depth.at(5).peak == shallow.peak
    assert by_depth.at(80).peak == deep.peak


def test_the_deepest_model_fits_and_the_next_does_not(make_zorro):
    by_depth = predict_by_depth(make_zorro, signals())
    for budget in (5 * MILLION, 50 * MILLION, 10**12):
        deepest = by_depth.deepest(budget)
        assert by_depth.at(deepest).peak <= budget < by_depth.at(deepest + 1).peak
    assert by_depth.deepest(1000) == 0


def test_the_deepest_of_a_large_budget():
    """77 by trying; the depth was searched for among so many that their bytes overflowed."""
    rows = [torch.empty(4096, 7168, device="meta")]
    settings = {"optimizer": torch.optim.AdamW, "device": "cuda"}

    def stack(depth):
        return nn.Sequential(
            *(nn.Sequential(nn.Linear(7168, 7168), nn.GELU()) for _ in range(depth))
        )

    by_depth = predict_by_depth(stack, rows, **settings)
    deepest = by_depth.deepest(80e9)
    direct = [
        predict(partial(stack, depth), rows, **settings).peak for depth in (deepest, deepest + 1)
    ]
    assert direct[0] <= 80e9 < direct[1]
    with pytest.raises(ValueError, match="budget is nan; give a number of bytes"):
        by_depth.deepest(float("nan"))


@pytest.mark.parametrize("depths", [(4, 4), (6, 4), (4,), (0, 2)])
def test_depths_must_grow(depths, no_shape_checks):
    with pytest.raises(ValueError, match=r"wanted two that grow, such as \(4, 6\)"):
        predict_by_depth(lambda depth: nn.Linear(2, 2), [torch.zeros(1, 2)], depths=depths)


def test_a_model_that_does_not_grow_has_no_deepest():
    by_depth = predict_by_depth(lambda depth: nn.Linear(8, 8), [torch.zeros(1, 8)])
    with pytest.raises(ValueError, match="the peak does not grow from depth 4 to 6"):
        by_depth.deepest(MILLION)
    with pytest.raises(ValueError, match="depth is 3, wanted 4 or more; use predict"):
        by_depth.at(3)


# As on CUDA


class Attends(nn.Module):
    def __init__(self, dropout=0.0, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))
        self.dropout = dropout

    def forward(self, query):
        query = query * self.weight
        return F.scaled_dot_product_attention(query, query, query, None, self.dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_cuda_keeps_no_scores(dropout):
    tokens, scores = 4 * 512 * 16, 4 * 512 * 512
    inputs = [torch.empty(1, 1, 512, 16, device="meta")]
    use = predict(partial(Attends, dropout), inputs, device="cuda")
    assert use.peak < 8 * tokens < scores
    if dropout:
        assert predict(partial(Attends, dropout), inputs).peak > scores


@pytest.mark.parametrize(
    ("dtype", "width", "fused"),
    [
        (torch.float64, 16, False),
        (torch.float32, 10, False),  # its rows are not whole 16 bytes
        (torch.bfloat16, 10, True),  # but without a mask there is another kernel
    ],
)
def test_where_cuda_has_fused_attention(dtype, width, fused):
    inputs = [torch.empty(1, 1, 512, width, device="meta", dtype=dtype)]
    use = predict(partial(Attends, dtype=dtype), inputs, device="cuda")
    assert (use.peak < dtype.itemsize * 512 * 512) == fused


def test_cudas_dropout_keeps_booleans():
    def model_fn():
        return nn.Sequential(nn.Linear(10, 10), nn.Dropout(0.5))

    inputs = [torch.empty(MILLION, 10, device="meta")]
    cpu, cuda = (predict(model_fn, inputs, device=device) for device in ("cpu", "cuda"))
    begins = cpu.phases.index("backward")
    saved = cpu.timeline["activations"][begins] - cuda.timeline["activations"][begins]
    assert saved == 10 * MILLION * (4 - 1)


def test_cudas_autocast_norms_in_float32():
    def model_fn():
        return nn.Sequential(nn.Linear(10, 10), nn.LayerNorm(10), nn.Linear(10, 10))

    inputs = [torch.empty(MILLION, 10, device="meta")]
    settings = {"autocast": torch.bfloat16}
    cpu, cuda = (predict(model_fn, inputs, device=d, **settings) for d in ("cpu", "cuda"))
    begins = cpu.phases.index("backward")
    more = cuda.timeline["activations"][begins] - cpu.timeline["activations"][begins]
    assert more >= 10 * MILLION * 2  # the norm's input, in four bytes and not in two


def test_cudas_sum_reads_16_bits_as_they_are():
    inputs = [torch.empty(MILLION, 8, device="meta")]
    use = predict(partial(nn.Linear, 8, 100), inputs, device="cuda", autocast=torch.bfloat16)
    rows = 100 * MILLION * 2
    assert use.peak < 2.5 * rows  # what Linear gives and its gradient, not another in float32


def test_a_rate_in_a_tensor_is_as_torch_has_it():
    adam = partial(torch.optim.AdamW, lr=torch.tensor(0.1))
    predict(partial(nn.Linear, 2, 2), [torch.zeros(1, 2)], device="cuda", optimizer=adam)


def test_cudas_optimizers_take_all_parameters_at_once():
    def model_fn():
        return nn.Sequential(*(nn.Linear(100, 100) for _ in range(10)))

    inputs, adam = [torch.zeros(1, 100)], torch.optim.AdamW
    cpu, cuda = (predict(model_fn, inputs, device=d, optimizer=adam) for d in ("cpu", "cuda"))
    assert cuda.phases[int(cuda.total.argmax())] == "optimizer"
    assert (
        cuda.at_peak["temporaries"] >= cuda.at_peak["parameters"] > 5 * cpu.at_peak["temporaries"]
    )
    alone = predict(model_fn, inputs, device="cuda", optimizer=partial(adam, foreach=False))
    assert alone.peak == cpu.peak


# Bad input


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="device is 'tpu', there are 'cpu' and 'cuda'"):
        predict(partial(nn.Linear, 2, 2), [torch.zeros(1, 2)], device="tpu")


def test_a_model_with_numbers_is_refused_and_left_alone():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"numbers in its parameters, .* make the model within"):
        predict(lambda: model, [torch.zeros(1, 2)], optimizer=torch.optim.AdamW)
    assert model.weight.grad is None


def test_recurrent_networks_are_refused():
    with pytest.raises(ValueError, match="whose memory fake tensors do not show; measure it"):
        predict(partial(nn.LSTM, 4, 8), [torch.zeros(5, 1, 4)])


class Asks(nn.Linear):
    def forward(self, rows):
        if not rows.isfinite().all():  # answered with no: so this is "yes, something is wrong"
            rows = rows + 1
        return super().forward(rows[: int(rows.sum())] if self.out_features == 3 else rows)


def test_questions_about_numbers():
    predict(partial(Asks, 2, 2), [torch.zeros(1, 2)])
    with pytest.raises(ValueError, match=r"asks for numbers in a tensor .* give it plain numbers"):
        predict(partial(Asks, 2, 3), [torch.zeros(1, 2)])


def test_kinds_are_all_there(make_zorro):
    use = predict(make_zorro, signals())
    assert set(use.timeline) == set(KINDS)
    assert {len(values) for values in use.timeline.values()} == {len(use.phases)}
