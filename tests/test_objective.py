"""Losses against slow loops: what counts, in which order, and what is refused."""

from math import exp, log

import pytest
import torch

from avlib.examples import UNKNOWN
from avlib.objective import Objective, contrastive_loss
from avlib.trained import small_zorro

READOUTS = ("audio", "video", "fusion")
PAIRS = (("audio", "video"), ("video", "fusion"))
BOTH = Objective({"pitch": 3, "shape": 2}, PAIRS, features=4, temperature=0.3)


def outputs(batch=6, objective=BOTH):
    generator = torch.Generator().manual_seed(1)
    shape = batch, len(READOUTS), objective.num_outputs
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def labels(batch=6):
    pitch = torch.tensor([0, 2, 1, UNKNOWN, 1, 0])[:batch]
    return {"pitch": pitch, "shape": torch.tensor([1, UNKNOWN, 0, 0, 1, 1])[:batch]}


def readable(batch=6):
    """Clip 0 has no sound, 1 no pictures, 2 neither."""
    table = torch.ones(6, 3, dtype=torch.bool)
    table[0, 0] = table[1, 1] = False
    table[2] = False
    return table[:batch]


def slow_entropy(logits, label):
    return log(sum(exp(x) for x in logits)) - logits[label]


def slow_contrast(first, second, temperature):
    """Plain numbers: two lists of vectors of length 1."""

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / temperature

    n = len(first)
    there = sum(slow_entropy([dot(first[i], b) for b in second], i) for i in range(n))
    back = sum(slow_entropy([dot(a, second[i]) for a in first], i) for i in range(n))
    return (there / n + back / n) / 2 if n else 0.0


def unit(vector):
    length = sum(x * x for x in vector) ** 0.5
    return [x / length for x in vector]


def slow_losses(outputs, labels, readable):
    """Each term of BOTH by its definition, clip by clip."""
    numbers, found = outputs.tolist(), {}
    for label, begin, end in (("pitch", 0, 3), ("shape", 3, 5)):
        for r, readout in enumerate(READOUTS):
            known = [
                i
                for i in range(len(numbers))
                if readable[i, r] and int(labels[label][i]) != UNKNOWN
            ]
            total = sum(
                slow_entropy(numbers[i][r][begin:end], int(labels[label][i])) for i in known
            )
            found[f"{readout} {label}"] = total / len(known) if known else 0.0
    for one, other in PAIRS:
        i, j = READOUTS.index(one), READOUTS.index(other)
        both = [n for n in range(len(numbers)) if readable[n, i] and readable[n, j]]
        sides = [[unit(numbers[n][r][5:]) for n in both] for r in (i, j)]
        found[f"{one} - {other}"] = slow_contrast(*sides, 0.3)
    return found


# What the losses are


@pytest.mark.parametrize("batch", [6, 5, 1])
def test_all_losses_are_those_of_a_slow_loop_in_the_order_of_the_terms(batch):
    out = outputs(batch)
    wanted = slow_losses(out, labels(batch), readable(batch))
    losses = BOTH.losses(out, labels(batch), READOUTS, readable(batch))
    assert tuple(wanted) == BOTH.terms(READOUTS)
    assert losses.tolist() == pytest.approx(list(wanted.values()), abs=1e-12)
    if batch == 6:
        assert min(wanted.values()) > 0.1  # not one of them is trivial
        assert len({round(loss, 6) for loss in wanted.values()}) == len(wanted)


def test_the_terms_are_named_label_by_label_and_then_pair_by_pair():
    assert BOTH.terms(READOUTS) == (
        *("audio pitch", "video pitch", "fusion pitch"),
        *("audio shape", "video shape", "fusion shape"),
        *("audio - video", "video - fusion"),
    )
    assert Objective(contrast=[("video", "audio")]).terms(("audio", "video")) == ("video - audio",)
    assert Objective({"a": 2}).terms(("global",)) == ("global a",)


def test_outputs_are_laid_out_as_logits_label_by_label_then_features():
    assert BOTH.num_outputs == 3 + 2 + 4
    assert Objective({"a": 3}, features=9).num_outputs == 3
    assert Objective(contrast=PAIRS, features=9).num_outputs == 9
    out = torch.arange(2 * 3 * 9.0).view(2, 3, 9)
    logits = BOTH.logits(out)
    assert list(logits) == ["pitch", "shape"]
    assert torch.equal(logits["pitch"], out[..., :3])
    assert torch.equal(logits["shape"], out[..., 3:5])
    embeddings = BOTH.embeddings(out)
    for b in range(2):
        for r in range(3):
            features = out[b, r, 5:]
            torch.testing.assert_close(embeddings[b, r], features / features.square().sum().sqrt())
    assert Objective(contrast=PAIRS, features=9).logits(out) == {}


def test_what_is_unknown_or_cannot_be_read_changes_nothing():
    out = outputs()
    before = BOTH.losses(out, labels(), READOUTS, readable())
    changed = out.detach().clone()
    for i, r in (~readable()).nonzero().tolist():
        changed[i, r] += 100
    for i in range(6):
        for label, part in (("pitch", slice(0, 3)), ("shape", slice(3, 5))):
            if labels()[label][i] == UNKNOWN:
                changed[i, :, part] -= 100
    assert torch.equal(BOTH.losses(changed, labels(), READOUTS, readable()), before)
    before.sum().backward()
    assert not out.grad[~readable()].any()
    assert not out.grad[3, :, :3].any()
    assert not out.grad[1, :, 3:5].any()
    assert out.grad[1, 0, :3].all()


