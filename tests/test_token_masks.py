import operator
import re
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from avlib import Mask, Visibility, as_mask, influence, zorro_readout, zorro_trunk
from avlib.gallery import causal, full, padding, sliding_window, zorro
from avlib.named_tokens import Tokens
from avlib.reach import cost
from avlib.token_masks import counted, text_grid

SIZES = {"audio": 2, "video": 3}
N = 5
SOME, TABLE = torch.eye(3, dtype=torch.bool), torch.rand(2, 3, N, N) < 0.5


def every(mask):
    """The dense masks of all clips and heads."""
    rows = [[mask.dense(batch=b, head=h) for h in range(mask.heads)] for b in range(mask.batch)]
    return torch.stack([torch.stack(row) for row in rows])


# Combining


def held_by(kind, seed):
    """Some source of a mask, and what it says, (batch, heads, n, n)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(shape, generator=generator) < 0.5

    one, many, real = random(N, N), random(2, 3, N, N), random(2, N)
    group = ["audio"] * 2 + ["video"] * 3
    rules = Visibility({"video": "audio", "audio": "all"}, ["audio", "video"])
    ruled = torch.tensor([[j in rules.reads[i] for j in group] for i in group])

    def looks_at_clip_and_head(b, h, i, j):
        return many[b, h, i, j]

    return {
        "tensor": lambda: (one, one[None, None]),
        "array": lambda: (one.numpy(), one[None, None]),
        "additive": lambda: (torch.zeros(N, N).masked_fill(~one, -1e9), one[None, None]),
        "heads": lambda: (many[0], many[:1]),
        "clips": lambda: (many[:, :1], many[:, :1]),
        "clips and heads": lambda: (many, many),
        "rules": lambda: (rules, ruled[None, None]),
        "function": lambda: (lambda b, h, i, j: one[i, j], one[None, None]),
        "mask": lambda: (Mask(looks_at_clip_and_head, SIZES, batch=2, heads=3), many),
        "padding": lambda: (padding(real), real[:, None, None].expand(2, 1, N, N)),
        "blocks": lambda: (
            create_block_mask(looks_at_clip_and_head, 2, 3, N, N, device="cpu"),
            many,
        ),
        "blocks of one": lambda: (
            create_block_mask(lambda b, h, i, j: one[None, None][b, h, i, j], 1, 1, N, N, "cpu"),
            one[None, None],
        ),
    }[kind]()


KINDS = [
    "tensor", "array", "additive", "heads", "clips", "clips and heads", "rules", "function",
    "mask", "padding", "blocks", "blocks of one",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(other=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_combined_masks_are_the_combined_tensors_on_either_side(kind, other, seed):
    left, right = held_by(kind, seed), held_by(other, seed + 1)
    mask = as_mask(left[0], SIZES)
    assert torch.equal(every(~mask), ~left[1])
    for join in (operator.and_, operator.or_):
        expected = join(left[1], right[1])
        for joined in (join(mask, right[0]), join(right[0], mask)):
            assert torch.equal(every(joined), expected)
            assert joined.readers == joined.keys == Tokens(SIZES)


def test_masks_of_the_literature_combine():
    n = {"text": 9}
    sparse = causal(n) & (sliding_window(n, 3) | ~full(n))
    rows, columns = torch.arange(9)[:, None], torch.arange(9)
    assert torch.equal(sparse.dense(), (columns <= rows) & (rows - columns <= 3))


def test_a_combined_mask_lives_where_one_of_its_parts_does():
    there = Mask(lambda b, h, i, j: i == j, 3, device="meta")
    for both in (there & full(3), full(3) | there):
        assert both.device == torch.device("meta")
        assert (~both).device == torch.device("meta")


def test_combining_does_not_change_the_parts():
    mask, table = causal(3), SOME.clone()
    joined = mask | table
    table.fill_(True)
    assert torch.equal(mask.dense(), torch.ones(3, 3).tril().bool())
    assert torch.equal(joined.dense(), mask.dense())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal(3) & causal(4), "combine readers .*3}.* with readers .*4}.*same tokens"),
        (lambda: causal({"a": 3}) | causal({"b": 3}), "combine readers Tokens.*'a'.*'b'"),
        (lambda: causal({"a": 4}) | causal({"a": (2, 2)}), r"'a': 4.*'a': \(2, 2\)"),
        (lambda: full(2, 3) & full(2, 4), "combine keys .* with keys"),
        (lambda: TABLE & as_mask(TABLE[:, :2]), "heads 2 with heads 3; wanted the same, or 1"),
        (lambda: padding(SOME) | padding(SOME[:2]), "batch 3 with batch 2; wanted the same, or 1"),
        (lambda: causal(3) & torch.ones(4, 4).bool(), "the mask has 4 rows, .*are 3"),
        (lambda: causal(3) & zorro_trunk("a"), r"got readers {'tokens': 3}, wanted .* \['a', 'fu"),
    ],
)
def test_masks_of_other_tokens_do_not_combine(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("other", [None, 3, "all", [[True]], {"a": "a"}])
def test_masks_combine_with_masks_alone(other):
    for join in (lambda: causal(3) & other, lambda: other | causal(3)):
        with pytest.raises(TypeError, match=r"as_mask: got .*, wanted a Visibility, a tensor, or"):
            join()


# FlexAttention


@pytest.mark.parametrize("block", [1, 4, 7, 16, 50, 128])
@pytest.mark.parametrize(
    "mask",
    [
        zorro({"audio": 16, "video": (8, 2, 2), "fusion": 2}) & sliding_window(50, 9),
        full(50, 21) & (torch.arange(21) % 5 > 2).expand(50, 21),
    ],
)
def test_torch_takes_a_mask_and_runs_as_many_blocks_as_the_cost_says(mask, block):
    size = len(mask.readers), len(mask.keys)
    blocks = create_block_mask(mask, None, None, *size, device="cpu", BLOCK_SIZE=block)
    found = cost(mask.dense(), block)
    run = blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum()
    assert (found.blocks, found.of_blocks) == (
        int(run),
        -(-size[0] // block) * -(-size[1] // block),
    )


@pytest.mark.parametrize("block", [3, 128])
def test_a_block_mask_gives_back_the_mask_that_it_was_made_of(block):
    mask = as_mask(TABLE, SIZES)
    blocks = create_block_mask(mask, 2, 3, N, N, device="cpu", BLOCK_SIZE=block)
    assert torch.equal(every(as_mask(blocks)), TABLE)
    assert as_mask(blocks, SIZES).readers == Tokens(SIZES)
    wide = create_block_mask(full(3, 7), None, None, 3, 7, device="cpu")
    assert as_mask(wide).dense().shape == (3, 7)


def test_a_block_mask_without_a_function_hides_the_blocks_that_it_does_not_list():
    number, listed = torch.tensor([[[1, 1]]]), torch.tensor([[[[0, 1], [1, 0]]]])
    blocks = BlockMask.from_kv_blocks(number.int(), listed.int(), BLOCK_SIZE=2)
    expected = torch.eye(2, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(as_mask(blocks).dense(), expected)


def test_one_mask_serves_all_clips_and_heads_of_a_block_mask():
    blocks = create_block_mask(as_mask(SOME), 4, 2, 3, 3, device="cpu")
    assert torch.equal(every(as_mask(blocks)), SOME.expand(4, 2, 3, 3))


# Whatever holds a mask


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (1, 2, 3, 4), (5, 1, 3, 4), (5, 2, 3, 4)])
@pytest.mark.parametrize("hidden", [None, -torch.inf, -1e9, -1e4, torch.finfo(torch.float16).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_tensor_means_what_it_means_to_scaled_dot_product_attention(shape, hidden, dtype):
    visible = torch.rand(shape) < 0.5
    visible[..., 0] = True  # softmax over nothing
    given = visible
    if hidden is not None:
        bias = torch.randn(shape).to(dtype)
        hidden = max(hidden, torch.finfo(dtype).min) if hidden > -torch.inf else hidden
        given = torch.where(visible, bias, torch.tensor(hidden, dtype=dtype))
    mask = as_mask(given)
    assert (mask.batch, mask.heads) == (1, 1, *shape[:-2])[-2:]
    query, key, value = torch.randn(5, 2, 3, 4), torch.randn(5, 2, 4, 4), torch.eye(4)
    weights = F.scaled_dot_product_attention(
        query, key, value.expand(5, 2, 4, 4), given if hidden is None else given.float()
    )
    assert torch.equal((weights > 0), every(mask).expand(5, 2, 3, 4))


def test_positions_as_a_bias_hide_nothing():
    assert as_mask(torch.tensor([[0.0, 1e4], [-9000.0, 1.5]])).dense().all()
    assert as_mask(torch.zeros(2, 2)).dense().all()


def test_arrays_may_be_read_only_turned_and_broadcast():
    array = np.arange(9).reshape(3, 3) % 2 == 0
    for source in (
        array[::-1],
        np.broadcast_to(array[0], (3, 3)),
        array.T,
        array.astype(">i4") > 0,
    ):
        assert as_mask(source).dense().tolist() == source.tolist()


def test_a_mask_stays_as_it_was_when_its_source_changes():
    tensor, real = SOME.clone(), SOME[:1].clone()
    array = tensor.numpy().copy()
    masks = [as_mask(tensor), as_mask(array), padding(real)]
    before = [mask.dense() for mask in masks]
    for source in (tensor, real, array):
        source[:] = True
    for mask, dense in zip(masks, before, strict=True):
        assert torch.equal(mask.dense(), dense)


def test_rules_keep_the_order_of_the_tokens():
    rules = zorro_trunk("audio", "video")
    turned = as_mask(rules, {"fusion": 1, "video": 2, "audio": 3})
    names = ["fusion", *["video"] * 2, *["audio"] * 3]
    expected = torch.tensor([[key in rules.reads[reader] for key in names] for reader in names])
    assert torch.equal(turned.dense(), expected)
    assert turned.readers == turned.keys
    readout = as_mask(
        zorro_readout("audio"), {"global": 1, "audio": 1, "fusion": 2}, {"fusion": 3, "audio": 2}
    )
    assert readout.dense().int().tolist() == [[1] * 5, [0, 0, 0, 1, 1], *[[1, 1, 1, 0, 0]] * 2]


def test_what_influence_measured_is_a_mask():
    def mix(audio, video):
        return {"sound": audio, "both": audio + video}

    mask = as_mask(influence(mix, {"audio": torch.ones(2), "video": torch.ones(2)}))
    assert mask.dense().tolist() == [[True, False], [True, True]]
    assert (mask.readers, mask.keys) == (
        Tokens({"sound": 1, "both": 1}),
        Tokens({"audio": 1, "video": 1}),
    )


def test_tokens_are_named_or_not():
    assert as_mask(SOME).readers == Tokens(3)
    assert as_mask(SOME, {"a": 3}).keys == Tokens({"a": 3})
    assert as_mask(SOME[:2], {"a": 2}).keys == Tokens(3)
    assert as_mask(SOME[:2], {"a": 2}, {"b": (3, 1)}).keys == Tokens({"b": (3, 1)})
    mask = causal({"a": 3})
    assert as_mask(mask) is mask
    assert as_mask(mask, {"b": 3}).keys == Tokens({"b": 3})
    assert as_mask(mask, keys={"b": 3}).readers == Tokens({"a": 3})
    wide = as_mask(full(2, 3), {"a": 2})
    assert (wide.readers, wide.keys) == (Tokens({"a": 2}), Tokens(3))


@pytest.mark.parametrize(
    ("source", "names", "message"),
    [
        (SOME[0], [], r"of shape \(3,\), wanted \(n, m\), .* gallery.padding\(real\)"),
        (torch.tensor(True), [], r"of shape \(\), wanted \(n, m\)"),
        (SOME[None, None, None], [], r"of shape \(1, 1, 1, 3, 3\), wanted"),
        (SOME[:0], [], r"of shape \(0, 3\), wanted"),
        (np.zeros((2, 0)), [], r"of shape \(2, 0\), wanted"),
        (SOME.long(), [], r"got torch.int64, wanted booleans \(mask.bool\(\) makes them"),
        (SOME.to(torch.complex64), [], "got torch.complex64, wanted booleans"),
        (SOME.numpy().astype(np.uint8), [], "got torch.uint8, wanted booleans"),
        (SOME.float(), [], r"zeros and ones as floating-point .* use mask.bool\(\)"),
        (torch.ones(2, 2).half(), [], "zeros and ones as floating-point"),
        (torch.tensor([[0, torch.nan]]), [], r"mask is nan at \[0, 1\].*0 and -inf, or booleans"),
        (torch.tensor([[0], [torch.inf]]), [], r"the mask is inf at \[1, 0\]; .* makes NaN"),
        (SOME, [{"a": 2}], r"has 3 rows, and Tokens\({'a': 2}\) are 2; the names must add up"),
        (SOME, [{"a": 3}, {"a": 2, "b": 2}], r"has 3 columns, and Tokens.* are 4; the names must"),
        (causal(3), [4], "the mask has 3 rows, .* are 4"),
        (full(2, 3), [2, 4], "the mask has 3 columns, .* are 4"),
        (lambda b, h, i, j: i == j, [], "a function does not say how many tokens .* give them, as"),
        (zorro_trunk("audio"), [], "a Visibility does not say how many tokens"),
        (zorro_trunk("audio"), [5], "got readers {'tokens': 5}, wanted a number of tokens for"),
        (zorro_trunk("a"), [{"a": 1, "fusion": 1}, {"a": 1}], "got keys {'a': 1}, wanted"),
    ],
)  # fmt: skip
def test_what_is_no_mask_or_does_not_fit_its_names_is_refused(source, names, message):
    with pytest.raises(ValueError, match=message):
        as_mask(source, *names)


@pytest.mark.parametrize("source", [None, 3, "all", [[True, False]], {"a": "a"}, 1.0])
def test_what_could_be_no_mask_is_refused(source):
    with pytest.raises(TypeError, match=r"got \w+, wanted a Visibility, .*torch.tensor\(rows\)"):
        as_mask(source, 2)


# Mask functions


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda b, h, i, j: i - j, r"gave torch.int64 of shape \(\) for one pair, wanted one bool"),
        (lambda b, h, i, j: (i - j) * 0.5, "gave torch.float32 .*a score_mod is no mask_mod, comp"),
        (lambda b, h, i, j: torch.ones(2).bool(), r"gave torch.bool of shape \(2,\) for one pair"),
        (lambda b, h, i, j: (i < j, i > j), "the mask function gave tuple for one pair"),
    ],
)
def test_a_function_that_gives_no_boolean_is_refused(no_shape_checks, score, message):
    for mask in (Mask(score, 3), as_mask(score, 3)):
        with pytest.raises(ValueError, match=message):
            mask.dense()


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (lambda b, h, i, j: i < 1 / 0, ZeroDivisionError),
        (lambda b: b, TypeError),
        (lambda b, h, i, j: i if i > j else j, RuntimeError),
        (lambda b, h, i, j: SOME[0][j + 1], IndexError),
    ],
)
def test_an_error_in_a_mask_function_says_where_it_comes_from(no_shape_checks, broken, error):
    for mask in (Mask(broken, 3), ~Mask(broken, 3), Mask(broken, 3) & causal(3)):
        with pytest.raises(error) as raised:
            mask.dense()
        assert raised.value.__notes__ == [
            "Mask: this came from the mask function, called as FlexAttention does"
        ]


def test_only_the_rows_asked_for_are_computed(no_shape_checks):
    seen = []

    def look(b, h, i, j):
        seen.append(torch.broadcast_shapes(i.shape, j.shape))
        return j <= i

    mask = Mask(look, 10**9, 4)
    assert mask.rows([10**9 - 1, 1]).tolist() == [[True] * 4, [True, True, False, False]]
    assert len(seen) == 1
    assert mask.rows([]).shape == (0, 4)
    for rows in (torch.tensor([2, 0]), np.array([2, 0]), range(2, -1, -2), (np.int64(2), 0)):
        assert mask.rows(rows).sum(1).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal(3).rows([3]), "got token 3, there are 3; count from 0 to 2"),
        (lambda: causal(3).rows([-1]), "got token -1, there are 3"),
        (lambda: causal(3).rows([True]), "got token True, there are 3"),
        (lambda: causal(3).rows([0.5]), "got token 0.5, there are 3"),
        (lambda: causal(3).rows(SOME[0]), "got token True, there are 3"),
        (lambda: causal(3).rows(torch.ones(1)), "got token 1.0, there are 3"),
        (lambda: causal(3).rows("12"), "got token '1', there are 3"),
        (lambda: causal(3).rows(2), r"got 2, wanted a list; use \[2\]"),
        (lambda: causal(3).rows(torch.tensor(2)), r"wanted a list; use \[2\]"),
        (lambda: causal(3).dense(batch=1), "Mask: got batch 1, there are 1; count from 0 to 0"),
        (lambda: as_mask(TABLE).dense(head=3), "Mask: got head 3, there are 3"),
        (lambda: as_mask(TABLE).dense(head=-1), "Mask: got head -1"),
        (lambda: causal(3).sentence(3), "got token 3, there are 3"),
        (lambda: Mask(causal(3), 3, batch=0), "Mask: batch is 0; give a positive whole number"),
        (lambda: Mask(causal(3), 3, heads=True), "Mask: heads is True; give a positive whole"),
        (lambda: text_grid(causal(3), width=0), "text_grid: width is 0; give a positive whole"),
    ],
)
def test_numbers_that_count_nothing_are_refused(no_shape_checks, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_tensor_is_no_mask_function(no_shape_checks):
    with pytest.raises(TypeError, match=r"got Tensor, wanted a function .*; as_mask takes tensors"):
        Mask(SOME, 3)


# In words


def test_a_sentence_counts_what_a_token_reads_group_by_group():
    mask = sliding_window({"audio": 4, "video": (2, 2)}, 2, 1)
    assert mask.sentence(4) == (
        "Query 4, video 0 (row 0, column 0), reads 2 of 4 audio, 2 of 4 video."
    )
    assert causal(5).sentence(2) == "Query 2 reads 3 of 5 tokens."
    assert as_mask(TABLE | True).sentence(0, batch=1, head=2) == "Query 0 reads 5 of 5 tokens."
    assert (
        counted(torch.tensor([True, False, True]), Tokens({"b": 2, "a": 1})) == "1 of 2 b, 1 of 1 a"
    )


def test_a_sentence_names_a_row_that_reads_nothing():
    mask = as_mask(torch.tensor([[True] * 3, *[[False] * 3] * 2]), {"a": 2, "b": 1})
    assert mask.sentence(0) == "Query 0, a 0, reads 2 of 2 a, 1 of 1 b."
    assert mask.sentence(2) == (
        "Query 2, b, reads nothing: softmax over no keys has no meaning. Let it read at least "
        "itself."
    )


# Tokens


@pytest.mark.parametrize(
    "groups",
    [
        0, -1, True, 2.5, "16", None, [], [("a", 2)], {}, {"a": 0}, {"a": True}, {"a": "4"},
        {"a": b"ab"}, {"a": ()}, {"a": (2, 2, 2, 2)}, {"a": (2, 0)}, {"": 2}, {1: 2}, {None: 2},
        torch.tensor(3), np.array([2, 2]),
    ],
)  # fmt: skip
def test_what_names_no_tokens_is_refused(no_shape_checks, groups):
    with pytest.raises(ValueError, match=r"Tokens: got .*(a name, and a positive|at least one)"):
        Tokens(groups)


def test_tokens_lie_where_patchify_puts_them(no_shape_checks):
    tokens = Tokens({"sound": (2, 3), "film": (2, 2, 3), "word": 4, "all": 1})
    assert len(tokens) == 6 + 12 + 4 + 1
    places = [
        *(f"sound {n} (row {n // 3}, column {n % 3})" for n in range(6)),
        *(
            f"film {n} (frame {t}, row {y}, column {x})"
            for n, (t, y, x) in enumerate(product(range(2), range(2), range(3)))
        ),
        *(f"word {n}" for n in range(4)),
        "all",
    ]
    assert [tokens.place(token) for token in range(23)] == places
    assert tokens.group(18) == ("word", 0)
    assert tokens.query(22) == "query 22, all,"
    assert Tokens(4).query(3) == "query 3"
    for wrong in (23, -1, True, 1.0):
        with pytest.raises(ValueError, match=re.escape(f"got token {wrong}, there are 23")):
            tokens.query(wrong)
    with pytest.raises(ValueError, match="got token 4, there are 4; count from 0 to 3"):
        Tokens(4).query(4)


def test_order_and_grid_make_tokens_what_they_are(no_shape_checks):
    assert Tokens({"a": 2, "b": 1}) != Tokens({"b": 1, "a": 2})
    assert Tokens({"a": (2, 2)}) != Tokens({"a": 4})
    assert Tokens({"a": np.int64(4)}) == Tokens({"a": (4,)})
    assert Tokens(4) != 4


# For terminals


@pytest.mark.parametrize(
    ("names", "letters"),
    [
        (["audio", "video", "fusion"], "AVF"),
        (["audio", "aura", "au", "a"], "AUBC"),  # no name has B
        (["a", "aa", "b"], "ACB"),  # B is kept for b
        (["1", "ß", "音", "é", "İ"], "ABCÉD"),
        (["all", "All", "ALL"], "ALB"),
    ],
)
def test_every_group_has_a_letter_of_its_own_in_capitals_and_in_small(names, letters):
    found = Tokens(dict.fromkeys(names, 1)).letters
    assert "".join(found.values()) == letters
    assert all(letter.lower() != letter for letter in letters)


def test_groups_beyond_the_alphabet_have_numbers():
    found = [*Tokens({f"{'a' * n}": 1 for n in range(1, 30)}).letters.values()]
    assert found[:3] == ["A", "B", "C"]
    assert found[25:] == ["Z", "26", "27", "28"]


def test_blocks_have_a_capital_where_all_is_read_and_a_small_letter_where_some_is():
    mask = causal({"audio": 5, "aura": 3})
    assert text_grid(mask, width=4).splitlines() == [
        "     A A A U U",
        "A 0  a · · · ·",
        "A 2  A a · · ·",
        "A 4  A A A · ·",
        "U 0  A A A u ·",
        "U 2  A A A U U",
        "A letter is up to 2 × 2 tokens: capital all read, small some.",
    ]


@given(n=st.integers(1, 40), m=st.integers(1, 40), width=st.integers(1, 12))
def test_a_text_grid_has_a_cell_for_every_block(n, m, width):
    torch.manual_seed(n)
    visible = torch.rand(n, m) < 0.7
    size = -(-max(n, m) // width)
    lines = text_grid(as_mask(visible), width=width).splitlines()
    blocks = [list(rows.split(size, 1)) for rows in visible.split(size, 0)]
    assert len(lines) == 1 + len(blocks) + (size > 1)
    for line, row in zip(lines[1:], blocks, strict=False):
        cells = ["T" if part.all() else "t" if part.any() else "·" for part in row]
        assert line.split()[2:] == cells


def test_a_text_grid_of_a_clip_and_a_head():
    lines = text_grid(as_mask(TABLE), batch=1, head=2).splitlines()
    assert [line.split()[2:] for line in lines[1:]] == [
        ["T" if seen else "·" for seen in row] for row in TABLE[1, 2].tolist()
    ]
