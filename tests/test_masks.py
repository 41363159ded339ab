import copy
import pickle
import re
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avlib import Influence, Visibility, attend, influence, zorro_readout, zorro_trunk

NAMES = ("audio", "video", "text", "fusion")


@st.composite
def rules(draw, square=False):
    """Any rules over up to four groups: what each reader reads, and the keys."""
    groups = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
    keys = draw(groups)
    some_keys = st.lists(st.sampled_from(keys), min_size=1, unique=True)
    return {reader: draw(some_keys) for reader in (keys if square else draw(groups))}, keys


sizes = st.fixed_dictionaries({name: st.integers(0, 3) for name in NAMES})


def tokens(sizes):
    """The group of every token, in order."""
    return [name for name, size in sizes.items() for _ in range(size)]


def boolean_power(matrix, n):
    result = torch.eye(len(matrix), dtype=torch.int64)
    for _ in range(n):
        result = (result @ matrix.long()).clamp(max=1)
    return result.bool()


# The mask


@given(drawn=rules(), reader_sizes=sizes, key_sizes=sizes)
def test_dense_mask_and_mask_mod_are_the_rule_for_every_pair(drawn, reader_sizes, key_sizes):
    visibility = Visibility(*drawn)
    readers = {name: reader_sizes[name] for name in visibility.readers}
    keys = {name: key_sizes[name] for name in visibility.keys}
    dense, mask_mod = visibility.dense(readers, keys), visibility.mask_mod(readers, keys)
    rows, columns = tokens(readers), tokens(keys)
    assert dense.shape == (len(rows), len(columns))
    for i, j in product(range(len(rows)), range(len(columns))):
        assert dense[i, j] == (columns[j] in visibility.reads[rows[i]])
        assert dense[i, j] == mask_mod(*map(torch.tensor, (0, 0, i, j)))
    assert visibility.pairs(readers, keys) == dense.sum()


def test_one_set_of_sizes_serves_readers_and_keys():
    sizes = {"audio": 2, "video": 1, "fusion": 3}
    trunk = zorro_trunk("audio", "video")
    assert torch.equal(trunk.dense(sizes), trunk.dense(sizes, sizes))
    assert trunk.pairs(sizes) == trunk.pairs(sizes, sizes) == 4 + 1 + 3 * 6


def test_true_means_may_read_as_in_scaled_dot_product_attention():
    visibility = Visibility({"reader": "seen"}, ["hidden", "seen"])
    value = torch.tensor([[[0.0], [1.0]]])
    mask = visibility.dense({"reader": 1}, {"hidden": 1, "seen": 1})
    read = F.scaled_dot_product_attention(torch.zeros(1, 1, 1), torch.zeros(1, 2, 1), value, mask)
    assert read.item() == 1


def test_keys_come_in_the_order_of_keys_however_they_are_listed():
    visibility = Visibility({"x": ["c", "a"]}, ["a", "b", "c"])
    assert visibility.reads == {"x": ("a", "c")}
    assert visibility.table().tolist() == [[True, False, True]]


def test_zorro_rules_are_those_of_the_paper_for_any_modalities():
    trunk, readout = zorro_trunk("audio", "video", "text"), zorro_readout("audio", "video")
    assert trunk.table().tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [True, True, True, True],
    ]
    assert readout.readers == ("audio", "video", "fusion", "global")
    assert readout.keys == ("audio", "video", "fusion")
    assert readout.table().tolist() == [*torch.eye(3).bool().tolist(), [True] * 3]


# What follows from it


@given(drawn=rules(square=True), layers=st.integers(0, 5))
def test_after_some_layers_is_the_boolean_matrix_power_with_the_residual(drawn, layers):
    visibility = Visibility(*drawn)
    one_layer = visibility.table() | torch.eye(len(visibility.keys), dtype=torch.bool)
    assert torch.equal(visibility.after(layers).table(), boolean_power(one_layer, layers))


@given(data=st.data(), drawn=rules())
def test_matmul_is_the_boolean_matrix_product(data, drawn):
    later, keys = Visibility(*drawn), ["left", "right"]
    middle = data.draw(st.permutations(later.keys))
    some_keys = st.lists(st.sampled_from(keys), min_size=1, unique=True)
    earlier = Visibility(data.draw(st.fixed_dictionaries(dict.fromkeys(middle, some_keys))), keys)
    order = [earlier.readers.index(key) for key in later.keys]
    expected = later.table().long() @ earlier.table().long()[order] > 0
    both = later @ earlier
    assert torch.equal(both.table(), expected)
    assert (both.readers, both.keys) == (later.readers, earlier.keys)