@pytest.mark.parametrize("nothing", ["labels", "readable", "clips"])
def test_a_term_that_counts_nothing_is_zero_with_finite_gradients(nothing):
    clips = 0 if nothing == "clips" else 6
    out = outputs(clips)
    known = {
        n: torch.full((clips,), UNKNOWN) if nothing == "labels" else torch.zeros(clips).long()
        for n in labels()
    }
    read = torch.full((clips, 3), nothing != "readable")
    losses = BOTH.losses(out, known, READOUTS, read)
    assert losses[:6].tolist() == [0.0] * 6
    if nothing != "labels":
        assert losses[6:].tolist() == [0.0] * 2
    losses.sum().backward()
    assert out.grad.isfinite().all()
    assert not out.grad[..., :5].any()


def test_one_clip_alone_has_no_contrast():
    one = torch.randn(1, 5)
    assert float(contrastive_loss(one, one)) == 0


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_the_contrastive_loss_is_that_of_a_loop_in_both_directions(batch, temperature):
    first, second = torch.nn.functional.normalize(torch.randn(2, batch, 5).double(), dim=-1)
    wanted = slow_contrast(first.tolist(), second.tolist(), temperature)
    assert float(contrastive_loss(first, second, temperature)) == pytest.approx(wanted, abs=1e-12)
    swapped = contrastive_loss(second, first, temperature)
    assert float(swapped) == pytest.approx(wanted, abs=1e-12)


def test_clips_that_find_each_other_have_no_contrastive_loss():
    own = torch.eye(4)
    assert contrastive_loss(own, own, 0.05) < 1e-7
    assert contrastive_loss(own, own.roll(1, 0), 0.05) > 19
    assert float(contrastive_loss(torch.ones(4, 1), torch.ones(4, 1))) == pytest.approx(log(4))


def test_gradients_of_all_losses_are_right():
    def losses(out):
        return BOTH.losses(out, labels(), READOUTS, readable())

    assert torch.autograd.gradcheck(losses, outputs())


def test_features_of_zeros_have_finite_gradients():
    out = torch.zeros(3, 3, 9, requires_grad=True)
    losses = BOTH.losses(out, labels(3), READOUTS, torch.ones(3, 3, dtype=torch.bool))
    losses.sum().backward()
    assert out.grad.isfinite().all()


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Objective: got neither labels nor contrast; give one of them"),
        ({"labels": {"a": 0}}, r"Objective: labels\['a'\] is 0; give a positive whole number"),
        ({"labels": {"a": 2.5}}, r"Objective: labels\['a'\] is 2.5; give a positive whole number"),
        ({"labels": {"a": 2}, "features": 0}, "Objective: features is 0; give a positive whole"),
        ({"labels": {"a": 2}, "temperature": 0}, "Objective: temperature is 0; give a positive"),
        ({"contrast": ("audio", "video")}, r'contrast has \'audio\'; give pairs such as \("audio"'),
        ({"contrast": ["ab"]}, "contrast has 'ab'; give pairs such as"),
        ({"contrast": [("audio",)]}, r"contrast has \('audio',\)"),
        ({"contrast": [("audio", "audio")]}, r"contrast has \('audio', 'audio'\)"),
        ({"contrast": [("audio", "video", "fusion")]}, r"contrast has \('audio', 'video', 'fusi"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(settings, message, no_shape_checks):
    with pytest.raises(ValueError, match=message):
        Objective(**settings)


def test_a_label_may_have_any_name():
    names = ("features", "where", "audio", "1", "a b", "temperature")
    objective = Objective(dict.fromkeys(names, 2))
    assert objective.num_outputs == 12
    assert list(objective.logits(torch.zeros(1, 1, 12))) == list(names)


def zorro(objective, **changes):
    small = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8}
    return small_zorro(objective, **{**small, **changes})


def test_a_model_that_does_not_fit_is_refused():
    BOTH.check_model(zorro(BOTH))
    for num_classes in (8, 10, None):
        message = f"has num_classes={num_classes}, the objective needs 9; make it with num_classes="
        with pytest.raises(ValueError, match=message):
            BOTH.check_model(zorro(BOTH, num_classes=num_classes))
    with pytest.raises(
        ValueError, match=r"contrast names the readout 'fusion', the model has \['audio', 'video'\]"
    ):
        BOTH.check_model(zorro(BOTH, return_token_types=("audio", "video")))
    with pytest.raises(ValueError, match=r"the model has the readouts \['audio', .*give each kind"):
        BOTH.check_model(zorro(BOTH, return_token_types=("audio", "video", "fusion", "video")))


def test_clips_whose_labels_do_not_fit_are_refused():
    BOTH.check_labels({**labels(), "another": torch.tensor([99] * 6)})
    with pytest.raises(
        ValueError, match=r"the clips have the labels \['pitch'\], wanted 'shape' too; give it UNKN"
    ):
        BOTH.check_labels({"pitch": torch.tensor([0])})
    for number in (2, -2, 255):
        wrong = {**labels(), "shape": torch.tensor([0, 1, number, 0, 0, 0])}
        message = f"a clip has class {number} of 'shape', wanted 0 to 1, or -1 for UNKNOWN; raise"
        with pytest.raises(ValueError, match=message):
            BOTH.check_labels(wrong)
