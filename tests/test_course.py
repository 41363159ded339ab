"""Every exercise: its solution passes, each named mistake is met with its own words."""

import importlib.util
import inspect
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from einops import rearrange
from IPython.core.compilerop import CachingCompiler

from avlib.course import (
    fusion,
    mask_gallery,
    patchify,
    reversible,
    start_here,
    training,
    zorro_mask,
)
from avlib.course.chapters import CHAPTERS, exercises_of
from avlib.course.exercise import Exercise, Mistake, difference
from avlib.evaluation import Scores
from avlib.masks import Visibility
from avlib.reversible import BLOCK_TYPES
from avlib.trained import trained_zorro
from avlib.world import World

SOLUTIONS = Path(__file__).parents[1] / "notebooks" / "solutions"
EXERCISES = [exercise for chapter in CHAPTERS.values() for exercise in exercises_of(chapter)]
MISTAKES = [(exercise, name) for exercise in EXERCISES for name in exercise.mistakes]

mpl.use("agg")

pytestmark = pytest.mark.usefixtures("no_shape_checks")  # learners hand in anything


def solution(exercise):
    path = SOLUTIONS / f"{exercise.chapter}.py"
    if not path.exists():
        pytest.skip("a teacher took the solutions away")
    spec = importlib.util.spec_from_file_location(f"solutions_{exercise.chapter}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, exercise.name)


def name_of(value):
    return value.name if isinstance(value, Exercise) else value.replace(" ", "_")


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_solution_passes(exercise):
    assert exercise.judge(solution(exercise)) == f"✓ {exercise.name}: right."


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_stub_is_not_attempted(exercise):
    def stub(*_):
        raise NotImplementedError

    assert exercise.judge(stub).startswith(f"· {exercise.name}: not attempted yet")


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_exercise_says_what_it_takes(exercise):
    assert exercise.minutes > 0
    assert exercise.difficulty in (1, 2, 3)
    assert len(exercise.hints) == 2
    assert exercise.mistakes
    assert (exercise.reference is None) != (exercise.verify is None)


@pytest.mark.parametrize(("exercise", "name"), MISTAKES, ids=name_of)
def test_named_mistake_gets_its_own_words(exercise, name):
    mistake = exercise.mistakes[name]
    said = exercise.judge(mistake.function)
    assert said.startswith("✗")
    assert mistake.says in said


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
@pytest.mark.parametrize(
    "junk", [None, 7, "seven", torch.zeros(2, 2), {"A": 1}, (1, 2, 3)], ids=repr
)
def test_junk_is_answered_never_raised(exercise, junk):
    assert exercise.judge(lambda *_: junk).startswith("✗")


def test_an_error_in_the_attempt_is_reported():
    def broken(height, width, patch):
        return height // 0

    said = start_here.count_patches.judge(broken)
    assert said == (
        "✗ count_patches: count_patches(4, 4, 2) stopped with "
        "ZeroDivisionError: integer division or modulo by zero, in your line: return height // 0"
    )


def test_an_error_deep_inside_is_shown_with_the_line_of_the_attempt():
    def split(image, patch):
        return rearrange(image, "c (y p) w -> y c w p", p=patch + 1)

    @torch.no_grad()
    def attempt(image, patch):
        return split(image, patch)

    said = patchify.cut_image.judge(attempt)
    assert "stopped with EinopsError" in said
    assert said.endswith(
        ', in your line: return rearrange(image, "c (y p) w -> y c w p", p=patch + 1)'
    )


def test_an_error_is_shown_with_its_line_of_a_cell():
    source = "def cut_image(image, patch):\n    sides = [patch]\n    return image.reshape(sides)\n"
    cell = {}
    exec(compile(source, CachingCompiler().cache(source), "exec"), cell)
    said = patchify.cut_image.judge(cell["cut_image"])
    assert "stopped with RuntimeError: shape '[2]' is invalid" in said
    assert said.endswith(", in your line: return image.reshape(sides)")


def test_an_error_in_a_returned_function_is_shown_with_its_line():
    def attempt():
        return lambda b, h, q_idx, kv_idx: kv_idx.before(q_idx)

    assert mask_gallery.last_four.judge(attempt) == (
        "✗ last_four: what it returned stopped with AttributeError: 'Tensor' object has no "
        "attribute 'before', in your line: return lambda b, h, q_idx, kv_idx: "
        "kv_idx.before(q_idx)"
    )


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: None,
        abs,
        torch.relu,
        partial(lambda a, image, patch: 1 / 0, 1),
        eval("lambda image, patch: 1 / 0"),
    ],
)
def test_an_error_without_a_line_of_the_attempt_names_none(attempt):
    said = patchify.cut_image.judge(attempt)
    assert "stopped with" in said
    assert "your line" not in said


