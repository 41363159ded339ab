"""Streams computed once and fused later are the joint pass: for pairs, padding and late comers."""

import copy
import itertools

import batches
import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from avlib import StreamCache, Visibility, attend, zorro_readout, zorro_trunk
from avlib.memory import peak_bytes

PADDED = {"audio_lengths": [1300, 500, 90], "video_lengths": [4, 2, 2]}
LENGTHS = pytest.mark.parametrize("lengths", [{}, PADDED], ids=["whole", "padded"])


@pytest.fixture(params=[False, True], ids=["stored", "reversible"])
def model(request, make_zorro):
    return make_zorro(3, reversible=request.param).double()


def clips(batch=3, **sizes):
    return {name: tensor.double() for name, tensor in batches.clips(batch=batch, **sizes).items()}


def of(modality, inputs, lengths):
    return {name: given for name, given in {**inputs, **lengths}.items() if modality in name}


def encode(model, modality, inputs, lengths=None):
    return model.encode(**of(modality, inputs, lengths or {}))


def exactly(found, wanted):
    assert_close(found, wanted, rtol=0, atol=1e-12)


# Equal to the joint pass


@LENGTHS
def test_encoded_and_fused_is_the_joint_pass(model, lengths):
    inputs = clips()
    wanted = model(**inputs, **lengths)
    audio, video = (encode(model, name, inputs, lengths) for name in ("audio", "video"))
    exactly(model.fuse(audio, video), wanted)
    exactly(model.fuse(video, audio), wanted)
    exactly(model.fuse(audio, video, return_token_indices=(3, 0)), wanted[:, [3, 0]])
    exactly(model.fuse(audio[1:], video[1:]), wanted[1:])


@LENGTHS
@pytest.mark.parametrize(
    ("first", "asked"), [("audio", (0, 2, 3)), ("video", (3, 1, 2))], ids=["audio", "video"]
)
def test_one_modality_answers_alone_and_the_other_may_arrive_later(model, lengths, first, asked):
    inputs = clips()
    early = encode(model, first, inputs, lengths)
    alone = model(**of(first, inputs, lengths), return_token_indices=asked)
    exactly(model.fuse(early, return_token_indices=asked), alone)
    late = encode(model, "video" if first == "audio" else "audio", inputs, lengths)
    exactly(model.fuse(early, late), model(**inputs, **lengths))


@LENGTHS
@pytest.mark.parametrize("pairs_at_once", [1, 2, 3, 5, 7, 100])
def test_all_pairs_are_their_joint_passes(model, lengths, pairs_at_once):
    inputs, films = clips(), 2
    audio = encode(model, "audio", inputs, lengths)
    video = encode(model, "video", inputs, lengths)[:films]
    found = model.fuse_pairs(audio, video, pairs_at_once=pairs_at_once, progress=False)
    turned = model.fuse_pairs(video, audio, pairs_at_once=pairs_at_once, progress=False)
    for i, j in itertools.product(range(3), range(films)):
        one = {"audio": inputs["audio"][[i]], "video": inputs["video"][[j]]}
        own = {name: [given[i if "audio" in name else j]] for name, given in lengths.items()}
        (wanted,) = model(**one, **own)
        exactly(found[i, j], wanted)
        exactly(turned[j, i], wanted)


@pytest.mark.parametrize(("sounds", "films"), [(1, 1), (1, 3), (3, 1), (1, 20), (20, 1)])
def test_pairs_of_one_clip_with_many(make_zorro, sounds, films):
    model, inputs = make_zorro().double(), clips(max(sounds, films), samples=400, height=4, width=4)
    audio, video = encode(model, "audio", inputs)[:sounds], encode(model, "video", inputs)[:films]
    found = model.fuse_pairs(audio, video, pairs_at_once=8, progress=False)
    assert found.shape[:2] == (sounds, films)
    repeated = {
        "audio": inputs["audio"][:sounds].repeat_interleave(films, 0),
        "video": inputs["video"][:films].repeat(sounds, 1, 1, 1, 1),
    }
    exactly(found.flatten(0, 1), model(**repeated))


