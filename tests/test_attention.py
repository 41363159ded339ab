import pytest
import torch
import torch.nn.functional as F
import zorro_pytorch.zorro_pytorch as published
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from avlib import Attention, FeedForward, Visibility, attend, zorro_readout, zorro_trunk

TRUNK = zorro_trunk("audio", "video")
SIZES = {"audio": 4, "video": 6, "fusion": 2}


def streams(sizes, *shape, dim=5):
    return {name: torch.randn(2, *shape, n, dim, dtype=torch.float64) for name, n in sizes.items()}


def leaves(*many):
    return [tensor.requires_grad_() for group in many for tensor in group.values()]


def dense_attend(query, key, value, visibility, key_masks):
    """One `scaled_dot_product_attention` over all tokens, with the dense mask."""
    readers, keys = ({n: t.shape[2] for n, t in group.items()} for group in (query, key))
    padding = [key_masks.get(n, torch.ones(2, keys[n], dtype=torch.bool)) for n in visibility.keys]
    mask = visibility.dense(readers, keys) & torch.cat(padding, 1)[:, None, None]
    query, key, value = (torch.cat(list(group.values()), 2) for group in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, mask)
    return dict(zip(readers, out.split(list(readers.values()), 2), strict=True))


reads = st.lists(st.lists(st.integers(0, 2), min_size=1, unique=True), min_size=1, max_size=3)


@given(reads=reads, sizes=st.permutations([1, 2, 3]), padded=st.sets(st.integers(0, 2)))
def test_attend_is_dense_masked_attention_in_values_and_gradients(reads, sizes, padded):
    torch.manual_seed(0)
    rules = {f"reader{i}": [f"key{j}" for j in js] for i, js in enumerate(reads)}
    visibility = Visibility(rules, ["key0", "key1", "key2"])
    keys = dict(zip(visibility.keys, sizes, strict=True))
    query = streams(dict.fromkeys(visibility.readers, 3), 2)
    key, value = streams(keys, 2), streams(keys, 2)
    masks = {f"key{j}": torch.rand(2, keys[f"key{j}"]) < 0.5 for j in padded}
    inputs = leaves(query, key, value)

    ours = attend(query, key, value, visibility, key_masks=masks)
    theirs = dense_attend(query, key, value, visibility, masks)
    assert list(ours) == list(theirs)
    weights = streams(dict.fromkeys(visibility.readers, 3), 2)
    for name in ours:
        assert_close(ours[name], theirs[name])
    gradients = [
        torch.autograd.grad(
            sum((out[n] * weights[n]).sum() for n in out), inputs, materialize_grads=True
        )
        for out in (ours, theirs)
    ]
    assert_close(*gradients)


def test_attention_weights_of_a_single_reader_by_hand():
    query, key = torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.0], [1.0]]]])
    value = torch.tensor([[[[10.0], [20.0]]]])
    weight = 1 / (1 + torch.tensor(-2.0).exp())  # softmax of (0, 2)
    out = attend({"x": query}, {"x": key}, {"x": value}, Visibility({"x": "x"}))
    assert_close(out["x"].flatten()[0], 10 + 10 * weight)


def test_a_padded_key_weighs_nothing():
    query, key, value = (streams({"audio": 3}, 2) for _ in range(3))
    real = torch.tensor([[True, True, False], [True, False, False]])
    one = Visibility({"audio": "audio"})
    out = attend(query, key, value, one, key_masks={"audio": real})["audio"]
    for clip, length in enumerate((2, 1)):
        cut = (
            {"audio": key["audio"][[clip], :, :length]},
            {"audio": value["audio"][[clip], :, :length]},
        )
        assert_close(out[[clip]], attend({"audio": query["audio"][[clip]]}, *cut, one)["audio"])


def test_readers_of_padding_alone_get_zeros_and_finite_gradients():
    query, key, value = (streams(SIZES, 2) for _ in range(3))
    inputs = leaves(query, key, value)
    padding = {"audio": torch.tensor([[False] * 4, [True] * 4])}
    out = attend(query, key, value, TRUNK, key_masks=padding)
    assert torch.equal(out["audio"][0], torch.zeros(2, 4, 5))
    assert (out["audio"][1] != 0).all()
    for gradient in torch.autograd.grad(sum(o.square().sum() for o in out.values()), inputs):
        assert gradient.isfinite().all()


def test_a_hidden_group_of_nan_changes_no_bit():
    query, key, value = (streams(SIZES, 2) for _ in range(3))
    before = attend(query, key, value, TRUNK)
    for group in (query, key, value):
        group["video"] = torch.full_like(group["video"], torch.nan)
    after = attend(query, key, value, TRUNK)
    assert torch.equal(after["audio"], before["audio"])
    assert after["fusion"].isnan().all()


