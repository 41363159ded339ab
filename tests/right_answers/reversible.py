"""Other right answers to the exercises of notebook 03."""

from types import SimpleNamespace

import numpy as np
import torch

import avlib
from avlib.course import reversible


def uncouple__search(y1, y2, f, g):
    for x2 in range(-100, 100):
        x1 = y1 - f(x2)
        if x2 + g(x1 + f(x2)) == y2:
            return x1, x2
    raise ValueError("not found")


def uncouple__steps_in_reverse(y1, y2, f, g):
    numbers = {"a": y1, "b": y2}
    steps = [("a", "b", f), ("b", "a", g)]
    for target, read, function in reversed(steps):
        numbers[target] -= function(numbers[read])
    return list(numbers.values())


def uncouple__numpy(y1, y2, f, g):
    halves = np.array([y1, y2])
    halves[1] -= g(halves[0])
    halves[0] -= f(halves[1])
    return halves


def uncouple__avlib(y1, y2, f, g):
    block = [avlib.Coupling("a", "b", f), avlib.Coupling("b", "a", g)]
    ends = {"a": torch.tensor(float(y1)), "b": torch.tensor(float(y2))}
    before = avlib.ReversibleSequence([block]).inverse(ends)
    return before["a"], before["b"]


def coupling_backward__vjp(f, weight, y1, x2, dy1, dy2):
    added, pull = torch.func.vjp(f, x2, weight.detach())
    through, dweight = pull(dy1)
    return y1 - added, dy1, dy2 + through, dweight


def coupling_backward__jacobian(f, weight, y1, x2, dy1, dy2):
    by_x2, by_weight = torch.autograd.functional.jacobian(f, (x2, weight))
    through = torch.einsum("ij, ijkl -> kl", dy1, by_x2)
    with torch.no_grad():
        return (
            y1 - f(x2, weight),
            dy1,
            through + dy2,
            torch.einsum("ij, ijkl -> kl", dy1, by_weight),
        )


def coupling_backward__one_loss(f, weight, y1, x2, dy1, dy2):
    leaves = SimpleNamespace(x2=x2.clone().requires_grad_(), weight=weight.detach().clone())
    leaves.weight.requires_grad_()
    added = f(leaves.x2, leaves.weight)
    ((added * dy1).sum() + (leaves.x2 * dy2).sum()).backward()
    return [y1 - added.detach(), dy1.clone(), leaves.x2.grad, leaves.weight.grad]


def coupling_backward__marks_the_argument(f, weight, y1, x2, dy1, dy2):
    # x2 itself is made to need a gradient, and the gradients are left in .grad.
    x2.requires_grad_()
    added = f(x2, weight)
    added.backward(dy1)
    return (y1 - added).detach(), dy1, dy2 + x2.grad, weight.grad


def coupling_backward__small_steps(f, weight, y1, x2, dy1, dy2):
    weight, x2, step = weight.detach().double(), x2.double(), 1e-5

    def slopes(of, at):
        found = torch.zeros_like(at)
        for place in np.ndindex(*at.shape):
            shift = torch.zeros_like(at)
            shift[place] = step
            found[place] = ((of(at + shift) - of(at - shift)) * dy1).sum() / (2 * step)
        return found

    through = slopes(lambda x: f(x, weight), x2)
    return y1 - f(x2, weight), dy1, through + dy2, slopes(lambda w: f(x2, w), weight)


def secret_frame__smoothest_picture():
    sequence, halves, texts = reversible.secret()
    with torch.no_grad():
        pasts = {name: sequence.inverse(*halves, context=text) for name, text in texts.items()}
    return min(pasts, key=lambda name: pasts[name][0].var()), 73  # the number is read by eye


def secret_frame__compare_with_digits():
    sequence, halves, texts = reversible.secret()
    best = []
    for name, text in texts.items():
        with torch.no_grad():
            x1 = sequence.inverse(*halves, context=text)[0]
        picture = avlib.unpatchify_video(x1, (1, 4, 4), (1, 4, 4))[0, :, 0]
        best += [
            (float((picture - reversible._frame(n)).abs().mean()), name, n)
            for n in (33, 37, 73, 77)
        ]
    _, name, number = min(best)
    return [name.lower(), np.int64(number)]


def two_pasts__equal_halves():
    _, (h1, h2, s1, s2) = reversible.some_outputs()
    video, audio = (h1 + h2) / 2, (s1 + s2) / 2
    return video, video, audio, audio


def two_pasts__all_in_one_half():
    _, (h1, h2, s1, s2) = reversible.some_outputs()
    return h1 + h2, torch.zeros_like(h2), torch.zeros_like(s1), s1 + s2


def two_pasts__one_number_of_the_sound():
    _, (h1, h2, s1, s2) = reversible.some_outputs()
    s1[0, 0, 0] += 0.5
    s2[0, 0, 0] -= 0.5
    return h1, h2, s1, s2


def two_pasts__numpy_noise():
    _, halves = reversible.some_outputs()
    h1, h2, s1, s2 = (half.numpy().astype(np.float64) for half in halves)
    noise = np.random.default_rng(0).normal(scale=1000, size=h1.shape)
    return [h1 + noise, h2 - noise, s2, s1]


def find_the_bugs__from_the_reports():
    found = {}
    for engine, report in reversible.bug_reports().items():
        if report["gradient of f"] and report["gradient of g"]:
            found[engine] = 5 if report["with dropout"] else 2
        elif report["inputs"]:
            found[engine] = 4
        else:
            found[engine] = 3 if report["gradient of g"] else 1
    return found


def find_the_bugs__numpy():
    return dict(zip("DCBA", np.array([1, 5, 3, 2]), strict=True))


def find_the_bugs__inverted():
    engine_of = {1: "D", 2: "A", 3: "B", 5: "C"}
    return {engine: bug for bug, engine in engine_of.items()}


def one_way_block__sound_first():
    return [("m1", "m2"), ("m2", "m1"), ("x1", "m1"), ("x2", "x1")]


def one_way_block__both_read_sound():
    return [["x1", ["x2", "m1", "m2"]], ["x2", ["x1", "m2"]], ["m2", ["m1"]], ["m1", ["m2"]]]


def one_way_block__sets():
    return (("x2", {"m2", "x1"}), ("x1", frozenset({"x2"})), ("m1", {"m2"}), ("m2", {"m1"}))


def one_way_block__six_pairs():
    towers = [(f"{tower}{i}", f"{tower}{3 - i}") for tower in "mx" for i in (1, 2)]
    return [("x1", "m1"), ("x2", "m2"), *towers]


def one_way_block__zip():
    return zip(["m1", "m2", "x1", "x2"], ["m2", "m1", ("m1", "x2"), {"x1": "a key"}], strict=True)


def one_way_block__sound_by_way_of_the_other_half():
    # m2 reads m1, x2 reads m2, and x1 reads x2 alone.
    return [("m2", "m1"), ("x2", "m2"), ("m1", "m2"), ("x1", "x2")]
