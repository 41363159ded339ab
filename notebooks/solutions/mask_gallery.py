"""Solutions to notebook 05. A teacher may delete this folder: nothing needs it but its tests."""

from math import ceil

import torch


def last_four():
    return lambda b, h, q_idx, kv_idx: (kv_idx >= q_idx - 3) & (kv_idx <= q_idx)


def layers_needed(tokens, before):
    return ceil((tokens - 1) / before)


def lost_frames(real):
    n = real.shape[1]
    order = torch.ones(n, n, dtype=torch.bool).tril()
    return order & real[:, None, :]


def name_the_masks():
    # A: three bands. B: a square, then a triangle. C: a full row and column. D: gaps beside the
    # diagonal. E: nothing right of the diagonal, and lines that come back.
    return {"A": 5, "B": 4, "C": 6, "D": 2, "E": 7}


def head_hunt():
    return {"A": 0, "B": 5, "C": 4}


def mask_golf():
    # Every row needs a cell, which makes 12. If a fusion token has no other, then what it reads
    # must hold all eight after one layer: a row of 7 for a token that is one of the eight. So 18.
    # If each has two, they are 4 more, and what they read together still needs 4 more.
    mask = torch.zeros(12, 12, dtype=torch.bool)
    for token in range(8):
        mask[token, token] = True
    mask[4, :8] = True  # the first video token collects all that is heard and seen
    mask[4, 4] = False  # the residual stream carries it
    mask[8:, 4] = True
    return mask