def test_attend_refuses_other_groups_than_the_visibility_names():
    some, more = streams({"audio": 4}, 2), streams(SIZES, 2)
    with pytest.raises(ValueError, match=r"query has groups \['audio'\], .* names .*only\("):
        attend(some, more, more, TRUNK)
    with pytest.raises(ValueError, match="attend: key has groups"):
        attend(more, some, more, TRUNK)
    with pytest.raises(ValueError, match="attend: value has groups"):
        attend(more, more, some, TRUNK)
    with pytest.raises(ValueError, match=r"query .*'video'\], the visibility names \['audio', 'fu"):
        attend(more, more, more, zorro_trunk("audio"))


# Dropout


def test_attend_drops_weights_as_pytorch_does():
    query, key, value = (streams({"x": 4}, 2) for _ in range(3))
    torch.manual_seed(1)
    ours = attend(query, key, value, Visibility({"x": "x"}), dropout=0.5)["x"]
    torch.manual_seed(1)
    theirs = F.scaled_dot_product_attention(query["x"], key["x"], value["x"], dropout_p=0.5)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("block", [Attention, FeedForward])
def test_blocks_drop_while_training_and_not_in_eval(block):
    def run(module):
        if block is FeedForward:
            return module(stream)
        return module({"x": stream}, Visibility({"x": "x"}))["x"]

    stream, module, sure = torch.randn(1, 8, 16), block(16, dropout=0.5), block(16)
    sure.load_state_dict(module.state_dict())
    assert not torch.equal(run(module), run(module))
    assert torch.equal(run(sure), run(sure))
    assert torch.equal(run(module.eval()), run(sure))


def test_dropout_keeps_the_mean():
    stream, module = torch.randn(1, 3, 8), Attention(8, heads=1, dim_head=4, dropout=0.3)
    one = Visibility({"x": "x"})
    mean = module({"x": stream.expand(20_000, 3, 8)}, one)["x"].mean(0)
    assert_close(mean, module.eval()({"x": stream}, one)["x"][0], rtol=0, atol=0.02)


# The published blocks


def attention_pair(dim=12, heads=3, dim_head=4):
    theirs = published.Attention(dim, heads=heads, dim_head=dim_head)
    torch.nn.init.uniform_(theirs.norm.gamma)
    ours = Attention(dim, heads=heads, dim_head=dim_head)
    state = {k.replace("gamma", "weight"): v for k, v in theirs.state_dict().items()}
    del state["norm.beta"]
    ours.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("padded", [0, 2])
def test_attention_is_the_published_attention_under_the_dense_mask(padded):
    ours, theirs = attention_pair()
    parts = {name: torch.randn(2, n, 12) for name, n in SIZES.items()}
    real = {"audio": torch.arange(SIZES["audio"]).expand(2, -1) >= padded}
    mask = TRUNK.dense(SIZES)
    mask[:, :padded] = False
    expected = theirs(torch.cat(list(parts.values()), 1), attn_mask=mask)
    got = torch.cat(list(ours(parts, TRUNK, key_masks=real).values()), 1)
    assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_kept_keys_are_read_as_they_are_by_normed_queries():
    ours, theirs = attention_pair()
    context = {name: torch.randn(2, n, 12) for name, n in SIZES.items()}
    queries = {name: torch.randn(2, 1, 12) for name in ("audio", "video", "fusion", "global")}
    readout = zorro_readout("audio", "video")
    mask = readout.dense(dict.fromkeys(queries, 1), SIZES)
    expected = theirs(
        torch.cat(list(queries.values()), 1),
        context=torch.cat(list(context.values()), 1),
        attn_mask=mask,
    )
    kept = {name: ours.keys_values(tokens) for name, tokens in context.items()}
    got = torch.cat(list(ours(queries, readout, kept=kept).values()), 1)
    assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dim", "mult"), [(12, 4), (10, 4), (7, 3), (12, 2), (9, 2.5)])
def test_feed_forward_is_the_published_one(dim, mult):
    ours, theirs = FeedForward(dim, mult=mult), published.FeedForward(dim, mult)
    torch.nn.init.uniform_(theirs[0].gamma)
    names = {"norm": theirs[0].gamma, "to_inner": theirs[1].weight, "to_out": theirs[3].weight}
    ours.load_state_dict({f"{name}.weight": weight for name, weight in names.items()})
    stream = torch.randn(2, 5, dim)
    assert_close(ours(stream), theirs(stream), rtol=1e-6, atol=1e-6)
