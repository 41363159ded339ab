"""Other right answers to the exercises of notebook 04."""

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from avlib.course import memory
from avlib.course.planner import OPTIMIZERS, PRECISIONS, WAYS


def weight_bytes__one_case_after_the_other(parameters, optimizer):
    total = parameters * 4
    total += parameters * 4
    if "momentum" in optimizer:
        total += parameters * 4
    elif optimizer.startswith("Adam"):
        total += parameters * 4 + parameters * 4
    return total


def weight_bytes__real_optimizer(parameters, optimizer):
    weights = nn.Parameter(torch.zeros(parameters))
    make = {
        "SGD": torch.optim.SGD,
        "SGD with momentum": partial(torch.optim.SGD, momentum=0.9),
        "AdamW": torch.optim.AdamW,
    }[optimizer]([weights], lr=0.1)
    weights.sum().backward()
    make.step()
    remembered = [t for t in make.state[weights].values() if t is not None and t.ndim]
    return sum(t.nbytes for t in (weights, weights.grad, *remembered))


def weight_bytes__numpy(parameters, optimizer):
    copies = 2 + ["SGD", "SGD with momentum", "AdamW"].index(optimizer)
    return np.empty((copies, parameters), dtype=np.float32).nbytes


def weight_bytes__float(parameters, optimizer):
    bits = 32.0 * np.array([1, 1, optimizer != "SGD", optimizer == "AdamW"])
    return bits.sum() / 8 * parameters


def kept_by_layer__list_of_widths(tokens, dim):
    return torch.tensor([dim] * 8 + [4 * dim] * 2).sum() * tokens


def kept_by_layer__line_by_line(tokens, dim):
    numbers = 0
    numbers += 2 * tokens * dim  # norm_1: its input, and normed for the three linear layers
    numbers += 3 * tokens * dim  # q, k, v
    numbers += tokens * dim  # read
    numbers += 2 * tokens * dim  # norm_2, and what `up` reads
    numbers += 2 * tokens * (4 * dim)  # what GELU reads and gives
    return float(numbers)


def kept_by_layer__numpy(tokens, dim):
    stream = np.prod([tokens, dim])
    return np.repeat([stream, 4 * stream], [8, 2]).sum()


def kept_by_layer__measured(tokens, dim):
    heads = max(1, dim // 64)
    query, key, value, out = (nn.Linear(dim, dim) for _ in range(4))
    up, down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
    norm_1, norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
    layer = nn.ModuleList([query, key, value, out, up, down, norm_1, norm_2])
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.numel() >= tokens * dim:  # leaves out what the norms and attention keep besides
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    stream = torch.randn(1, tokens, dim, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        normed = norm_1(stream)
        q, k, v = (f(normed).unflatten(2, (heads, -1)).transpose(1, 2) for f in (query, key, value))
        after = stream + out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        after = after + down(F.gelu(up(norm_2(after))))
    return sum(tensor.numel() for place, tensor in kept.items() if place not in weights)


def best_segment__loop(depth, stream, layer):
    best, least = None, math.inf
    length = depth
    while length:
        segments = depth // length + (depth % length > 0)
        if (peak := segments * stream + length * layer) < least:
            best, least = length, peak
        length -= 1
    return best


def best_segment__numpy(depth, stream, layer):
    lengths = np.arange(1, depth + 1)
    return lengths[(np.ceil(depth / lengths) * stream + lengths * layer).argmin()]


def best_segment__torch(depth, stream, layer):
    lengths = torch.arange(1.0, depth + 1)
    return ((depth / lengths).ceil() * stream + lengths * layer).argmin() + 1


def best_segment__by_number_of_segments(depth, stream, layer):
    # With so many segments the shortest length that is enough has the lowest peak.
    def peak(segments):
        return segments * stream + math.ceil(depth / segments) * layer

    return math.ceil(depth / min(range(1, depth + 1), key=peak))


def whose_timeline__from_the_timelines():
    found = {}
    for letter, use in memory.four_timelines().items():
        grown = {name: int(bytes_[-1] - bytes_[1]) for name, bytes_ in use.timeline.items()}
        if "backward" not in use.phases:
            found[letter] = 4 if grown["temporaries"] > 1_000_000 else 5
        elif grown["activations"] > 1_000_000:
            found[letter] = 3
        else:
            in_forward = (n for n, phase in enumerate(use.phases) if phase == "forward")
            found[letter] = 2 if all(use.timeline["gradients"][n] for n in in_forward) else 1
    return found


def whose_timeline__numpy():
    return dict(zip("DBCA", np.array([1, 2, 4, 3], dtype=np.int8), strict=True))


def whose_timeline__written_one_by_one():
    answer = dict.fromkeys("ABCD")
    answer["C"] = 4
    answer["A"] = answer["C"] - 1
    answer.update(D=1, B=2)
    return answer


def spend__one_choice_at_a_time():
    best = {"way": "ordinary", "precision": "bfloat16", "optimizer": "SGD"}
    for name, known in (("way", WAYS), ("precision", PRECISIONS), ("optimizer", OPTIMIZERS)):
        tried = [{**best, name: other} for other in known]
        best = max(tried, key=lambda choice: memory.for_budget(**choice).deepest(8e9))
    return {"depth": memory.for_budget(**best).deepest(8e9), **best}


def spend__numpy_depth():
    by_depth = memory.for_budget("reversible", "bfloat16", "SGD")
    depths = np.arange(4, 400)
    fits = np.array([by_depth.at(int(depth)).peak <= 8e9 for depth in depths])
    return dict(depth=depths[fits].max(), optimizer="SGD", precision="bfloat16", way="reversible")


def spend__line_through_two_depths():
    by_depth = memory.for_budget("reversible", "bfloat16", "SGD")
    low, high = (by_depth.at(depth).peak for depth in (100, 200))
    depth = 100 + (8e9 - low) // ((high - low) / 100)
    return {"way": "reversible", "precision": "bfloat16", "optimizer": "SGD", "depth": depth}
