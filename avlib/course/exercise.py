"""How an exercise is checked: the learner's function against a slow loop, and likely mistakes.

A wrong attempt is compared with named mistakes too: functions that are wrong in the ways in which
people really go wrong. The one that gives the learner's answers tells what to say.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from inspect import signature, unwrap
from linecache import getline
from math import isclose, isnan
from traceback import walk_tb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avlib.course.progress import record

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
        """Print whether the function is right: ✓, ✗ with the likely mistake, or not attempted.

        A wrong mask is drawn beside the wanted one.
        """
        verdict, picture = self._judged(function)
        print(verdict)
        if not verdict.startswith("·"):
            record(self.chapter, self.name, verdict.startswith("✓"))
        if picture is not None:
            import matplotlib.pyplot as plt
            from IPython.display import display

            figure = picture()
            plt.close(figure)  # else a notebook shows it twice
            display(figure)

    def grade(self, function: Function) -> None:
        """The same for a grader: what is not right is an error.

        Raises:
            AssertionError: with what `check` prints.
        """
        verdict = self.judge(function)
        if not verdict.startswith("✓"):
            raise AssertionError(verdict)

    def hint(self, number: int) -> None:
        """Print hint 1 or hint 2."""
        if number not in (1, 2):
            raise ValueError(f"hint: got {number!r}; there are hint(1) and hint(2)")
        print(f"Hint {number} of 2: {self.hints[number - 1]}")

    def judge(self, function: Function) -> str:
        """What `check` prints."""
        return self._judged(function)[0]

    def _judged(self, function: Function) -> tuple[str, Callable[[], Any] | None]:
        """What to print, and what to draw below it."""
        handed = [_copies(case) for case in self.cases]
        try:
            answers = [_outcome(function, arguments) for arguments in handed]
        except NotImplementedError:
            said = (
                f"· {self.name}: not attempted yet ({self.minutes} minutes, {self._stars()}). "
                f"Stuck? {self.chapter}.{self.name}.hint(1)"
            )
            return said, None
        for case, answer in zip(self.cases, answers, strict=True):
            wrong = self._wrong(function, case, answer)
            if wrong:
                said = f"✗ {self.name}: {self._likely(answers) or wrong}"
                return said, self._beside(case, answer)
        for case, arguments in zip(self.cases, handed, strict=True):
            if changed := _changed(function, case, arguments):
                said = (
                    f"✗ {self.name}: it changes its argument {changed}, which the caller may "
                    "still need; work on a copy."
                )
                return said, None
        right = self.picture and partial(self.picture, answers[0])
        return f"✓ {self.name}: right.", right or None

    def _beside(self, case: tuple[Any, ...], answer: Any) -> Callable[[], Any] | None:
        """A picture of a wrong mask beside the wanted one; nothing for what is no mask."""
        if self.reference is None:
            return None
        masks = {"yours": as_tensor(answer), "wanted": self.reference(*_copies(case))}
        if not all(isinstance(m, Tensor) and m.dtype == torch.bool for m in masks.values()):
            return None
        if any(m.ndim not in (2, 3) or not 0 < m.numel() <= 4096 for m in masks.values()):
            return None
        return partial(_side_by_side, masks)

    def __repr__(self) -> str:
        return f"Exercise {self.chapter}.{self.name}: {self.minutes} minutes, {self._stars()}"

    def _stars(self) -> str:
        return "●" * self.difficulty + "○" * (3 - self.difficulty)

    def _wrong(self, function: Function, case: tuple[Any, ...], answer: Any) -> str | None:
        if isinstance(answer, Exception):
            said = f"{self._call(case)} stopped with {type(answer).__name__}: {answer}"
            return said + _your_line(function, answer)
        if answer is None:
            return f"{self._call(case)} returned None. Does it end with return?"
        if self.verify is not None:
            try:
                return self.verify(answer)
            except Exception as error:  # an answer may be anything
                said = f"{type(error).__name__}: {error}"
                if line := _your_line(function, error):  # it may also be a function
                    return f"what it returned stopped with {said}{line}"
                return f"{answer!r} cannot be checked ({said})"
        assert self.reference is not None
        found = difference(answer, self.reference(*_copies(case)), self.returns)
        return found and f"{self._call(case)} {found}"

    def _likely(self, answers: list[Any]) -> str | None:
        """The words of the mistake that gives just these answers; `verify` has words of its own."""
        for mistake in self.mistakes.values() if self.reference else ():
            theirs = [_outcome(mistake.function, _copies(case)) for case in self.cases]
            pairs = zip(answers, theirs, strict=True)
            if all(difference(mine, other, self.returns) is None for mine, other in pairs):
                return mistake.says
        return None

    def _call(self, case: tuple[Any, ...]) -> str:
        return f"{self.name}({', '.join(map(_shown, case))})"


def _side_by_side(masks: Mapping[str, Tensor]) -> Any:
    import matplotlib.pyplot as plt

    from avlib.plots import draw

    yours, wanted = masks.values()
    which = 0
    if yours.shape == wanted.shape:  # of several masks the first that is wrong
        which = int((yours.cpu() != wanted).flatten(1).any(1).int().argmax())
    figure, axes = plt.subplots(1, len(masks), figsize=(8.2, 3.9), layout="constrained")
    for ax, (name, mask) in zip(axes, masks.items(), strict=True):
        draw(mask[which] if mask.ndim == 3 else mask, title=name, ax=ax)
    return figure


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
        answer = as_tensor(answer)
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
        apart = ~torch.isclose(answer.cpu().double(), wanted.double(), atol=1e-5, equal_nan=True)
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


def as_tensor(answer: Any) -> Any:
    """NumPy's numbers as a tensor, since they are as right; any other answer as it is."""
    kinds = {"b": bool, "i": int, "u": int, "f": float}
    if not isinstance(answer, (np.ndarray, np.generic)) or answer.dtype.kind not in kinds:
        return answer
    return torch.from_numpy(np.array(answer, kinds[answer.dtype.kind]))


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
        if not isinstance(answer, Mapping) or set(answer) != set(truth):
            return f"it returned {answer!r}, wanted a dictionary with {', '.join(truth)} as keys."
        for letter, number in truth.items():
            # Compared, not looked up: a tensor may be a right number, and a list is no key.
            found = next((known for known in clues if answer[letter] == known), None)
            if found is None:
                numbers = ", ".join(map(str, clues))
                return f"{letter} is {answer[letter]!r}, wanted one of {numbers}."
            if found != number:
                return f"{one} {letter} is not {found}: {clues[found]}"
        return None

    return verify


