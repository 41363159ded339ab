"""The checks are fair: they let other right answers pass, and know how people go wrong.

A right answer is a function `<exercise>__<how>` in tests/right_answers/<chapter>.py.
"""

from importlib import import_module
from inspect import getmembers, isfunction
from pathlib import Path

import pytest
from test_course import EXERCISES, name_of

FOLDER = Path(__file__).parent / "right_answers"
CHAPTERS = {
    path.stem: import_module(f"right_answers.{path.stem}") for path in sorted(FOLDER.glob("[!_]*"))
}
ANSWERS = [
    (chapter, function)
    for chapter, module in CHAPTERS.items()
    for name, function in getmembers(module, isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
]

pytestmark = pytest.mark.usefixtures("no_shape_checks")


@pytest.mark.parametrize(
    ("chapter", "answer"),
    [pytest.param(*one, id=f"{one[0]}-{one[1].__name__}") for one in ANSWERS],
)
def test_right_answer_passes(chapter, answer):
    name, _, how = answer.__name__.partition("__")
    known = {(exercise.chapter, exercise.name): exercise for exercise in EXERCISES}
    assert how
    assert known[chapter, name].judge(answer) == f"✓ {name}: right."


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_exercise_has_two_other_right_answers(exercise):
    start = f"{exercise.name}__"
    right = [a for chapter, a in ANSWERS if chapter == exercise.chapter]
    assert sum(answer.__name__.startswith(start) for answer in right) >= 2


@pytest.mark.parametrize("exercise", EXERCISES, ids=name_of)
def test_exercise_tells_four_mistakes_apart(exercise):
    said = {exercise.judge(mistake.function) for mistake in exercise.mistakes.values()}
    assert len(said) >= 4