def test_a_forgotten_return_is_named():
    assert "Does it end with return?" in start_here.count_patches.judge(lambda *_: None)


def test_an_attempt_cannot_change_the_question():
    def vandal(image, patch):
        image.zero_()
        return patchify.cut_image.reference(image, patch)

    assert patchify.cut_image.judge(vandal).startswith("✗")
    assert patchify.cut_image.judge(patchify.cut_image.reference).startswith("✓")


def _relabelled(factors):
    right = (factors["pitch"] + factors["shape"]) % 4
    factors["pitch"] = factors["pitch"].tolist()
    return right


def _painted(image, patch):
    right = patchify.cut_image.reference(image, patch)
    image[:, 0, 0] += 1
    return right


def _flattened(image, patch):
    right = patchify.cut_image.reference(image, patch)
    image.resize_(image.numel())
    return right


def _sorted(kinds):
    right = zorro_mask.mask_from_kinds.reference(kinds)
    kinds.sort()
    return right


def _any(*arguments):
    right = zorro_mask.reach.reference(*arguments)
    arguments[0].fill_(True)
    return right


@pytest.mark.parametrize(
    ("exercise", "attempt", "argument"),
    [
        (patchify.cut_image, _painted, "image"),
        (patchify.cut_image, _flattened, "image"),
        (zorro_mask.mask_from_kinds, _sorted, "kinds"),
        (zorro_mask.reach, _any, "arguments"),
        (training.my_label, _relabelled, "factors"),
    ],
)
def test_a_right_answer_that_changes_its_argument_is_refused(exercise, attempt, argument):
    assert exercise.judge(attempt) == (
        f"✗ {exercise.name}: it changes its argument {argument}, which the caller may still need; "
        "work on a copy."
    )


def test_a_changed_argument_is_no_excuse_for_a_wrong_answer():
    def attempt(reads, layers):
        return reads.fill_diagonal_(True)

    assert "it shows one layer, however many" in zorro_mask.reach.judge(attempt)


def test_numbers_of_a_puzzle_are_compared_not_looked_up():
    judge = mask_gallery.head_hunt.judge
    assert judge(lambda: dict(zip("ABC", torch.tensor([0, 5, 4]), strict=True))).startswith("✓")
    assert "head A is not 2: head 2 looks" in judge(lambda: {"A": torch.tensor(2), "B": 5, "C": 4})
    assert "A is [0], wanted one of 0, 1" in judge(lambda: {"A": [0], "B": 5, "C": 4})


@pytest.mark.parametrize(
    "right",
    [
        lambda draws: draws.numpy()[::-1],
        lambda draws: draws.to(torch.float16).numpy()[::-1],
        lambda draws: draws.flip(0).to(torch.int8).numpy(),
    ],
)
def test_numpy_is_as_right(right):
    numbers = torch.arange(6.0)
    assert difference(right(numbers), numbers.flip(0)) is None
    assert "at [0] gives 0, wanted 1" in difference(right(numbers)[::-1], numbers + 1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.array(["one", "two"]), "returned ndarray, wanted a tensor"),
        (np.array([1, 0]), "holds torch.int64, wanted torch.bool"),
        (np.array([True, False, True]), r"has shape (3,), wanted (2,)"),
        (np.bool_(True), "has shape (), wanted (2,)"),
    ],
)
def test_numpy_is_as_wrong(wrong, words):
    assert words in difference(wrong, torch.tensor([True, False]))


def test_a_way_does_not_lead_through_the_group_itself():
    groups = ("audio", "video", "touch", "sight and sound", "fusion")
    rules = {name: [name] for name in groups[:3]}
    rules |= {"sight and sound": ["audio", "video", "sight and sound", "fusion"], "fusion": "all"}
    said = zorro_mask.third_modality.judge(lambda: Visibility(rules))
    assert "'sight and sound' gets 'touch' in a later layer, by way of 'fusion'" in said


