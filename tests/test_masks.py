import copy
import pickle
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avlib import Visibility, attend, zorro_readout, zorro_trunk

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


def test_equal_rules_are_equal_and_can_be_keys_of_a_dictionary():
    one, two = zorro_trunk("audio", "video"), zorro_trunk("audio", "video")
    turned = Visibility({"fusion": "all", "video": "video", "audio": "audio"}, one.keys)
    assert one == two
    assert len({one, two, turned, pickle.loads(pickle.dumps(one)), copy.deepcopy(one)}) == 2
    with pytest.raises(TypeError, match="does not support item assignment"):
        one.reads["audio"] = ("audio", "video")


def test_many_layers_are_no_more_work_than_the_first_few():
    assert zorro_trunk("audio", "video").after(10**9) == zorro_trunk("audio", "video").after(3)


def test_readers_may_be_chosen_apart_from_keys():
    heads = zorro_readout("audio", "video")
    some = heads.only(["fusion", "audio"], readers=["global", "audio"])
    assert some.readers == ("global", "audio")
    assert some.keys == ("audio", "fusion")
    assert dict(some.reads) == {"global": ("audio", "fusion"), "audio": ("audio",)}
    with pytest.raises(ValueError, match=r"only: got \['smell'\], wanted a list of names from"):
        heads.only(["audio"], readers=["smell"])
    with pytest.raises(ValueError, match=r"only: got 'audio', wanted a list"):
        heads.only(["audio"], readers="audio")
    with pytest.raises(ValueError, match="video reads nothing"):
        heads.only(["audio"], readers=["video"])
