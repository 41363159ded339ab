"""How an exercise is checked: the learner's function against a slow loop, and likely mistakes.

A wrong attempt is compared with named mistakes too: functions that are wrong in the ways in which
people really go wrong. The one that gives the learner's answers tells what to say.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import isclose, isnan
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mistake:
    """A wrong solution, and what to tell whoever wrote it."""

    function: Function
    says: str


@dataclass(frozen=True, repr=False)
class Exercise:
    """One exercise: what its function must do, how long it takes, what goes wrong.

    Args:
        chapter: the module of `avlib.course` that holds it.
        name: of the function that the learner writes.
        minutes: for a learner who meets it for the first time.
        difficulty: 1 (apply), 2 (combine) or 3 (invent).
        hints: two; the first points the way, the second almost gives it away.
        cases: arguments to try, one tuple for each call.
        reference: the right answer by a slow loop, for exercises that have one answer.
        returns: names of what it returns, where that is several tensors.
        verify: answer → None or what is wrong, for exercises that have many; called with
            whatever the learner's function returned.
        mistakes: wrong solutions by name.
        picture: answer → a figure to show below a right answer.
    """

    chapter: str
    name: str
    minutes: int
    difficulty: int
    hints: tuple[str, str]
    cases: Sequence[tuple[Any, ...]] = ((),)
    reference: Function | None = None
    returns: Sequence[str] = ()
    verify: Callable[[Any], str | None] | None = None
    mistakes: Mapping[str, Mistake] = field(default_factory=dict)
    picture: Callable[[Any], Any] | None = None

    def check(self, function: Function) -> None:
        """Print whether the function is right: ✓, ✗ with the likely mistake, or not attempted."""
        verdict = self.judge(function)
        print(verdict)
        if self.picture is not None and verdict.startswith("✓"):
            from IPython.display import display

            display(self.picture(function(*_copies(self.cases[0]))))

    def hint(self, number: int) -> None:
        """Print hint 1 or hint 2."""
        if number not in (1, 2):
            raise ValueError(f"hint: got {number!r}; there are hint(1) and hint(2)")
        print(f"Hint {number} of 2: {self.hints[number - 1]}")

    def judge(self, function: Function) -> str:
        """What `check` prints."""
        try:
            answers = [_outcome(function, case) for case in self.cases]
        except NotImplementedError:
            return (
                f"· {self.name}: not attempted yet ({self.minutes} minutes, {self._stars()}). "
                f"Stuck? {self.chapter}.{self.name}.hint(1)"
            )
        for case, answer in zip(self.cases, answers, strict=True):
            wrong = self._wrong(case, answer)
            if wrong:
                return f"✗ {self.name}: {self._likely(answers) or wrong}"
        return f"✓ {self.name}: right."

    def __repr__(self) -> str:
        return f"Exercise {self.chapter}.{self.name}: {self.minutes} minutes, {self._stars()}"

    def _stars(self) -> str:
        return "●" * self.difficulty + "○" * (3 - self.difficulty)

    def _wrong(self, case: tuple[Any, ...], answer: Any) -> str | None:
        if isinstance(answer, Exception):
            return f"{self._call(case)} stopped with {type(answer).__name__}: {answer}"
        if answer is None:
            return f"{self._call(case)} returned None. Does it end with return?"
        if self.verify is not None:
            try:
                return self.verify(answer)
            except Exception as error:  # an answer may be anything
                return f"{answer!r} cannot be checked ({type(error).__name__}: {error})"
        assert self.reference is not None
        found = difference(answer, self.reference(*_copies(case)), self.returns)
        return found and f"{self._call(case)} {found}"

    def _likely(self, answers: list[Any]) -> str | None:
        """The words of the mistake that gives just these answers; `verify` has words of its own."""
        for mistake in self.mistakes.values() if self.reference else ():
            theirs = [_outcome(mistake.function, case) for case in self.cases]
            pairs = zip(answers, theirs, strict=True)
            if all(difference(mine, other, self.returns) is None for mine, other in pairs):
                return mistake.says
        return None

    def _call(self, case: tuple[Any, ...]) -> str:
        return f"{self.name}({', '.join(map(_shown, case))})"


def difference(answer: Any, wanted: Any, names: Sequence[str] = ()) -> str | None:
    """How an answer differs from the wanted one, in words; None where they agree.

    With `names` both hold one tensor for each name.
    """
    if names and isinstance(wanted, tuple):
        if not isinstance(answer, (tuple, list)) or len(answer) != len(names):
            return f"must return {len(names)} tensors: {', '.join(names)}"
        for name, one, other in zip(names, answer, wanted, strict=False):
            if found := difference(one, other):
                return f"is wrong in {name}, which {found}"
        return None
    if isinstance(wanted, Tensor):
        if wanted.ndim == 0 and isinstance(answer, float):
            answer = torch.tensor(answer)
        if not isinstance(answer, Tensor):
            return f"returned {type(answer).__name__}, wanted a tensor (torch.tensor makes one)"
        if answer.shape != wanted.shape:
            return f"has shape {tuple(answer.shape)}, wanted {tuple(wanted.shape)}"
        if (answer.dtype == torch.bool) != (wanted.dtype == torch.bool):
            return f"holds {answer.dtype}, wanted {wanted.dtype}"
        if answer.requires_grad and not wanted.requires_grad:
            return "still holds on to the graph that it was computed in; use .detach()"
        apart = ~torch.isclose(answer.double(), wanted.double(), atol=1e-5)
        if apart.any():
            place = tuple(apart.nonzero()[0].tolist())
            got, right = answer[place].item(), wanted[place].item()
            where = f"at {list(place)} " if place else ""
            return f"{where}gives {got:.6g}, wanted {right:.6g}"
        return None
    if isinstance(wanted, Exception):
        same_error = type(answer) is type(wanted) and str(answer) == str(wanted)
        return None if same_error else f"gives {answer!r}, wanted {wanted!r}"
    if isinstance(wanted, float):
        try:
            number = float(answer)
            close = isclose(number, wanted, rel_tol=1e-4, abs_tol=1e-5)
            close = close or (isnan(number) and isnan(wanted))
            answer = float(f"{number:.6g}")
        except (TypeError, ValueError, RuntimeError):
            close = False
        return None if close else f"gives {answer!r:.60}, wanted {wanted:.6g}"
    if isinstance(wanted, tuple) and hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(wanted, tuple) and isinstance(answer, list):
        answer = tuple(answer)
    try:
        same = bool(answer == wanted)
    except Exception:  # a learner's answer may be anything, such as a tensor of several numbers
        same = False
    return None if same else f"gives {answer!r}, wanted {wanted!r}"


def matching(
    truth: Mapping[str, int], clues: Mapping[int, str], one: str
) -> Callable[[Any], str | None]:
    """A `verify` for puzzles that ask which number belongs to each letter.

    Args:
        truth: the number of each letter.
        clues: for each number, how to tell that it is not this letter's.
        one: what a letter stands for, such as "picture".
    """

    def verify(answer: Any) -> str | None:
        if not isinstance(answer, dict) or set(answer) != set(truth):
            return f"it returned {answer!r}, wanted a dictionary with {', '.join(truth)} as keys."
        for letter, number in truth.items():
            if answer[letter] not in clues:
                numbers = ", ".join(map(str, clues))
                return f"{letter} is {answer[letter]!r}, wanted one of {numbers}."
            if answer[letter] != number:
                return f"{one} {letter} is not {answer[letter]}: {clues[answer[letter]]}"
        return None

    return verify


def _outcome(function: Function, case: tuple[Any, ...]) -> Any:
    """What the function returns, or the error that stopped it."""
    try:
        return function(*_copies(case))
    except Exception as error:
        if isinstance(error, NotImplementedError) and not error.args:
            raise  # the untouched stub; torch's own NotImplementedErrors carry a message
        return error


def _copies(case: tuple[Any, ...]) -> tuple[Any, ...]:
    return deepcopy(case)  # whatever the learner does to the question, the next one is asked it


def _shown(value: Any) -> str:
    if isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values()):
        return f"<{', '.join(value)}>"
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() > 36 or (value.is_floating_point() and (value != value.round()).any()):
        return f"<tensor {tuple(value.shape)}>"
    return str((value.int() if value.dtype == torch.bool else value).tolist())
