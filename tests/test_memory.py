"""Live bytes on the CPU, counted by hand beside."""

import torch
from torch import nn

from avlib.memory import peak_bytes

THOUSAND = 4000  # bytes of a thousand float32


def test_the_peak_is_what_was_alive_at_one_time():
    def step():
        one = torch.zeros(1000)
        two = one + 1
        del one
        three = two * 2  # two and three
        four = torch.cat([two, three])  # and four, twice as large
        del two, three
        return four.sum()

    assert peak_bytes(step) == 4 * THOUSAND


def test_views_are_free_and_what_was_there_before_is_not_counted():
    before = torch.zeros(1000)
    before_base = torch.zeros(2000)[:1000]
    assert peak_bytes(lambda: before.view(10, 100).t()[2:].detach()) == 0
    assert peak_bytes(lambda: before.add_(1).mul_(before_base)) == 0
    assert peak_bytes(lambda: before + 1) == THOUSAND


def test_what_autograd_keeps_is_counted_until_it_is_freed():
    weight = torch.ones(1000, requires_grad=True)
    weight.grad = torch.zeros(1000)

    def kept(layers):
        def step():
            stream = weight
            for _ in range(layers):
                stream = stream.exp()  # keeps its output
            return stream.sum()

        return peak_bytes(step) - 4

    assert kept(10) - kept(5) == 5 * THOUSAND


def test_the_count_is_the_same_each_time():
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    inputs = torch.randn(8, 64)
    model(inputs).sum().backward()
    counts = {peak_bytes(lambda: model(inputs).sum().backward()) for _ in range(3)}
    assert len(counts) == 1
    assert counts.pop() > 64 * 64 * 4  # one gradient at a time, on its way to `.grad`