def test_an_unnamed_error_shows_the_first_difference():
    said = patchify.cut_image.judge(lambda image, patch: patchify._cut_by_loops(image, patch) + 1)
    assert "at [0, 0] gives 1, wanted 0" in said


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([1], "returned list, wanted a tensor"),
        (torch.zeros(3), r"has shape \(3,\), wanted \(2,\)"),
        (torch.zeros(2, dtype=torch.bool), "holds torch.bool, wanted torch.float32"),
        (torch.tensor([0.0, torch.nan]), r"at \[1\] gives nan, wanted 1"),
    ],
)
def test_difference_names_what_differs(answer, words):
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(difference(answer, torch.tensor([0.0, 1.0])))


def test_several_results_are_named():
    def attempt(*changed):
        right = reversible._backward()
        return lambda *case: (*(right(*case) if not changed else changed[0](*right(*case))),)

    judge = reversible.coupling_backward.judge
    assert judge(attempt()).startswith("✓")
    for change, words in (
        (lambda x1, a, b, c: (x1, a, b), "must return 4 tensors: x1, dx1, dx2, dweight"),
        (lambda x1, a, b, c: (x1, a, b + 1, c), "is wrong in dx2, which at [0, 0] gives"),
        (lambda x1, a, b, c: (x1 + 0 * c.clone().requires_grad_(), a, b, c), "use .detach()"),
        (lambda x1, a, b, c: (x1, a, b, None), "is wrong in dweight, which returned NoneType"),
    ):
        said = judge(attempt(change))
        assert said.startswith("✗")
        assert words in said
        assert "tensor([" not in said


def _by_backward(f, weight, y1, x2, dy1, dy2):
    x2 = x2.clone().requires_grad_()
    weight.grad = None
    out = f(x2, weight)
    out.backward(dy1)
    return [(y1 - out).detach(), dy1, x2.grad.add_(dy2), weight.grad]


def _by_the_whole_graph(f, weight, y1, x2, dy1, dy2):
    with torch.no_grad():
        x1 = y1 - f(x2, weight)
    leaves = [x1.requires_grad_(), x2.requires_grad_(), weight]
    grads = torch.autograd.grad((leaves[0] + f(x2, weight), 1 * x2), leaves, (dy1, dy2))
    return x1.detach(), *grads


def _other_halves(change):
    return lambda: change(*reversible.some_outputs()[1])


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("uncouple", lambda y1, y2, f, g: [y1 - f(y2 - g(y1)), y2 - g(y1)]),
        ("uncouple", lambda y1, y2, f, g: torch.tensor([y1 - f(y2 - g(y1)), y2 - g(y1)])),
        ("coupling_backward", _by_backward),
        ("coupling_backward", _by_the_whole_graph),
        ("secret_frame", lambda: ["b", "73"]),
        ("secret_frame", lambda: ("B", torch.tensor(73.0))),
        ("two_pasts", _other_halves(lambda a, b, c, d: [a.double() + 1, b.double() - 1, c, d])),
        ("two_pasts", _other_halves(lambda a, b, c, d: (a + 900, b - 900, d, c))),
        ("two_pasts", _other_halves(lambda a, b, c, d: tuple(t.numpy() for t in (b, a, d, c)))),
        ("find_the_bugs", lambda: dict(zip("DCBA", (1, 5, 3, 2), strict=True))),
        (
            "one_way_block",
            lambda: [["m1", "m2"], ["m2", "m1"], ["x1", ["x2", "m2"]], ["x2", ["x1"]]],
        ),
        (
            "one_way_block",
            lambda: [("x1", ("x2", "m1", "m2")), ("x2", "m1"), ("m1", "m2"), ("m2", "m1")],
        ),
    ],
)
def test_other_right_solutions_pass_too(name, right):
    assert getattr(reversible, name).judge(right) == f"✓ {name}: right."


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        (training.best_guess, lambda joint: joint.max(dim=1).values.sum()),
        (training.best_guess, lambda joint: sum(max(row) for row in joint.tolist())),
        (training.least_loss, lambda joint: torch.special.entr(joint).sum() - _entropies(joint)),
        (training.whose_table, lambda: dict(zip("DCBA", (2, 4, 1, 3), strict=True))),
        (training.my_label, lambda f: (f["tone"] + f["shape"]) % 2),
        (training.my_label, lambda f: f["pitch"] // 2 != f["shape"] % 2),
        (training.my_label, lambda f: 4 * ((f["pitch"] - f["shape"]) % 4) + 0.0),
        (training.my_label, lambda f: ((f["pitch"] + f["shape"]) % 4).tolist()),
        (fusion.keep_modalities, lambda draws, p: [draws > p / 2, draws < 1 - p / 2]),
        (fusion.contrast, lambda a, b, t: _contrast_in_doubles(a.double(), b.double(), t)),
        (
            fusion.loss_floor,
            lambda i: torch.tensor([[a == b for a in i] for b in i]).sum(1).log().mean(),
        ),
        (fusion.which_cheats, lambda: dict(zip("DCBA", (1, 4, 3, 2), strict=True))),
        (fusion.break_even, lambda encode, fuse: torch.tensor(2 * encode / fuse).floor() + 1),
    ],
)
def test_other_right_solutions_of_chapters_06_and_07_pass_too(exercise, right):
    assert exercise.judge(right) == f"✓ {exercise.name}: right."


