"""Live bytes on the CPU, counted by hand beside, and by PyTorch's own tracker."""

import gc
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from avlib.memory import KINDS, make_step, measure, peak_bytes, readable

THOUSAND = 4000  # bytes of a thousand float32


def signals() -> dict[str, torch.Tensor]:
    """A second of sound and four frames, for `make_zorro`."""
    return {"audio": torch.randn(2, 8000), "video": torch.rand(2, 3, 4, 16, 16)}


def test_the_peak_is_what_was_alive_at_one_time():
    def step():
        one = torch.zeros(1000)
        two = one + 1
        del one
        three = two * 2  # two and three
        four = torch.cat([two, three])  # and four, twice as large
        del two, three
        return four.sum()

    assert peak_bytes(step) == 4 * THOUSAND


def test_views_are_free_and_what_was_there_before_is_not_counted():
    before = torch.zeros(1000)
    before_base = torch.zeros(2000)[:1000]
    assert peak_bytes(lambda: before.view(10, 100).t()[2:].detach()) == 0
    assert peak_bytes(lambda: before.add_(1).mul_(before_base)) == 0
    assert peak_bytes(lambda: before + 1) == THOUSAND


def test_what_autograd_keeps_is_counted_until_it_is_freed():
    weight = torch.ones(1000, requires_grad=True)
    weight.grad = torch.zeros(1000)

    def kept(layers):
        def step():
            stream = weight
            for _ in range(layers):
                stream = stream.exp()  # keeps its output
            return stream.sum()

        return peak_bytes(step) - 4

    assert kept(10) - kept(5) == 5 * THOUSAND


# measure


def tiny_step(optimizer=torch.optim.SGD):
    """A step whose bytes are counted by hand: 10 rows of 100 numbers through a 100 × 100 weight."""
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Tanh(), nn.Tanh())
    inputs = torch.randn(10, 100)
    made = None if optimizer is None else optimizer(model.parameters(), lr=0.01)
    return {"model": model, "optimizer": made}, make_step(model, [inputs], optimizer=made)


def test_each_kind_is_what_a_hand_counts():
    owners, step = tiny_step(torch.optim.Adam)
    use = measure(step, **owners)
    weight, rows = 40_000, 4_000
    last = {phase: len(use.phases) - 1 - use.phases[::-1].index(phase) for phase in use.phases}
    held = {kind: bytes_.tolist() for kind, bytes_ in use.timeline.items()}
    assert set(held["parameters"]) == {weight}
    assert set(held["inputs"]) == {rows}
    assert set(held["optimizer"]) == {2 * weight + 4}  # two moments and the number of steps
    assert held["gradients"][last["forward"]] == 0  # freed by zero_grad
    assert held["gradients"][last["backward"]] == weight
    # Both tanh keep their output; the loss and its gradient of 1 are scalars.
    assert held["activations"][last["forward"]] == 2 * rows + 2 * 4
    assert held["activations"][last["backward"]] <= 2 * 4
    assert set(held["workspaces"]) == {0}


def test_the_phases_come_in_order():
    owners, step = tiny_step()
    use = measure(step, **owners)
    assert list(dict.fromkeys(use.phases)) == ["before", "forward", "backward", "optimizer"]
    assert sorted(use.phases, key=["before", "forward", "backward", "optimizer"].index) == list(
        use.phases
    )


def test_gradients_that_are_there_are_not_taken_for_activations():
    owners, step = tiny_step(None)
    use = measure(step, **owners)
    assert use.timeline["gradients"].tolist() == [40_000] * len(use.phases)
    assert use.timeline["temporaries"].max() >= 40_000  # the new one, before it is added


def test_the_peak_is_the_largest_total_and_its_kinds_add_up():
    owners, step = tiny_step()
    use = measure(step, **owners)
    assert use.peak == use.total.max() == sum(use.at_peak.values())
    assert f"{use.peak / 1000:.2f} kB" in str(use)


def test_without_owners_the_same_bytes_have_other_names():
    owners, step = tiny_step()
    named, nameless = measure(step, **owners), measure(step)
    assert named.peak == nameless.peak
    assert nameless.timeline["parameters"].max() == nameless.timeline["gradients"].max() == 0


def test_warming_up_makes_the_optimizers_state_old():
    owners, step = tiny_step(torch.optim.Adam)
    cold = measure(step, warmups=0, **owners)
    warm = measure(step, warmups=0, **owners)
    assert cold.timeline["optimizer"][0] <= 4  # the number of steps, which no operation makes
    assert warm.timeline["optimizer"][0] == 80_004
    owners, step = tiny_step(torch.optim.Adam)
    assert measure(step, **owners).timeline["optimizer"][0] == 80_004