def _outcome(function: Function, arguments: tuple[Any, ...]) -> Any:
    """What the function returns, or the error that stopped it."""
    try:
        return function(*arguments)
    except Exception as error:
        if isinstance(error, NotImplementedError) and not error.args:
            raise  # the untouched stub; torch's own NotImplementedErrors carry a message
        return error


def _copies(case: tuple[Any, ...]) -> tuple[Any, ...]:
    return deepcopy(case)  # whatever the learner does to the question, the next one is asked it


def _changed(function: Function, before: tuple[Any, ...], after: tuple[Any, ...]) -> str | None:
    """The name of the first argument that is not what it was before the call."""
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        if not _same(old, new):
            try:
                return list(signature(function).parameters)[place]
            except (ValueError, IndexError):  # one written in C, or one with *arguments
                return str(place + 1)
    return None


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _your_line(function: Function, error: Exception) -> str:
    """The last line of the learner's own file or cell on the way to an error, in words."""
    code = getattr(unwrap(function), "__code__", None)
    line = ""
    for frame, number in walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if code is not None and file == code.co_filename:
            line = getline(file, number, frame.f_globals).strip()
    return line and f", in your line: {line}"


def _shown(value: Any) -> str:
    if isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values()):
        return f"<{', '.join(value)}>"
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() > 36 or (value.is_floating_point() and (value != value.round()).any()):
        if value.ndim == 1 and value.numel() <= 6:
            return str([float(f"{number:.3g}") for number in value.tolist()])
        return f"<tensor {tuple(value.shape)}>"
    return str((value.int() if value.dtype == torch.bool else value).tolist())