def _entropies(joint):
    return torch.special.entr(joint.sum(1)).sum()


def _contrast_in_doubles(first, second, temperature):
    scores = (first @ second.T / temperature).exp()
    own = scores.diagonal()
    return -((own / scores.sum(0)).log() + (own / scores.sum(1)).log()).mean() / 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda f: f["tone"][:5], "returned shape (5,), wanted one class for each clip"),
        (lambda f: f["tone"] - 1, "whole numbers, 0 or more"),
        (lambda f: f["tone"] / 2, "whole numbers, 0 or more"),
        # The best guess is the same for a listener and for someone who knows nothing.
        (
            lambda f: f["tone"] & f["motion"],
            "class 0 comes in 75% of all clips, but in 100% of those that sound as",
        ),
    ],
)
def test_a_label_that_is_none_gets_true_words(answer, words):
    assert words in training.my_label.judge(answer)


def test_a_right_label_is_shown_on_the_trained_model(capsys):
    training.show_label(lambda f: (f["tone"] + f["shape"]) % 2, trained_zorro()[0])
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert found["who"] == 0.5
    assert found["audio"] < 0.56
    assert found["video"] < 0.56
    assert found["fusion"] > 0.9


def test_a_label_that_is_not_right_is_not_shown(capsys):
    training.show_label(lambda f: f["tone"], None)
    assert capsys.readouterr().out.startswith("✗ my_label")


def test_the_floor_is_the_loss_of_the_best_critic():
    world = World(64, seed=3)
    rows = torch.arange(64)
    plain = fusion.loss_floor.reference(tuple(world.factors["instrument"].tolist()))
    assert fusion.floor_of(world, rows, instruments_only=True) == pytest.approx(plain)
    assert plain - 0.4 < fusion.floor_of(world, rows) < plain
    # Any other scores give a higher loss, on average over many batches.
    worlds = World(64 * 200, seed=4)
    floors, others = [], []
    for rows in torch.arange(len(worlds)).split(64):
        floors.append(fusion.floor_of(worlds, rows))
        others.append(fusion.floor_of(worlds, rows, instruments_only=True))
    assert sum(floors) < sum(others)


def test_a_bet_is_scored_by_squares():
    right = torch.tensor([[100, 30], [100, 100]])
    scores = Scores(("audio", "fusion"), ("pitch", "shape"), right, torch.full((2, 2), 100))
    bets = {"pitch": (100, 50), "shape": (0, 80)}
    found = training.bet_score(bets, scores, ("audio", "fusion"))
    assert found == pytest.approx((0 + 0.25 + 0 + 0.04) / 4)
    with pytest.raises(ValueError, match="bet on pitch: got 120; give a number from 0 to 100"):
        training.bet_score({"pitch": (120, 0)}, scores, ("audio", "fusion"))


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("secret_frame", lambda: ("B", (7, 3)), "Return the number as a whole number"),
        ("secret_frame", lambda: ("Z", 73), "the texts are 'A', 'B' and 'C'"),
        ("two_pasts", _other_halves(lambda a, b, c, d: (a + 1e-4, b - 1e-4, c, d)), "nearly so"),
        ("find_the_bugs", lambda: {"A": [2], "B": 3, "C": 5, "D": 1}, "find_the_bugs"),
        ("one_way_block", lambda: {"x1": ("x2", "m2")}, "wanted a list of pairs"),
        ("one_way_block", lambda: ["x1", "x2"], "wanted a list of pairs"),
        ("one_way_block", lambda: [(("x1", "x2"), ("m1", "m2"))], "wanted a list of pairs"),
        ("one_way_block", lambda: [("m2", ())], "m2 reads nothing"),
    ],
)
def test_odd_answers_get_true_words(name, wrong, words):
    said = getattr(reversible, name).judge(wrong)
    assert said.startswith("✗")
    assert words in said


