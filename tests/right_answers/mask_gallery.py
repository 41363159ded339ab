"""Notebook 05, solved in other ways."""

import math
from functools import partial

import numpy as np
import torch

from avlib import gallery
from avlib.reach import Reach
from avlib.token_masks import Mask


def last_four__distance():
    def mask(b, h, q_idx, kv_idx):
        distance = q_idx - kv_idx
        return (distance >= 0) & (distance < 4)

    return mask


def last_four__middle():
    return lambda b, h, q, k: (2 * (q - k) - 3).abs() <= 3


def last_four__one_by_one():
    return lambda b, h, q, k: (k == q) | (k == q - 1) | (k == q - 2) | (k == q - 3)


def last_four__logical_and():
    return lambda *i: torch.logical_and(i[3].le(i[2]), i[3].gt(i[2] - 4))


def last_four__product():
    return lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) * (q_idx <= kv_idx + 3)


def last_four__not_outside():
    return lambda b, h, q_idx, kv_idx: ~((kv_idx > q_idx) | (kv_idx < q_idx - 3))


def last_four__clamp():
    return lambda b, h, q_idx, kv_idx: kv_idx.clamp(q_idx - 3, q_idx) == kv_idx


def last_four__table():
    away = torch.arange(100)[:, None] - torch.arange(100)
    table = (away >= 0) & (away <= 3)
    return lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx]


def last_four__partial():
    def window(before, b, h, q_idx, kv_idx):
        return (kv_idx >= q_idx - before) & (kv_idx <= q_idx)

    return partial(window, 3)


def last_four__from_the_gallery():
    return gallery.sliding_window(8, 3, 0)


def last_four__combined_masks():
    return gallery.causal(20) & Mask(lambda b, h, q, k: q - k <= 3, 20)


def layers_needed__rounds_up(tokens, before):
    return -(-(tokens - 1) // before)


def layers_needed__loop(tokens, before):
    layers, place = 0, tokens - 1
    while place > 0:
        place -= before
        layers += 1
    return layers


def layers_needed__recursion(tokens, before):
    return 0 if tokens <= 1 else 1 + layers_needed__recursion(tokens - before, before)


def layers_needed__numpy(tokens, before):
    return np.ceil((tokens - 1) / before)


def layers_needed__torch(tokens, before):
    return torch.tensor((tokens - 1) / before).ceil()


def layers_needed__range(tokens, before):
    return len(range(0, tokens - 1, before))


def layers_needed__added_first(tokens, before):
    return math.floor((tokens + before - 2) / before)


def layers_needed__with_the_library(tokens, before):
    return int(Reach(gallery.sliding_window(tokens, before, 0).dense()).first(99)[-1, 0])


def lost_frames__loops(real):
    batch, n = real.shape
    masks = torch.zeros(batch, n, n, dtype=torch.bool)
    for b in range(batch):
        for reader in range(n):
            masks[b, reader, : reader + 1] = real[b, : reader + 1]
    return masks


def lost_frames__tril(real):
    return real[:, None].repeat(1, real.shape[1], 1).tril()


def lost_frames__comparison(real):
    time = torch.arange(real.shape[1])
    return torch.logical_and(time <= time[:, None], real.unsqueeze(1))


def lost_frames__numpy(real):
    order = np.tri(real.shape[1], dtype=bool)
    return order[None] & real.numpy()[:, None, :]


def lost_frames__product(real):
    order = torch.ones(real.shape[1], real.shape[1]).tril()
    return torch.einsum("ij,bj->bij", order, real.float()) > 0


def lost_frames__where(real):
    n = real.shape[1]
    later = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
    return real[:, None, :].expand(-1, n, -1).masked_fill(later, False)


def lost_frames__from_the_gallery(real):
    mask = gallery.causal(real.shape[1]) & gallery.padding(real)
    return torch.stack([mask.dense(batch=clip) for clip in range(len(real))])


def name_the_masks__backwards():
    return dict(zip("EDCBA", (7, 2, 6, 4, 5), strict=True))


def name_the_masks__numpy():
    return dict(zip("ABCDE", np.array([5, 4, 6, 2, 7]), strict=True))


def name_the_masks__torch():
    return dict(zip("ABCDE", torch.tensor([5, 4, 6, 2, 7]), strict=True))


def head_hunt__backwards():
    return {"C": 4, "B": 5, "A": 0}


def head_hunt__from_weights():
    weights = torch.zeros(3, 8)
    weights[0, 0] = weights[1, 5] = weights[2, 4] = 1
    return dict(zip("ABC", weights.argmax(1), strict=True))


def head_hunt__numpy():
    return dict(zip("ABC", np.array([0.0, 5.0, 4.0]), strict=True))


def mask_golf__fusion_collects():
    mask = torch.eye(12, dtype=torch.bool)
    mask[8, :8] = True
    mask[8, 8] = False
    mask[9:] = False
    mask[9:, 8] = True
    return mask


def mask_golf__two_collectors():
    mask = np.zeros((12, 12), dtype=bool)
    mask[range(8), range(8)] = True
    mask[0, :4] = mask[7, 4:8] = True
    mask[0, 0] = mask[7, 7] = False
    mask[8:, [0, 7]] = True
    return mask


def mask_golf__audio_in_video_out():
    mask = torch.zeros(12, 12, dtype=torch.bool)
    for token, read in enumerate([1, 2, 3, 0, 5, 6, 7]):
        mask[token, read] = True
    mask[7, :7] = True
    mask[8:, 7] = True
    return mask


def mask_golf__as_a_mask():
    def rule(b, h, i, j):
        itself = (i == j) & (i < 8) & (i != 5)
        return itself | ((i == 5) & (j < 8) & (j != 5)) | ((i >= 8) & (j == 5))

    return Mask(rule, {"audio": 4, "video": 4, "fusion": 4})
