"""Every exercise: its solution passes, each named mistake is met with its own words."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

from avlib.course import (
    fusion,
    mask_gallery,
    memory,
    patchify,
    reversible,
    start_here,
    training,
    zorro_mask,
)
from avlib.course.exercise import Exercise, Mistake, difference
from avlib.evaluation import Scores
from avlib.reversible import BLOCK_TYPES
from avlib.trained import trained_zorro
from avlib.world import World

SOLUTIONS = Path(__file__).parents[1] / "notebooks" / "solutions"
EXERCISES = [
    value
    for chapter in (
        start_here,
        patchify,
        zorro_mask,
        mask_gallery,
        reversible,
        memory,
        training,
        fusion,
    )
    for value in vars(chapter).values()
    if isinstance(value, Exercise)
]
MISTAKES = [(exercise, name) for exercise in EXERCISES for name in exercise.mistakes]

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
        "ZeroDivisionError: integer division or modulo by zero"
    )


def test_a_forgotten_return_is_named():
    assert "Does it end with return?" in start_here.count_patches.judge(lambda *_: None)


def test_an_attempt_cannot_change_the_question():
    def vandal(image, patch):
        image.zero_()
        return patchify.cut_image.reference(image, patch)

    assert patchify.cut_image.judge(vandal).startswith("✗")
    assert patchify.cut_image.judge(patchify.cut_image.reference).startswith("✓")


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