def test_hints(capsys):
    start_here.count_patches.hint(2)
    assert capsys.readouterr().out.startswith("Hint 2 of 2: A row holds")
    with pytest.raises(ValueError, match=r"got 3; there are hint\(1\) and hint\(2\)"):
        start_here.count_patches.hint(3)


def test_mistakes_do_not_hide_a_right_answer():
    wrong = {"same as right": Mistake(lambda *a: start_here.count_patches.reference(*a), "no")}
    fields = {
        f: getattr(start_here.count_patches, f) for f in inspect.signature(Exercise).parameters
    }
    exercise = Exercise(**{**fields, "mistakes": wrong})
    assert exercise.judge(exercise.reference).startswith("✓")


def test_the_towers_of_the_notebook_do_not_drop_their_masks():
    sequence = reversible.towers(3, 8, types=BLOCK_TYPES).eval()
    video, audio, context = (torch.randn(1, n, 8) for n in (3, 4, 5))
    hidden = torch.tensor([[True, True, True, True, False]])
    before = sequence(video, audio, context=context, context_mask=hidden)
    context[:, 4] += 1
    torch.testing.assert_close(sequence(video, audio, context=context, context_mask=hidden), before)
    assert not torch.allclose(sequence(video, audio, context=context)[0], before[0])
    only_first = torch.tensor([[True, False, False, False]])
    shown = sequence(video, audio, context=context, audio_mask=only_first)[0]
    assert not torch.allclose(shown, sequence(video, audio, context=context)[0])


@pytest.fixture
def shown(monkeypatch):
    """What checks display, closed as it comes."""
    figures = []
    monkeypatch.setattr("IPython.display.display", figures.append)
    yield figures
    assert plt.get_fignums() == []


def titles(figure):
    return [ax.get_title() for ax in figure.axes]


@pytest.mark.parametrize(
    ("exercise", "name"),
    [
        (zorro_mask.mask_from_kinds, "transposed"),
        (zorro_mask.reach, "no residual"),
        (mask_gallery.lost_frames, "rows"),
    ],
    ids=name_of,
)
def test_a_wrong_mask_is_drawn_beside_the_wanted_one(exercise, name, shown, capsys):
    exercise.check(exercise.mistakes[name].function)
    assert "✗" in capsys.readouterr().out
    (figure,) = shown
    assert titles(figure) == ["yours", "wanted"]
    yours, wanted = (ax.images[0].get_array() for ax in figure.axes)
    assert yours.shape == wanted.shape
    assert (yours != wanted).any()


@pytest.mark.parametrize(
    "function", [lambda kinds: "?", lambda kinds: torch.ones(6, 6), lambda kinds: torch.eye(0) > 0]
)
def test_what_is_no_mask_is_not_drawn(function, shown):
    zorro_mask.mask_from_kinds.check(function)
    assert shown == []


def test_of_several_masks_a_wrong_one_is_drawn(shown):
    def slip(real):
        masks = solution(mask_gallery.lost_frames)(real)
        masks[0, 1, 0] = False  # the last mask is right
        return masks

    mask_gallery.lost_frames.check(slip)
    yours, wanted = (ax.images[0].get_array() for ax in shown[0].axes)
    assert (yours != wanted).any()


def test_a_mask_of_another_size_is_drawn_too(shown):
    zorro_mask.mask_from_kinds.check(lambda kinds: torch.ones(2, 3).bool())
    assert titles(shown[0]) == ["yours", "wanted"]


def test_golf_shows_the_best_only_to_who_has_found_it(shown):
    best = solution(mask_gallery.mask_golf)()
    more = best.clone()
    more[0, 1] = True
    mask_gallery.mask_golf.check(lambda: more)
    mask_gallery.mask_golf.check(lambda: best)
    assert [titles(figure) for figure in shown] == [
        ["yours: 19 cells", ""],
        ["yours: 18 cells", "the best known: 18 cells"],
    ]
