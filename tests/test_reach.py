import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avlib import Visibility, as_mask, zorro_trunk
from avlib.gallery import causal, full, sliding_window, zorro
from avlib.named_tokens import Tokens
from avlib.reach import Cost, Reach, cost, pooled


def squares(seed, n, density):
    torch.manual_seed(seed)
    return torch.rand(n, n) < density


masks = st.builds(squares, st.integers(0, 99), st.integers(1, 12), st.sampled_from([0, 0.1, 0.3]))


def powers(visible, layers):
    """What layer after layer holds: (I + mask)^0, (I + mask)^1, …"""
    step = visible.long() + torch.eye(len(visible), dtype=torch.int64)
    held = [torch.eye(len(visible), dtype=torch.int64)]
    for _ in range(layers):
        held.append((step @ held[-1]).clamp(max=1))
    return torch.stack(held).bool()


# Layers


@given(visible=masks, layers=st.lists(st.integers(0, 14), min_size=1, max_size=4))
def test_reach_is_the_boolean_power_in_whatever_order_layers_are_asked_for(visible, layers):
    held, reach = powers(visible, 14), Reach(visible)
    for count in layers:
        assert torch.equal(reach.after(count), held[count])
        first = torch.full(visible.shape, Reach.NEVER, dtype=torch.uint8)
        for layer in reversed(range(count + 1)):
            first[held[layer]] = layer
        assert torch.equal(reach.first(count), first)


@given(visible=masks)
def test_reach_has_settled_once_a_layer_brings_nothing_new(visible):
    held, reach = powers(visible, 14), Reach(visible)
    last = next(n for n in range(14) if torch.equal(held[n], held[n + 1]))
    reach.first(last)
    assert not reach.settled
    reach.first(last + 1)
    assert reach.settled
    assert torch.equal(reach.first(254), reach.first(last))


def test_reach_of_tokens_is_the_reach_of_their_groups():
    rules = Visibility({"audio": "fusion", "video": "video", "fusion": "video"})
    sizes = {"audio": 2, "video": 3, "fusion": 1}
    reach = Reach(as_mask(rules, sizes).dense())
    for layers in range(1, 4):
        grown = rules.after(layers).dense(sizes)
        # Tokens of a group that does not read itself hold themselves alone.
        own = ~(rules.dense(sizes) | torch.eye(6, dtype=torch.bool))
        own &= torch.block_diag(*[torch.ones(n, n) for n in sizes.values()]).bool()
        assert torch.equal(reach.after(layers), grown & ~own)


def test_a_long_chain_is_followed_to_the_last_layer_there_is():
    n = 300
    first = Reach(sliding_window(n, 1, 0).dense()).first(254)
    away = torch.arange(n)[:, None] - torch.arange(n)
    assert torch.equal(first == Reach.NEVER, (away < 0) | (away > 254))
    assert first[254, 0] == 254
    assert first[0, 1] == Reach.NEVER


def test_the_mask_may_change_after_it_was_given():
    visible = sliding_window(5, 1).dense()
    reach, same = Reach(visible), Reach(visible.clone())
    visible.fill_(True)
    reach.first(3).fill_(0)
    assert torch.equal(reach.first(4), same.first(4))


# In words


def test_a_sentence_says_what_arrived_and_which_groups_are_still_blind():
    tokens = Tokens({"audio": 2, "video": 2, "fusion": 1})
    reach = Reach(zorro(tokens).dense())
    assert reach.sentence(0, 1, tokens) == (
        "After 1 layer query 0, audio 0, holds something of 2 of 2 audio, 0 of 2 video, 0 of 1 "
        "fusion. After 1 layer audio tokens have still seen no video and no fusion; video tokens "
        "have still seen no audio and no fusion."
    )
    assert reach.sentence(4, 2, tokens).startswith(
        "After 2 layers query 4, fusion, holds something of 2 of 2 audio, 2 of 2 video, 1 of 1 fu"
    )
    assert Reach(full(3).dense()).sentence(1, 0, 3) == (
        "After 0 layers query 1 holds something of 1 of 3 tokens."
    )


def test_one_token_that_has_seen_another_is_enough_for_its_group():
    tokens = {"a": 2, "b": 2}
    reach = Reach(causal(4).dense())
    assert reach.sentence(2, 1, tokens).endswith("After 1 layer a tokens have still seen no b.")
    link = torch.zeros(4, 4, dtype=torch.bool)
    link[1, 3] = True
    assert reach.sentence(2, 1, tokens) == Reach(causal(4).dense() | link).sentence(
        2, 1, tokens
    ) + (" After 1 layer a tokens have still seen no b.")


