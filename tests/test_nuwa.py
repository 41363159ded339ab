"""The twin decoder: causal, the same function reversibly, its losses, and what it refuses."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from twins import KINDS, as_written, make_clips, make_twin, order

from avlib import influence
from avlib.memory import make_step, measure, peak_bytes
from avlib.predict import predict
from avlib.twin_layers import NearbyAttention, OtherTowerAttention

kinds = pytest.mark.parametrize("kind", KINDS)


# Who reads whom


def neighbours_of(model):
    """Those of film and of sound, layer by layer."""
    blocks = model.towers.sequence.blocks
    near = [block for block in blocks if isinstance(block[0].fn, NearbyAttention)]
    return [(block[0].fn.neighbours, block[2].fn.neighbours) for block in near]


@kinds
def test_shapes_are_those_of_the_codes(kind):
    model = make_twin(**KINDS[kind])
    clips = make_clips(model)
    for name, logits in zip(("video", "audio"), model(**clips), strict=True):
        assert logits.shape == (*clips[name].shape, model.ends[name].codes)


def test_the_kinds_run_by_runs_and_under_a_dense_mask():
    for kind, dense in (("plain", True), ("runs", False), ("runs in both", False)):
        for film, sound in neighbours_of(make_twin(**KINDS[kind])):
            assert (film.dense is not None) == (sound.dense is not None) == dense


@kinds
def test_a_code_moves_only_what_is_written_after_it(kind):
    model = make_twin(**KINDS[kind])
    clips = make_clips(model, batch=1)
    frames = model.max_frames
    with torch.no_grad():
        wanted = as_written(model, model(**clips))
        written = order(model, frames)
        # All in small models; else the ends of the modalities and some between.
        step = max(1, len(written) // 24)
        for at, (name, place) in enumerate(written):
            ends = place % (model.ends[name].places - 1) in (0, model.ends[name].places - 2)
            if not ends and at % step:
                continue
            changed = {**clips, name: clips[name].clone()}
            changed[name].view(-1)[place] += 1
            changed[name] %= model.ends[name].codes
            found = as_written(model, model(**changed))
            moved = [not torch.equal(*pair) for pair in zip(found, wanted, strict=True)]
            assert not any(moved[: at + 1])
            later = [n for (n, _), m in zip(written, moved, strict=True) if m]
            # The last code of a modality moves nothing unless the other one reads it.
            if any(n == name for n, _ in written[at + 1 :]):
                assert name in later
            other = {"video": "audio", "audio": "video"}[name]
            crossed = "cross_every" not in KINDS[kind] or KINDS[kind]["cross_every"]
            assert (other in later) == bool(
                crossed and any(n == other for n, _ in written[at + 1 :])
            )


@pytest.mark.parametrize("kind", ["plain", "several codes of sound", "runs"])
def test_sound_reads_film_up_to_the_last_code_of_its_frame_and_film_the_sound_before(kind):
    model = make_twin(**KINDS[kind])
    clips = make_clips(model, batch=1)
    wanted = model(**clips)
    for frame in range(model.max_frames - 1):
        film = {**clips, "video": clips["video"].clone()}
        film["video"][0, frame, -1, -1] = (film["video"][0, frame, -1, -1] + 1) % 5
        video, audio = model(**film)
        assert not torch.equal(audio[0, frame, 0], wanted[1][0, frame, 0])
        assert torch.equal(video[0, : frame + 1], wanted[0][0, : frame + 1])
        sound = {**clips, "audio": clips["audio"].clone()}
        sound["audio"][0, frame, -1] = (sound["audio"][0, frame, -1] + 1) % 4
        video, audio = model(**sound)
        assert torch.equal(video[0, : frame + 1], wanted[0][0, : frame + 1])
        assert not torch.equal(video[0, frame + 1, 0, 0], wanted[0][0, frame + 1, 0, 0])


@pytest.mark.parametrize("kind", ["plain", "several codes of sound", "runs in both"])
def test_a_token_is_its_code_and_its_place_and_a_start_has_the_time_of_its_frame(kind):
    model = make_twin(**KINDS[kind])
    clips = make_clips(model)
    for name, tower in model.ends.items():
        steps, rows, columns = tower.grid
        when, row, column = tower.positions.tables.values()
        tokens = tower(clips[name].flatten(2)).unflatten(1, (-1, tower.places))
        codes = clips[name].view(2, -1, *tower.grid)
        for frame in range(model.max_frames):
            wanted = [(tower.start + when[frame * steps]).expand(2, -1)]
            for step, y, x in itertools.product(range(steps), range(rows), range(columns)):
                place = when[frame * steps + step] + row[y] + column[x]
                wanted.append(tower.embedding.weight[codes[:, frame, step, y, x]] + place)
            torch.testing.assert_close(tokens[:, frame], torch.stack(wanted, 1))


def test_fewer_frames_are_the_beginning_of_more():
    for kind in ("plain", "several codes of sound", "runs"):
        model = make_twin(**KINDS[kind]).double()
        clips = make_clips(model)
        wanted = model(**clips)
        for frames in range(1, model.max_frames):
            found = model(**{n: c if n == "text" else c[:, :frames] for n, c in clips.items()})
            for short, long in zip(found, wanted, strict=True):
                torch.testing.assert_close(short, long[:, :frames], rtol=0, atol=1e-12)


def test_words_are_read_and_padding_is_not():
    model = make_twin().double()
    clips = make_clips(model)
    wanted = model(**clips)
    text = clips["text"].clone()
    text[1, 0] = text[1, 0] % 6 + 1
    for found, before in zip(model(**{**clips, "text": text}), wanted, strict=True):
        assert not torch.isclose(found[1], before[1]).all()
        assert torch.equal(found[0], before[0])
    shorter = {name: codes[:1] for name, codes in clips.items()}
    for found, before in zip(
        model(**{**shorter, "text": shorter["text"][:, :-1]}), wanted, strict=True
    ):
        torch.testing.assert_close(found, before[:1], rtol=0, atol=1e-12)


def test_a_text_that_is_dropped_one_of_padding_and_no_word_at_all_are_the_same():
    model = make_twin().double()
    clips = make_clips(model)
    padding = torch.zeros_like(clips["text"])
    wanted = model(**{**clips, "text": padding})
    for same in (
        {**clips, "dropped": torch.tensor([True, True])},
        {**clips, "text": padding[:, :0]},
        {**clips, "text": padding[:, :1]},
    ):
        torch.testing.assert_close(model(**same), wanted, rtol=0, atol=1e-12)
    one = model(**clips, dropped=torch.tensor([False, True]))
    for found, with_text, without in zip(one, model(**clips), wanted, strict=True):
        torch.testing.assert_close(found[0], with_text[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1], without[1], rtol=0, atol=1e-12)
        assert not torch.allclose(with_text, without)


@pytest.mark.parametrize(
    ("name", "other"), [("video", "audio"), ("audio", "video")], ids=["video", "audio"]
)
def test_between_the_towers_it_is_attention_under_the_mask_with_a_key_that_is_always_there(
    name, other
):
    model = make_twin(audio_size=(2, 1))
    (mask,) = model.masks[name, other]
    ends = model.ends
    layer = next(
        coupling.fn
        for coupling in model.towers.sequence.blocks[2]
        if isinstance(coupling.fn, OtherTowerAttention) and coupling.fn.places == ends[name].places
    )
    streams = [torch.randn(2, 3 * ends[n].places, 8) for n in (name, other)]
    query = layer.attention.queries(layer.attention.norm(streams[0]))
    parts = layer.attention.keys_values(layer.other_norm(streams[1]))
    key, value = (
        torch.cat([null.expand(2, -1, -1, -1), part], 2)
        for null, part in zip(layer.null, parts, strict=True)
    )
    read = F.scaled_dot_product_attention(query, key, value, mask.dense())
    wanted = layer.out_norm(layer.attention.joined(read))
    torch.testing.assert_close(layer(*streams), wanted)
    assert len(layer.null) == 2
    assert layer.null.requires_grad


def test_the_masks_are_those_of_the_layers():
    model = make_twin(**KINDS["layers take dilations in turn"])
    assert {pair: len(masks) for pair, masks in model.masks.items()} == {
        ("video", "video"): 2,
        ("video", "audio"): 1,
        ("audio", "audio"): 2,
        ("audio", "video"): 1,
    }
    for layer, both in enumerate(neighbours_of(model)):
        for name, neighbours in zip(("video", "audio"), both, strict=True):
            mask = model.masks[name, name][layer % 2]
            for token, row in enumerate(mask.dense()):
                assert neighbours.read_by(token).tolist() == row.nonzero()[:, 0].tolist()
    one, two = model.masks["audio", "audio"]
    assert not torch.equal(one.dense(), two.dense())
    assert set(make_twin(cross_every=None).masks) == {("video", "video"), ("audio", "audio")}


@pytest.mark.parametrize(
    ("cross_every", "wanted"),
    [(1, "snc" * 4), (2, "snsnc" * 2), (3, "snsnsncsn"), (None, "sn" * 4)],
)
def test_blocks_come_in_order(cross_every, wanted):
    short = {
        "intra_modality_self_attn": "s",
        "intra_modality_cross_attn": "n",
        "inter_modality_cross_attn": "c",
    }
    types = make_twin(4, cross_every=cross_every).towers.block_types
    assert "".join(short[kind] for kind in types) == wanted


# Reversible


def gradients(model, clips, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    loss = model.losses(**clips)
    loss.total.backward()
    return loss, {name: weight.grad.clone() for name, weight in model.named_parameters()}


@kinds
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_reversible_is_the_same_function_with_the_same_gradients(kind, dropout):
    exact = "exact" in KINDS[kind]
    model = make_twin(**{**KINDS[kind], "dropout": dropout}).train()
    model = model if exact else model.double()
    clips = make_clips(model)
    clips["text"][1] = 0
    found = []
    for reversible in (False, True):
        model.reversible = reversible
        found.append(gradients(model, clips))
    (losses, wanted), (other_losses, other) = found
    tolerance = 1e-4 if exact else 1e-10
    torch.testing.assert_close(other_losses, losses, rtol=1e-6 if exact else 1e-12, atol=0)
    for name, gradient in wanted.items():
        error = (gradient - other[name]).abs().max() / gradient.abs().max().clamp(min=1e-6)
        assert error < tolerance, name
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "tolerance", "dropout"),
    [(torch.float32, 1e-4, 0.0), (torch.float64, 1e-9, 0.2)],
)
def test_both_learn_the_same(dtype, tolerance, dropout):
    learned = []
    for reversible in (False, True):
        model = make_twin(reversible=reversible, dropout=dropout).to(dtype).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(0)
        for step in range(20):
            optimizer.zero_grad()
            loss = model.losses(**make_clips(model, seed=step), text_dropout=0.3).total
            loss.backward()
            optimizer.step()
        learned.append(model.state_dict())
    torch.testing.assert_close(*learned, rtol=0, atol=tolerance)
    before = make_twin().to(dtype).state_dict()
    moved = [(learned[0][name] - before[name]).abs().max() for name in before]
    assert sum(change > 1e-3 for change in moved) > 0.9 * len(moved)


def step_bytes(depth, **changes):
    model = make_twin(depth, **changes).train()
    clips = make_clips(model, frames=2)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    return peak_bytes(lambda: model.losses(**clips).total.backward())


def test_memory_does_not_grow_with_depth():
    def slope(reversible):
        return step_bytes(3, reversible=reversible) - step_bytes(1, reversible=reversible)

    assert slope(False) > 50_000
    assert slope(True) <= 0.01 * slope(False)


def test_memory_is_predicted_to_the_byte():
    changes = {**KINDS["runs"], "reversible": True}
    model = make_twin(1, **changes).train()
    clips = make_clips(model, frames=2)
    found = predict(lambda: make_twin(1, **changes).train(), clips)
    assert found.peak == measure(make_step(model, clips), model=model).peak


def halves_of(model, clips):
    """What enters the towers, the halves that leave them, and what they are asked with."""
    context, real = model.text(clips["text"])
    inputs = {"context": context, "context_mask": real}
    tokens = model.video(clips["video"].flatten(2)), model.audio(clips["audio"])
    return tokens, model.towers.streams(*tokens, **inputs), inputs


@torch.no_grad()
def test_exact_blocks_are_undone_to_the_bit():
    model = make_twin(12, exact=True)
    tokens, halves, inputs = halves_of(model, make_clips(model))
    x1, x2, m1, m2 = model.towers.inverse(*halves, **inputs)
    model.towers.sequence.check()
    entered = [model.towers.sequence.grid.round(part) for part in tokens]
    for found, wanted in zip((x1, x2, m1, m2), (*entered[:1] * 2, *entered[1:] * 2), strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(halves[0], halves[1])


def test_exact_training_leaves_no_flag():
    model = make_twin(exact=True, reversible=True, dropout=0.2).train()
    gradients(model, make_clips(model))
    model.towers.sequence.check()
    assert model.towers.sequence.grid is not None


@torch.no_grad()
def test_all_that_is_added_to_a_stream_is_of_one_size():
    model = make_twin(3)
    added = []
    for block in model.towers.sequence.blocks:
        for coupling in block:
            coupling.fn.register_forward_hook(lambda _, __, out: added.append(out.std(-1)))
    for name, weight in model.towers.named_parameters():
        if "to_out" in name:  # before the last norm
            weight.mul_(100)
    model(**make_clips(model))
    assert len(added) == 3 * 3 * 4
    assert all(((spread > 0.9) & (spread < 1.1)).all() for spread in added)


@torch.no_grad()
def test_deep_streams_stay_bounded():
    spreads = []
    for depth in (12, 48):
        model = make_twin(depth)
        _, halves, _ = halves_of(model, make_clips(model))
        spreads.append(torch.stack([half.std() for half in halves]))
    assert spreads[1].max() < 30
    # Sums of things of one size, so about the root of four times as many.
    assert ((spreads[1] / spreads[0]) < 4).all()


def test_the_weights_are_the_same_whatever_the_way():
    states = [
        make_twin(reversible=reversible, exact=exact).state_dict()
        for reversible, exact in itertools.product((False, True), (False, True))
    ]
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    assert not [name for name in states[0] if "neighbours" in name]


def test_a_model_is_copied_and_pickled():
    model = make_twin()
    clips = make_clips(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(**clips)[0], model(**clips)[0])


# Losses


def mean_of_cross_entropies(logits, codes):
    flat, wanted = logits.flatten(0, -2).tolist(), codes.flatten().tolist()
    each = [
        torch.tensor(row).double().logsumexp(0) - row[code]
        for row, code in zip(flat, wanted, strict=True)
    ]
    return sum(each) / len(each)


@pytest.mark.parametrize("kind", ["plain", "several codes of sound"])
def test_losses_are_means_of_cross_entropies(kind):
    model = make_twin(**KINDS[kind]).double()
    clips = make_clips(model, batch=3, frames=2)
    video, audio = (
        mean_of_cross_entropies(logits, clips[name])
        for name, logits in zip(("video", "audio"), model(**clips), strict=True)
    )
    found = model.losses(**clips)
    torch.testing.assert_close(found, type(found)(video + audio, video, audio))
    found = model.losses(**clips, video_weight=0.25, audio_weight=3)
    torch.testing.assert_close(found, type(found)(0.25 * video + 3 * audio, video, audio))
    assert model.losses(**clips, video_weight=0, audio_weight=0).total == 0


def test_a_batch_is_the_mean_of_its_clips():
    model = make_twin().double()
    clips = make_clips(model, batch=3)
    alone = [
        torch.stack(model.losses(**{name: codes[i : i + 1] for name, codes in clips.items()}))
        for i in range(3)
    ]
    torch.testing.assert_close(torch.stack(model.losses(**clips)), torch.stack(alone).mean(0))


def test_text_is_dropped_as_often_as_asked():
    model = make_twin().double()
    clips = make_clips(model)
    without = model.losses(**{**clips, "text": torch.zeros_like(clips["text"])})
    torch.testing.assert_close(model.losses(**clips, text_dropout=1), without)
    torch.testing.assert_close(model.losses(**clips, text_dropout=0), model.losses(**clips))

    ways = []
    for dropped in itertools.product((False, True), repeat=2):
        text = clips["text"].masked_fill(torch.tensor(dropped)[:, None], 0)
        ways.append(model.losses(**{**clips, "text": text}).total.item())
    assert len({round(way, 9) for way in ways}) == 4

    @torch.no_grad()
    def drawn(seed, chance=0.5):
        generator = torch.Generator().manual_seed(seed)
        return model.losses(**clips, text_dropout=chance, generator=generator).total.item()

    seen = [drawn(seed) for seed in range(32)]
    assert seen[:8] == [drawn(seed) for seed in range(8)]
    counts = [sum(abs(loss - way) < 1e-9 for loss in seen) for way in ways]
    assert sum(counts) == 32
    assert all(2 <= count <= 16 for count in counts)
    rare = [drawn(seed, 0.1) for seed in range(32)]
    assert sum(abs(loss - ways[0]) < 1e-9 for loss in rare) > 20


def test_a_text_that_is_dropped_gives_gradients_that_are_finite():
    model = make_twin()
    model.losses(**make_clips(model), text_dropout=1).total.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@kinds
def test_every_weight_learns_but_that_of_padding(kind):
    model = make_twin(**KINDS[kind])
    for seed in range(8):  # so that each code and each word occurs
        model.losses(**make_clips(model, seed=seed)).total.backward()
    still = {
        (name, row)
        for name, weight in model.named_parameters()
        for row in range(len(weight))
        if name.endswith("embedding.weight") or "tables" in name or "null" in name
        if not weight.grad[row].any()
    }
    # Nobody reads a word of padding, so nothing is learned about it.
    assert still == {("text.embedding.weight", 0)}
    assert all(weight.grad.any() for weight in model.parameters())


def test_influence_finds_the_order_of_the_frames():
    model = make_twin(cross_every=1)
    clips = make_clips(model, batch=1)
    tokens, _, inputs = halves_of(model, clips)

    class Towers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, video, audio):
            out = self.model.towers(video, audio, **inputs)
            frames = [part.unflatten(1, (3, -1)) for part in out]
            return {f"{n} {t}": f[:, t] for n, f in zip("va", frames, strict=True) for t in (0, 2)}

    table = influence(Towers(), {"video": tokens[0].detach(), "audio": tokens[1].detach()})
    moves = dict(zip(table.outputs, table.moves.tolist(), strict=True))
    assert moves == {
        "v 0": [True, False],
        "v 2": [True, True],
        "a 0": [True, True],
        "a 2": [True, True],
    }


# Wrong calls


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth is 0; give a positive whole number"),
        ({"max_frames": 2.0}, "max_frames is 2.0; give a positive whole number"),
        ({"max_words": True}, "max_words is True; give a positive whole"),
        ({"text_words": -1}, "text_words is -1; give a positive whole"),
        ({"text_depth": 0}, "text_depth is 0; give a positive whole"),
        ({"video_codes": 0}, "video_codes is 0; give a positive whole"),
        ({"audio_codes": "9"}, "audio_codes is '9'; give a positive whole"),
        ({"heads": None}, "heads is None; give a positive whole"),
        ({"dim_head": 0}, "dim_head is 0; give a positive whole"),
        ({"cross_every": 0}, "cross_every is 0; give a positive whole"),
        ({"ff_mult": 0}, "ff_mult is 0; give a positive number"),
        ({"dropout": 1.5}, "dropout is 1.5; give a number from 0 to 1"),
        ({"dropout": float("nan")}, "dropout is nan; give a number from 0 to 1"),
        ({"video_size": (2, 2, 2)}, r"video_size: got \(2, 2, 2\); give a positive whole"),
        ({"audio_size": (0, 1)}, r"audio_size: got \(0, 1\); give a positive whole"),
        ({"video_window": 3}, "video_window is 3; give a list with one for each of 3 axes"),
        ({"video_window": [3, 3]}, r"video_window is \[3, 3\]; give a list with one for each of 3"),
        ({"audio_window": [3, 3, 1]}, r"audio_window is \[3, 3, 1\]; give .* each of 2 axes"),
        ({"video_window": [2, 3, 3]}, "nearby: window 2 is no odd number of tokens"),
        ({"video_dilation": 2}, r"video_dilation is 2; give one or more, which layers take in tu"),
        ({"audio_dilation": ()}, r"audio_dilation is \(\); give one or more"),
        ({"video_dilation": ([1, 2],)}, r"video_dilation is \[1, 2\]; give a list .* of 3 axes"),
        ({"audio_dilation": ([1, 2, 1],)}, r"audio_dilation is \[1, 2, 1\]; .* of 2 axes"),
        ({"audio_dilation": (0,)}, "nearby: dilation is 0; give a positive whole number"),
    ],
)
def test_models_that_cannot_be_made(no_shape_checks, changes, message):
    with pytest.raises(ValueError, match=message):
        make_twin(**changes)


@pytest.mark.parametrize("name", ["text", "video", "audio"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda codes: codes.numpy(), TypeError, "{} is a ndarray, wanted a tensor; use torch.as"),
        (lambda codes: codes.tolist(), TypeError, "{} is a list, wanted a tensor"),
        (lambda codes: codes.float(), TypeError, r"{} is torch.float32, wanted .* use {}.long\(\)"),
        (lambda codes: codes > 0, TypeError, "{} is torch.bool, wanted whole numbers"),
        (lambda codes: codes + 0j, TypeError, "{} is torch.complex64, wanted whole numbers"),
        (lambda codes: codes[0], ValueError, r"{} has shape .*, wanted \(batch, .* use {}\[None\]"),
        (lambda codes: codes[None, None], ValueError, "{} has shape .*; add or drop axes"),
        (lambda codes: codes[:0], ValueError, r"{} has shape \(0, .*; no axis may be empty"),
        (lambda codes: codes - 9, ValueError, "{} has the code -[0-9], there are [0-9], counted"),
        (lambda codes: codes + 9, ValueError, r"{} has the code [0-9]+, .* from 0 to [0-9], or m"),
    ],
)
def test_what_are_no_codes(no_shape_checks, name, change, error, message):
    model = make_twin()
    clips = make_clips(model)
    clips[name] = change(clips[name])
    message = "TwinDecoder: " + message.replace("{}", name)
    for call in (model, model.losses, lambda **clips: model.generate(clips.pop("text"), **clips)):
        with pytest.raises(error, match=message):
            call(**clips)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_codes_of_every_whole_number_type_are_the_same(no_shape_checks, dtype):
    model = make_twin()
    clips = make_clips(model)
    small = {name: codes.to(dtype) for name, codes in clips.items()}
    assert torch.equal(model(**small)[0], model(**clips)[0])
    assert model.losses(**small) == model.losses(**clips)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: {**c, "text": torch.ones(2, 5).long()},
            "text has 5 words, the model has positions for 4; give fewer, .* larger max_words",
        ),
        (
            lambda c: {**c, "video": c["video"][:, :2]},
            "video has 2 frames, audio sound for 3; give sound for each frame",
        ),
        (
            lambda c: {**c, "video": torch.cat([c["video"]] * 2, 1)},
            "video has 6 frames, the model has positions for 3; .* larger max_frames",
        ),
        (
            lambda c: {**c, "audio": torch.cat([c["audio"]] * 2, 1)},
            "audio has 6 frames, the model has positions for 3",
        ),
        (
            lambda c: {**c, "video": c["video"][:, :0]},
            r"video has shape \(2, 0, 2, 2\), wanted \(batch, frames, rows, columns\); no axis",
        ),
        (
            lambda c: {**c, "video": c["video"][:1]},
            r"video has shape \(1, 3, 2, 2\), wanted \(2, frames, 2, 2\) for 2 texts; its axes",
        ),
        (
            lambda c: {**c, "video": c["video"][..., :1]},
            r"wanted \(2, frames, 2, 2\) .* \(batch, frames, rows, columns\)",
        ),
        (
            lambda c: {**c, "audio": torch.cat([c["audio"]] * 2, 2)},
            r"audio has shape \(2, 3, 2\), wanted \(2, frames, 1\) .* \(batch, frames, codes\)",
        ),
        (
            lambda c: {**c, "dropped": torch.ones(3).bool()},
            r"dropped is torch.bool of shape \(3,\), wanted booleans of shape \(2,\); give True or",
        ),
        (lambda c: {**c, "dropped": torch.ones(2)}, "dropped is torch.float32 of shape"),
    ],
)
def test_inputs_that_do_not_fit_together(no_shape_checks, change, message):
    model = make_twin()
    with pytest.raises(ValueError, match=f"TwinDecoder: .*{message}"):
        model(**change(make_clips(model)))


def test_marks_that_are_no_tensor(no_shape_checks):
    model = make_twin()
    with pytest.raises(TypeError, match="TwinDecoder: dropped is a list, wanted a tensor"):
        model(**make_clips(model), dropped=[True, False])


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf"), True, "1", None])
@pytest.mark.parametrize("name", ["video_weight", "audio_weight", "text_dropout"])
def test_weights_and_chances_out_of_range(no_shape_checks, name, number):
    model = make_twin()
    wanted = "from 0 to 1" if name == "text_dropout" else "of 0 or more, not infinite"
    with pytest.raises(
        ValueError, match=f"TwinDecoder.losses: {name} is {number!r}; give a number {wanted}"
    ):
        model.losses(**make_clips(model), **{name: number})


def test_a_seed_is_no_generator(no_shape_checks):
    model = make_twin()
    message = r"generator is 3, wanted a torch.Generator; use torch.Generator\(\).manual_seed"
    with pytest.raises(TypeError, match=f"TwinDecoder.losses: {message}"):
        model.losses(**make_clips(model), generator=3)
    with pytest.raises(TypeError, match=f"TwinDecoder.generate: {message}"):
        model.generate(make_clips(model)["text"], generator=3)


def test_exact_streams_are_float32():
    model = make_twin(exact=True).double()
    with pytest.raises(ValueError, match=r"exact mode: stream 'x1' is torch.float64, wanted"):
        model(**make_clips(model))