@pytest.mark.parametrize("autocast", [False, True])
def test_pairs_in_bfloat16_are_as_near_as_the_joint_pass_is(make_zorro, autocast):
    exact, inputs = make_zorro(3).double(), clips()
    model = copy.deepcopy(exact)
    model = model.float() if autocast else model.bfloat16()
    given = {name: t.float() if autocast else t.bfloat16() for name, t in inputs.items()}
    audio, video = (encode(exact, name, inputs) for name in inputs)
    wanted = exact.fuse_pairs(audio, video, progress=False).diagonal(0, 0, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        audio, video = (encode(model, name, given) for name in given)
        assert audio.readout[0].dtype == torch.bfloat16
        found = model.fuse_pairs(audio, video, progress=False).diagonal(0, 0, 1)
        joint = model(**given).movedim(0, -1)
    errors = [(result.double() - wanted).norm() for result in (found, joint)]
    assert errors[0] < 1.5 * errors[1]


def test_heads_and_scores_are_applied_to_each_pair(make_zorro):
    model, inputs = make_zorro(num_classes=5).double(), clips()
    audio, video = (encode(model, name, inputs) for name in inputs)
    logits = model.fuse_pairs(audio, video, progress=False)
    assert logits.shape == (3, 3, 4, 5)
    best = model.fuse_pairs(
        audio, video, score=lambda out: out[:, :, 2].argmax(-1), pairs_at_once=4, progress=False
    )
    assert torch.equal(best, logits[:, :, 2].argmax(-1))
    some = model.fuse_pairs(audio, video, return_token_indices=(3, 2), progress=False)
    exactly(some, logits[:, :, [3, 2]])


def test_rules_of_ones_own_are_followed(make_zorro):
    only_video = Visibility({"audio": "audio", "video": "video", "fusion": ["video", "fusion"]})
    rules = [zorro_trunk("audio", "video"), only_video]
    heads = zorro_readout("audio", "video")
    turned = Visibility(
        {**heads.reads, "global": ["fusion", "video"]}, ("fusion", "video", "audio")
    )
    model, inputs = make_zorro(2, trunk=rules, readout=turned).double(), clips()
    audio, video = (encode(model, name, inputs) for name in inputs)
    exactly(model.fuse(audio, video), model(**inputs))
    found = model.fuse_pairs(audio, video, progress=False)
    exactly(found.diagonal(0, 0, 1).movedim(-1, 0), model(**inputs))


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_pure_readouts_of_fused_streams_ignore_nan_in_the_other(model, modality):
    inputs = clips()
    other, index = ("video", 0) if modality == "audio" else ("audio", 1)
    kept = encode(model, modality, inputs)
    clean, poisoned = (
        encode(model, other, {**inputs, other: clip})
        for clip in (inputs[other], inputs[other] * torch.nan)
    )
    assert torch.equal(model.fuse(kept, clean)[:, index], model.fuse(kept, poisoned)[:, index])
    pairs = [
        model.fuse_pairs(kept, cache, progress=False)[:, :, index] for cache in (clean, poisoned)
    ]
    assert torch.equal(*pairs)


def test_nothing_fused_has_a_gradient(make_zorro):
    model, inputs = make_zorro().double(), clips()
    inputs["audio"].requires_grad_()
    audio, video = (encode(model, name, inputs) for name in inputs)
    assert not audio.readout[0].requires_grad
    assert not model.fuse(audio, video).requires_grad
    assert not model.fuse_pairs(audio, video, progress=False).requires_grad


# Attention to keys that a batch shares


@pytest.mark.parametrize("padded", [False, True])
def test_shared_keys_give_what_repeated_keys_give_in_values_and_gradients(padded):
    def tensor(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    rules = Visibility({"x": "all", "y": ["b", "own"]}, ["a", "b", "own"])
    query = {name: tensor(2, 3, 2, 4, 5) for name in rules.readers}
    sizes = {"a": (2, 1, 2, 6, 5), "b": (1, 3, 2, 7, 5), "own": (2, 3, 2, 3, 5)}
    key, value = ({name: tensor(*size) for name, size in sizes.items()} for _ in range(2))
    masks = {}
    if padded:
        masks = {"a": torch.rand(2, 1, 6) < 0.5, "b": torch.rand(1, 3, 7) < 0.5}
    leaves = [*query.values(), *key.values(), *value.values()]

    def repeated(group):
        return {n: t.expand(2, 3, *t.shape[2:]).flatten(0, 1) for n, t in group.items()}

    results = []
    for change in (dict, repeated):
        out = attend(change(query), change(key), change(value), rules, key_masks=change(masks))
        loss = sum((o * torch.linspace(-1, 1, o.numel()).view_as(o)).sum() for o in out.values())
        out = [o.view(2, 3, 2, 4, 5) for o in out.values()]
        results.append((*out, *torch.autograd.grad(loss, leaves)))
    for found, wanted in zip(*results, strict=True):
        exactly(found, wanted)


def test_queries_of_shared_padding_alone_get_zeros():
    query, key = torch.randn(2, 3, 1, 4, 5), torch.randn(2, 1, 1, 6, 5)
    real = torch.tensor([True, False])[:, None, None].expand(2, 1, 6)
    out = attend(
        {"x": query}, {"k": key}, {"k": key}, Visibility({"x": "k"}, ["k"]), key_masks={"k": real}
    )["x"]
    assert (out[0] != 0).all()
    assert torch.equal(out[1], torch.zeros(3, 1, 4, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shared_keys_in_half_precision_are_as_near_as_repeated_ones(dtype):
    query, key, value = (
        torch.randn(*shape, dtype=torch.float64).to(dtype)
        for shape in ((2, 3, 1, 4, 64), (2, 1, 1, 400, 64), (2, 1, 1, 400, 64))
    )
    query, rules = 4 * query, Visibility({"x": "k"}, ["k"])

    def read(query, key, value):
        return attend({"x": query}, {"k": key}, {"k": value}, rules)["x"].double()

    exact = read(query.double(), key.double(), value.double())
    shared = read(query, key, value)
    repeated = [t.expand(2, 3, *t.shape[2:]).flatten(0, 1) for t in (query, key, value)]
    joint = read(*repeated).view_as(exact)
    assert (shared - exact).norm() < 2 * (joint - exact).norm()


def test_values_near_the_limit_of_half_precision_stay_finite():
    query, key = torch.zeros(2, 3, 1, 4, 8).half(), torch.zeros(2, 1, 1, 6, 8).half()
    value, rules = torch.full_like(key, 3e4), Visibility({"x": "k"}, ["k"])
    out = attend({"x": query}, {"k": key}, {"k": value}, rules)["x"]
    assert torch.equal(out, torch.full_like(out, 3e4))


@pytest.mark.usefixtures("no_shape_checks")
def test_shared_keys_that_do_not_fit_are_refused():
    query, rules = torch.randn(2, 3, 1, 4, 5), Visibility({"x": "k"}, ["k"])
    for shape in ((2, 1, 1, 6, 4), (2, 1, 3, 6, 5), (3, 1, 1, 6, 5)):
        key = {"k": torch.randn(shape)}
        with pytest.raises(ValueError, match="attend: got shapes"):
            attend({"x": query}, key, key, rules)
    key, real = {"k": torch.randn(2, 1, 1, 6, 5)}, torch.ones(2, 3, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match="key mask 'k'"):
        attend({"x": query}, key, key, rules, key_masks={"k": real})


def test_kept_keys_are_left_alone(make_zorro):
    attention = make_zorro().layers[0].attention
    streams = {"a": torch.randn(1, 2, 24), "b": torch.randn(1, 3, 24)}
    kept = {"a": attention.keys_values(attention.norm(streams["a"]))}
    attention(streams, Visibility({"a": "all", "b": "all"}), kept=kept)
    assert list(kept) == ["a"]


def test_scores_far_beyond_the_exponential_stay_finite():
    query, key = torch.full((2, 2, 1, 1, 4), 60.0), torch.full((2, 1, 1, 3, 4), 60.0)
    other = torch.full((1, 2, 1, 3, 4), -60.0)
    rules = Visibility({"x": "all"}, ["near", "far"])
    out = attend({"x": query}, {"near": key, "far": other}, {"near": key, "far": other}, rules)
    assert_close(out["x"], query)


def test_dropout_of_shared_keys_drops_weights_and_keeps_the_mean():
    query, key = torch.randn(4000, 2, 1, 1, 4), torch.randn(1, 2, 1, 6, 4)
    query = query[:1].expand_as(query)
    groups, rules = ({"x": query}, {"k": key}, {"k": key}), Visibility({"x": "k"}, ["k"])
    dropped, sure = attend(*groups, rules, dropout=0.5)["x"], attend(*groups, rules)["x"]
    assert not torch.equal(dropped[0], dropped[1])
    assert_close(dropped.mean(0), sure.mean(0), rtol=0, atol=0.1)


# Cost


def test_a_pair_costs_its_fusion_tokens_alone(make_zorro):
    """The count by hand: projections and feed-forward of the fusion tokens, and what they read."""
    model, inputs = make_zorro(3).double(), clips(4)
    audio, video = (encode(model, name, inputs) for name in inputs)
    with FlopCounterMode(display=False) as counter:
        model.fuse_pairs(audio, video, progress=False)
    dim, inner, fusion, width = 24, 64, 3, 2 * 8
    tokens = [cache.readout[0].shape[-2] for cache in (audio, video)]
    layer = 2 * fusion * dim * (4 * width + 3 * inner) + 4 * width * fusion * (sum(tokens) + fusion)
    readers = {"audio": tokens[0], "video": tokens[1], "fusion": fusion}
    readers["global"] = sum(readers.values())
    readout = 2 * fusion * dim * 2 * width + sum(4 * width * n for n in readers.values())
    readout += 4 * 2 * dim * width * 2
    assert counter.get_total_flops() == 16 * (3 * layer + readout)


def test_memory_beyond_the_caches_does_not_grow_with_the_pairs(make_zorro):
    def peak(clip_count):
        model, inputs = make_zorro(patch=4), clips(clip_count, samples=8000, height=16, width=16)
        inputs = {name: tensor.float() for name, tensor in inputs.items()}
        audio, video = (encode(model, name, inputs) for name in inputs)

        def run():
            model.fuse_pairs(
                audio, video, score=lambda out: out[:, :, 0, 0], pairs_at_once=4, progress=False
            )

        return peak_bytes(run), audio.num_bytes + video.num_bytes

    (few, few_kept), (many, many_kept) = peak(5), peak(15)  # odd: a last pair alone
    assert many_kept == 3 * few_kept
    assert many - few <= 4 * (15**2 - 5**2) + 256  # the scores that come back
    assert many < many_kept


@pytest.mark.parametrize(
    ("sounds", "films", "at_once", "wanted"),
    [
        (3, 3, 3, [(1, 3)] * 3),
        (3, 3, 4, [(2, 2), (2, 1), (1, 2), (1, 1)]),
        (5, 1, 3, [(3, 1), (2, 1)]),
        (1, 5, 3, [(1, 3), (1, 2)]),
        (4, 2, 6, [(3, 2), (1, 2)]),
        (6, 6, 7, [(2, 3)] * 6),
    ],
)
def test_pairs_are_fused_in_squares_and_never_more_than_asked(
    make_zorro, sounds, films, at_once, wanted
):
    model, inputs = make_zorro().double(), clips(6, samples=400, height=4, width=4)
    audio, video = encode(model, "audio", inputs)[:sounds], encode(model, "video", inputs)[:films]
    shapes = []

    def score(out):
        shapes.append(tuple(out.shape[:2]))
        return out

    model.fuse_pairs(audio, video, score=score, pairs_at_once=at_once, progress=False)
    assert shapes == wanted


def test_caches_hold_what_they_count_in_one_piece_each(make_zorro):
    cache = encode(make_zorro().double(), "audio", clips(), PADDED)
    for tensor in cache._tensors():
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_progress_is_shown_or_not(make_zorro, capsys):
    model, inputs = make_zorro().double(), clips()
    audio, video = (encode(model, name, inputs) for name in inputs)
    model.fuse_pairs(audio, video, progress=False)
    assert capsys.readouterr().err == ""
    model.fuse_pairs(audio, video)
    assert "9/9 [" in capsys.readouterr().err


# Caches


def test_caches_are_cut_and_joined(make_zorro):
    model, inputs = make_zorro().double(), clips()
    whole = encode(model, "audio", inputs, PADDED)
    assert len(whole) == len(list(whole)) == 3
    assert torch.equal(whole[-1].readout[0], whole[2:].readout[0])
    joined = StreamCache.cat([whole[2:], whole[[0, 1]]])
    video = encode(model, "video", inputs, PADDED)
    exactly(model.fuse(joined, video[[2, 0, 1]]), model.fuse(whole, video)[[2, 0, 1]])
    tokens = whole.readout[0].shape[-2]
    assert whole.num_bytes == 3 * tokens * (2 * (2 + 1) * 2 * 8 * 8 + 1)
    assert whole[:1].num_bytes * 3 == whole.num_bytes


def test_caches_are_written_and_read_without_running_code(make_zorro, tmp_path):
    model, inputs = make_zorro().double(), clips()
    audio, video = (encode(model, name, inputs, PADDED) for name in inputs)
    torch.save(audio, tmp_path / "audio.pt")
    read = torch.load(tmp_path / "audio.pt", weights_only=True)
    assert torch.equal(model.fuse(read, video), model.fuse(audio, video))


# Bad input


def test_what_cannot_be_encoded(make_zorro):
    model, inputs = make_zorro().double(), clips()
    with pytest.raises(ValueError, match=r"Zorro.encode: got both .* wanted one; encode each"):
        model.encode(**inputs)
    with pytest.raises(ValueError, match=r"Zorro.encode: got neither"):
        model.encode()
    with pytest.raises(ValueError, match=r"got video_lengths without video; give both"):
        model.encode(audio=inputs["audio"], video_lengths=[4, 4, 4])
    with pytest.raises(ValueError, match=r"Zorro.encode: the model is in training mode, .*eval\("):
        model.train().encode(audio=inputs["audio"])
    careless = Visibility({"audio": ["audio"], "video": ["video", "fusion"], "fusion": "all"})
    model = make_zorro(2, trunk=[zorro_trunk("audio", "video"), careless]).double()
    assert len(model.encode(audio=inputs["audio"])) == 3
    with pytest.raises(ValueError, match=r"in layer 1 video reads video, fusion, wanted video al"):
        model.encode(video=inputs["video"])


@pytest.mark.usefixtures("no_shape_checks")
def test_what_cannot_be_fused(make_zorro):
    model, inputs = make_zorro().double(), clips()
    audio, video = (encode(model, name, inputs) for name in inputs)
    for fuse in (model.fuse, model.fuse_pairs):
        where = f"Zorro.{fuse.__name__}"
        with pytest.raises(ValueError, match=rf"{where}: got caches of \['audio', 'audio'\], want"):
            fuse(audio, audio)
        with pytest.raises(TypeError, match=rf"{where}: got a Tensor, wanted caches; make them"):
            fuse(audio, inputs["video"])
    with pytest.raises(ValueError, match=r"got caches of \[\], wanted different modalities"):
        model.fuse()
    with pytest.raises(ValueError, match=r"hold 3 and 2 clips, wanted the same .*fuse_pairs"):
        model.fuse(audio, video[:2])
    with pytest.raises(ValueError, match=r"readout 1 \(video\) may read only what was left out"):
        model.fuse(audio)
    with pytest.raises(ValueError, match=r"return_token_indices is \(9,\); give one or more"):
        model.fuse(audio, video, return_token_indices=(9,))
    with pytest.raises(ValueError, match=r"pairs_at_once is 0; give a positive whole"):
        model.fuse_pairs(audio, video, pairs_at_once=0)
    with pytest.raises(ValueError, match=r"score made \(3,\) of \(3, 3\) pairs; return a tensor"):
        model.fuse_pairs(audio, video, score=lambda out: out[:, 0, 0, 0], progress=False)
    with pytest.raises(ValueError, match=r"in training mode, .* call model.eval\(\) first"):
        copy.deepcopy(model).train().fuse(audio, video)
    others = (make_zorro(3), make_zorro(heads=4), make_zorro(dim_head=4))
    for other in (*(other.double() for other in others), make_zorro()):
        with pytest.raises(ValueError, match=r"audio cache has \(2, 2, 8, .* this model has"):
            other.fuse(audio, video)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(
            ValueError, match=r"cache has \(2, 2, 8, False, torch.float64.* the same autocast"
        ),
    ):
        model.fuse(audio, video)
    twice = [cache.map(lambda tensor: tensor[:, None]) for cache in (audio, video)]
    for caches in ((audio[:0], video[:0]), twice):
        for fuse in (model.fuse, model.fuse_pairs):
            with pytest.raises(ValueError, match=r"the audio cache has the batch .* cut less away"):
                fuse(*caches)
    with pytest.raises(ValueError, match=r"2, 8, True, .* this model has \(2, 2, 8, False"):
        model.fuse(encode(make_zorro(reversible=True).double(), "audio", inputs), video)
    elsewhere = audio.map(lambda tensor: tensor.to("meta"))
    with pytest.raises(ValueError, match=r"device\(type='meta'\).* this model has"):
        model.fuse(elsewhere, video)
    calls = []

    def fickle(out):
        calls.append(out)
        return out[:, :, 0, : len(calls)]

    with pytest.raises(
        ValueError, match=r"score made .*\(2,\) of a pair, and of those before .*\(1,\)"
    ):
        model.fuse_pairs(audio, video, score=fickle, pairs_at_once=1, progress=False)
    partly = copy.deepcopy(model)
    partly.layers[0].train()
    with pytest.raises(ValueError, match=r"in training mode"):
        partly.fuse(audio, video)
    for score in (lambda out: out.numpy(), lambda out: 1.0):
        with pytest.raises(ValueError, match=r"score made <class .* return a tensor and keep"):
            model.fuse_pairs(audio, video, score=score, progress=False)


def test_caches_that_cannot_be_joined(make_zorro):
    model, inputs = make_zorro().double(), clips()
    audio, video = (encode(model, name, inputs) for name in inputs)
    short = model.encode(audio=inputs["audio"][:, :400])
    padded = encode(model, "audio", inputs, PADDED)
    others = [
        encode(make_zorro(3).double(), "audio", inputs),
        encode(make_zorro(heads=4).double(), "audio", inputs),
        audio.map(torch.Tensor.float),
    ]
    for caches in ([], [audio, video], *([audio, other] for other in (short, padded, *others))):
        with pytest.raises(ValueError, match=r"StreamCache.cat: got .* wanted one kind; encode al"):
            StreamCache.cat(caches)
    with pytest.raises(TypeError, match=r"StreamCache.cat: got a Tensor, wanted caches"):
        StreamCache.cat([audio, inputs["audio"]])


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("index", [(slice(None), 0), None, "x"])
def test_what_is_no_index_of_clips(make_zorro, index):
    audio = encode(make_zorro().double(), "audio", clips())
    with pytest.raises(TypeError, match=r"StreamCache: got the index .* wanted clips; use a num"):
        audio[index]