@given(visible=masks)
def test_mixing_is_the_number_of_layers_after_which_nothing_is_new(visible):
    held = powers(visible, 14)
    last = next(n for n in range(14) if torch.equal(held[n], held[n + 1]))
    layers = f"after {last} layer{'s' * (last != 1)}"
    apart, n = int((~held[last]).sum()), len(visible)
    expected = f"Nothing new arrives {layers}; {apart} of {n * n} pairs never meet."
    if not apart:
        expected = f"Everything has reached everything {layers}."
    reach = Reach(visible)
    reach.first(3)
    assert [reach.mixing(), Reach(visible).mixing()] == [expected] * 2


def test_mixing_does_not_claim_more_than_254_layers_show():
    assert Reach(sliding_window(255, 1).dense()).mixing() == (
        "Everything has reached everything after 254 layers."
    )
    assert Reach(sliding_window(300, 1).dense()).mixing() == (
        "Something new may still arrive after 254 layers."
    )


# Cost


@given(
    n=st.integers(1, 20), m=st.integers(1, 20), block=st.integers(1, 25), seed=st.integers(0, 99)
)
def test_cost_counts_pairs_and_blocks(n, m, block, seed):
    torch.manual_seed(seed)
    visible = torch.rand(n, m) < 0.1
    blocks = [[part.any() for part in rows.split(block, 1)] for rows in visible.split(block, 0)]
    busy = pooled(visible, block)
    assert torch.equal(busy, torch.tensor(blocks))
    assert cost(visible, block) == (
        int(visible.sum()), n * m, int(busy.sum()), busy.numel(), block,
    )  # fmt: skip


def test_a_block_larger_than_the_mask_is_one_block():
    assert cost(causal(5).dense(), 10**12)[2:] == (1, 1, 10**12)


def test_flops_are_those_of_the_rules():
    rules, sizes = zorro_trunk("audio", "video"), {"audio": 5, "video": 7, "fusion": 2}
    visible = as_mask(rules, sizes).dense()
    assert cost(visible).flops(dim=12) == rules.flops(sizes, dim=12)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Cost(1, 2, 1, 4, 128), "1 of 2 pairs, 50 % of the FLOPs of full attention. A kernel in"),
        (Cost(1234, 1_000_000, 5, 6, 16), "1,234 of 1,000,000 pairs, 0.1 % of the FLOPs"),
        (Cost(0, 10, 0, 1, 16), "0 of 10 pairs, 0 % of"),
        (Cost(1, 3, 1, 1, 16), "1 of 3 pairs, 33 % of the FLOPs of full attention."),
    ],
)  # fmt: skip
def test_a_cost_in_words(found, text):
    assert str(found).startswith(text)
    assert ("blocks" in str(found)) == (found.of_blocks > 1)


# Wrong calls


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Reach(full(2, 3).dense()), "got a mask of 2 readers and 3 keys; layers stack"),
        (lambda: Reach(torch.eye(3)), r"Reach: got torch.float32 of shape \(3, 3\), wanted bool"),
        (lambda: Reach(torch.ones(1, 3, 3).bool()), r"Reach: got torch.bool of shape \(1, 3, 3\)"),
        (lambda: cost(torch.zeros(0, 0).bool()), r"cost: got torch.bool of shape \(0, 0\), wanted"),
        (lambda: cost(torch.eye(3).long()), r"cost: got torch.int64 of shape .*dense\(\) makes"),
        (lambda: cost(causal(3).dense(), 0), "block is 0; give a positive whole number"),
        (lambda: cost(causal(3).dense(), 1.5), "block is 1.5; give a positive whole number"),
        (lambda: cost(causal(3).dense(), True), "block is True; give a positive whole number"),
        (lambda: Reach(causal(3).dense()).first(255), "got 255 layers, wanted .* from 0 to 254"),
        (lambda: Reach(causal(3).dense()).after(-1), "got -1 layers, wanted a whole number"),
        (lambda: Reach(causal(3).dense()).after(True), "got True layers, wanted a whole number"),
        (lambda: Reach(causal(3).dense()).after(1.0), "got 1.0 layers, wanted a whole number"),
        (lambda: Reach(causal(3).dense()).sentence(3, 1, 3), "got token 3, there are 3"),
        (lambda: Reach(causal(3).dense()).sentence(-1, 1, 3), "got token -1, there are 3"),
        (lambda: Reach(causal(3).dense()).sentence(0, 1, 4), "has 3 tokens, .* are 4; give those"),
    ],
)
def test_what_has_no_reach_and_no_cost_is_refused(no_shape_checks, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("function", [Reach, cost])
@pytest.mark.parametrize("mask", [causal(3), causal(3).dense().numpy(), [[True]], None])
def test_a_mask_must_be_dense(no_shape_checks, function, mask):
    with pytest.raises(
        TypeError, match=r"got \w+, wanted a boolean tensor .*\.dense\(\) makes one"
    ):
        function(mask)