@pytest.mark.parametrize("way", [{}, {"checkpoint": True}, {"reversible": True}])
def test_the_same_bytes_in_every_run(make_zorro, way):
    model = make_zorro(**way).train()
    optimizer = torch.optim.AdamW(model.parameters())
    step = make_step(model, signals(), optimizer=optimizer)
    first, *others = (measure(step, model=model, optimizer=optimizer) for _ in range(3))
    for other in others:
        assert other.phases == first.phases
        for kind in KINDS:
            assert torch.equal(other.timeline[kind], first.timeline[kind])


@pytest.mark.parametrize("way", [{}, {"checkpoint": True}])
def test_agrees_with_pytorchs_own_tracker(make_zorro, way):
    model = make_zorro(**way).train()
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = signals()
    step = make_step(model, inputs, optimizer=optimizer)
    use = measure(step, model=model, optimizer=optimizer)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, *inputs.values())
    with tracker:
        step()
    (theirs,) = tracker.get_tracker_snapshot("peak").values()
    assert use.peak == pytest.approx(theirs["Total"], abs=64)  # it lets a scalar live longer


def test_checkpointed_and_reversible_steps_keep_less(make_zorro):
    kept, peaks = {}, {}
    for name, way in (
        ("stored", {}),
        ("checkpoint", {"checkpoint": True}),
        ("reversible", {"reversible": True}),
    ):
        for depth in (4, 8):
            model = make_zorro(depth, **way)
            # Without sound: the windows of the spectrogram would be the peak.
            video = {"video": signals()["video"], "return_token_indices": (1,)}
            use = measure(make_step(model, video), model=model)
            begins = use.phases.index("backward")
            kept[name, depth] = int(use.timeline["activations"][begins])
            peaks[name, depth] = use.peak
    assert kept["stored", 8] > 1.7 * kept["stored", 4]
    assert kept["stored", 8] > 3 * kept["checkpoint", 8]
    assert kept["reversible", 8] == kept["reversible", 4]
    assert peaks["stored", 8] > peaks["checkpoint", 8] > peaks["reversible", 8]


def test_the_first_count_of_a_process_is_right():
    code = """
import torch
from avlib import Zorro
from avlib.memory import peak_bytes
model = Zorro(dim=64, depth=8, heads=4, dim_head=16)
clip = {"audio": torch.randn(1, 16_000), "video": torch.rand(1, 3, 8, 64, 64)}
step = lambda: model(**clip).sum().backward()
step()
print(len({peak_bytes(step) for _ in range(3)}))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "1"


def test_collection_and_hooks_are_as_before(make_zorro):
    model = make_zorro()

    def fails():
        model(**signals()).sum().backward()
        raise RuntimeError("on its way")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="on its way"):
        measure(fails, model=model)
    assert gc.isenabled()
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_nothing_on_the_device_is_an_error():
    with pytest.raises(ValueError, match="computed nothing on meta; name the device"):
        measure(lambda: torch.zeros(10), device="meta")


def test_a_generator_computes_nothing():
    def step():
        yield torch.zeros(10)

    with pytest.raises(ValueError, match="give a function, not a generator"):
        measure(step)


def test_a_storage_that_grows_is_counted_as_it_is():
    one = torch.zeros(1000)

    def step():
        out = torch.empty(0)
        torch.add(one, 1, out=out)
        return out.sum()

    assert peak_bytes(step) == THOUSAND + 4


def test_sparse_tensors_are_refused():
    model = nn.Embedding(10, 4, sparse=True)
    with pytest.raises(
        ValueError, match=r"layout torch.sparse_coo, and only strided .* make it dense"
    ):
        measure(make_step(model, [torch.tensor([1, 2])]), model=model)


def test_steps_that_cannot_be_made_say_so(no_shape_checks):
    with pytest.raises(
        TypeError, match=r"inputs is a tensor, wanted a list of them; write \[inputs"
    ):
        make_step(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="without a floating-point tensor in it; give loss="):
        make_step(nn.Flatten(), [torch.zeros(2, 3, dtype=torch.long)])()


def test_on_cuda_the_allocator_is_asked(monkeypatch):
    """Its counters play the part of a GPU: 3000 bytes were there, each operation takes 70 more."""
    nested = {"requested_bytes": {"all": {"peak": 170, "current": 100}}}
    flat = {
        "requested_bytes.all.current": 3000,
        "requested_bytes.all.peak": 5000,
        "allocated_bytes.all.peak": 5632,
        "reserved_bytes.all.peak": 2**21,
    }
    for name, answer in {
        "memory_stats": flat,
        "memory_stats_as_nested_dict": nested,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "synchronize": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    use = measure(lambda: torch.zeros(10) + 1, device="cuda")
    assert use.timeline["workspaces"].tolist() == [0, 70, 70]
    assert use.allocator == {
        "requested": 5000,
        "allocated": 5632,
        "reserved": 2**21,
        "other": 3000,  # nothing on the CPU counts as this step's
    }


def test_readable_units():
    units = [readable(count)[0] for count in (0, 999, 1000, 999_999, 10**9, 10**14)]
    assert units == ["bytes", "bytes", "kB", "kB", "GB", "GB"]
