"""Run by test_reversible: DistributedDataParallel on two processes against one process."""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from towers import DIM, TYPES, loss_of, make_inputs, make_towers


class WithEncoder(nn.Module):
    """A text encoder in front of the towers, and with `spare` a layer that nothing uses."""

    def __init__(self, spare):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(DIM, DIM).double()
        self.towers = make_towers(TYPES * 2)
        if spare:
            self.spare = nn.Linear(DIM, DIM).double()

    def forward(self, context, **inputs):
        return self.towers(**inputs, context=self.encoder(context))


def loss(outputs):
    # a mean over samples, so that the mean over processes is that of the whole batch
    return sum(loss_of([out[i] for out in outputs]) for i in range(len(outputs[0]))) / len(
        outputs[0]
    )


def part(inputs, rank):
    return {name: tensor[rank : rank + 1] for name, tensor in inputs.items()}


def work(rank, mode, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model = WithEncoder(spare=mode == "find_unused_parameters")
    settings = {} if mode == "default" else {mode: True}
    parallel = DistributedDataParallel(model, **settings)
    inputs = make_inputs(grad=False)
    for _ in range(3):
        model.zero_grad()
        loss(parallel(**part(inputs, rank))).backward()
    found = {name: weight.grad for name, weight in model.named_parameters()}

    alone = WithEncoder(spare=False)
    torch.stack([loss(alone.forward(**part(inputs, r))) for r in (0, 1)]).mean().backward()
    for name, weight in alone.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-11, atol=1e-12)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (sys.argv[1], Path(folder)), nprocs=2)
