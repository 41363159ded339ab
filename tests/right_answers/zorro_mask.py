"""Notebook 02, solved in other ways."""

import numpy as np
import torch

from avlib import Visibility
from avlib.reach import Reach


def mask_from_kinds__loops(kinds):
    mask = torch.zeros(len(kinds), len(kinds), dtype=torch.bool)
    for i, reader in enumerate(kinds):
        for j, key in enumerate(kinds):
            if reader in (key, "fusion"):
                mask[i, j] = True
    return mask


def mask_from_kinds__codes(kinds):
    codes = torch.tensor([["audio", "video", "fusion"].index(kind) for kind in kinds])
    return (codes[:, None] == codes) | (codes[:, None] == 2)


def mask_from_kinds__numpy(kinds):
    words = np.array(kinds)
    return (words[:, None] == words) | (words[:, None] == "fusion")


def mask_from_kinds__rows(kinds):
    everything = torch.ones(len(kinds), dtype=torch.bool)
    rows = [
        everything if reader == "fusion" else torch.tensor([key == reader for key in kinds])
        for reader in kinds
    ]
    return torch.stack(rows)


def mask_from_kinds__one_hot(kinds):
    is_kind = torch.tensor(
        [[kind == word for word in ("audio", "video", "fusion")] for kind in kinds]
    )
    same = is_kind.float() @ is_kind.float().T > 0
    return torch.logical_or(same, is_kind[:, 2:])


def mask_from_kinds__table(kinds):
    table = Visibility({"audio": ["audio"], "video": ["video"], "fusion": "all"}).table()
    group = [["audio", "video", "fusion"].index(kind) for kind in kinds]
    return table[group][:, group]


def reach__matrix_power(reads, layers):
    layer = reads.double() + torch.eye(len(reads), dtype=torch.float64)
    return torch.linalg.matrix_power(layer, layers) != 0


def reach__numpy(reads, layers):
    layer = reads.numpy() | np.eye(len(reads), dtype=bool)
    return np.linalg.matrix_power(layer.astype(int), layers) > 0


def reach__copied_diagonal(reads, layers):
    reads = reads.clone().fill_diagonal_(True)
    held = torch.eye(len(reads), dtype=torch.bool)
    for _ in range(layers):
        held = (reads[:, :, None] & held[None]).any(1)
    return held


def reach__recursion(reads, layers):
    if layers == 0:
        return torch.eye(len(reads)).bool()
    before = reach__recursion(reads, layers - 1)
    return before | ((reads.int() @ before.int()) > 0)


def reach__sets(reads, layers):
    held = [{i} for i in range(len(reads))]
    for _ in range(layers):
        held = [
            held[i].union(*(held[j] for j in range(len(reads)) if reads[i, j]))
            for i in range(len(reads))
        ]
    return torch.tensor([[j in row for j in range(len(reads))] for row in held])


def reach__with_the_library(reads, layers):
    return Reach(reads).after(layers)


def find_the_slips__backwards():
    return dict(zip("EDCBA", [6, 4, 1, 5, 2], strict=True))


def find_the_slips__numpy():
    slips = np.array([2, 5, 1, 4, 6], dtype=np.int32)
    return {letter: slips[i] for i, letter in enumerate("ABCDE")}


def find_the_slips__torch():
    return {
        letter: slip.int()
        for letter, slip in zip("ABCDE", torch.tensor([2, 5, 1, 4, 6]), strict=True)
    }


def slow_bridge__without_reading_oneself():
    return Visibility({"video": "two", "two": "one", "one": "audio", "audio": "audio"})


def slow_bridge__the_other_way_in_one_step():
    rules = {"audio": ["audio", "video"], "video": ["video", "b"], "a": ["a", "audio"]}
    return Visibility({**rules, "b": ["a", "b"]})


def slow_bridge__by_way_of_fusion():
    return Visibility(
        {
            "audio": ["audio"],
            "gate": ["gate", "fusion"],
            "fusion": ["fusion", "audio", "video"],
            "video": ["video", "gate"],
            "text": "all",
        }
    )


def slow_bridge__chain_by_a_loop():
    names = ["audio", "first", "second", "video"]
    return Visibility({name: names[max(0, i - 1) : i + 1] for i, name in enumerate(names)})


def slow_bridge__two_ways():
    return Visibility(
        {
            "audio": ["audio"],
            "left": ["audio"],
            "right": ["audio", "left"],
            "down": ["left", "right"],
            "video": ["video", "down"],
        }
    )


def third_modality__by_way_of_others():
    return Visibility(
        {
            "touch": "touch",
            "sight and sound": ["audio", "video"],
            "fusion": ["touch", "sight and sound"],
            "video": "video",
            "audio": "audio",
        }
    )


def third_modality__by_a_loop():
    senses = ("audio", "video", "touch")
    rules = {name: [name] for name in senses}
    rules["sight and sound"] = {"audio", "video", "sight and sound"}
    rules["fusion"] = [*rules]
    return Visibility(rules)


def third_modality__fusion_without_itself():
    kinds = ["audio", "video", "touch", "sight and sound"]
    rules = {kind: [kind] for kind in kinds}
    rules["sight and sound"] += ["audio", "video"]
    return Visibility({**rules, "fusion": kinds})
