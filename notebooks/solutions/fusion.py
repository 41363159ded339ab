"""Solutions to notebook 07. A teacher may delete this folder: nothing needs it but its tests."""

from math import log

import torch
import torch.nn.functional as F


def keep_modalities(draws, probability):
    return draws >= probability / 2, draws <= 1 - probability / 2


def contrast(first, second, temperature):
    scores = first @ second.T / temperature
    own = torch.arange(len(first))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def loss_floor(instruments):
    return sum(log(instruments.count(mine)) for mine in instruments) / len(instruments)


def which_cheats():
    # log(16) = 2.77 is where A begins. B falls below every floor. C is slow. D ends at its floor.
    return {"A": 2, "B": 3, "C": 4, "D": 1}


def break_even(encode, fuse):
    return int(2 * encode // fuse) + 1