@given(drawn=rules(square=True), names=st.sets(st.sampled_from(NAMES)))
def test_only_cuts_rows_and_columns_out_of_the_table(drawn, names):
    visibility = Visibility(*drawn)
    index = [i for i, name in enumerate(visibility.keys) if name in names]
    table = visibility.table()[index][:, index]
    if set(names) - set(visibility.keys) or not index or not table.any(1).all():
        with pytest.raises(ValueError, match=r"reads nothing|no readers|wanted a list of names"):
            visibility.only(tuple(names))
    else:
        assert torch.equal(visibility.only(tuple(names)).table(), table)


def test_flops_are_what_pytorch_counts_for_attend():
    sizes, heads, dim_head = {"audio": 5, "video": 7, "fusion": 2}, 3, 4
    trunk = zorro_trunk("audio", "video")
    streams = {name: torch.randn(1, heads, n, dim_head) for name, n in sizes.items()}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        attend(streams, streams, streams, trunk)
    assert trunk.flops(sizes, dim=heads * dim_head) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Visibility({"a": []}), "a reads nothing; let it read at least one of a"),
        (lambda: Visibility({"a": "all"}, []), "a reads nothing; let it read .* some key groups"),
        (lambda: Visibility({}), "no readers; give at least one"),
        (lambda: Visibility({"a": ["b"]}), "a reads 'b', which is no key group; .* are a$"),
        (lambda: Visibility({"a": "b"}), "a reads 'b', which is no key group"),
        (lambda: zorro_trunk("audio").only([]), "no readers"),
        (lambda: zorro_trunk("audio").only(["text"]), r"got \['text'\], wanted a list of names fr"),
        (lambda: zorro_trunk("audio").only("audio"), "got 'audio', wanted a list of names from"),
        (lambda: zorro_trunk("audio", "audio"), r"got \('audio', 'audio'\); give different names"),
        (lambda: zorro_readout("fusion"), "give different names, other than fusion and global"),
        (lambda: Visibility({"a": "all"}, ["a", "a"]), "'a' cannot name a group; .* of its own"),
        (lambda: Visibility({"all": "all"}), "'all' cannot name a group"),
        (
            lambda: zorro_trunk("a").dense({"a": -1, "fusion": 2}),
            "got readers {'a': -1, 'fusion': 2",
        ),
        (lambda: zorro_trunk("audio").dense({"audio": 1}), r"dense: got readers {'audio': ..*only"),
        (lambda: zorro_readout("audio").pairs({"audio": 1, "fusion": 1}), "pairs: got readers"),
        (
            lambda: zorro_trunk("a").mask_mod({"a": 1, "fusion": 1}, {"a": 1, "b": 1, "fusion": 1}),
            r"mask_mod: got keys {'a': ., 'b': ., 'fusion': .}, wanted .* \['a', 'fusion'\]",
        ),
        (lambda: zorro_trunk("a") @ zorro_trunk("b"), r"left reads \['a', 'fusion'\].*same groups"),
        (lambda: zorro_readout("audio").after(1), "got 1 layers .* keys that are the readers"),
        (lambda: zorro_trunk("audio").after(-1), "got -1 layers .* layers ≥ 0"),
    ],
)
def test_rules_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Influence


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


def test_equal_rules_are_equal_and_can_be_keys_of_a_dictionary():
    one, two = zorro_trunk("audio", "video"), zorro_trunk("audio", "video")
    turned = Visibility({"fusion": "all", "video": "video", "audio": "audio"}, one.keys)
    assert one == two
    assert len({one, two, turned, pickle.loads(pickle.dumps(one)), copy.deepcopy(one)}) == 2
    with pytest.raises(TypeError, match="does not support item assignment"):
        one.reads["audio"] = ("audio", "video")


def test_many_layers_are_no_more_work_than_the_first_few():
    assert zorro_trunk("audio", "video").after(10**9) == zorro_trunk("audio", "video").after(3)
