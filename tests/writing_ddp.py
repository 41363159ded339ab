"""Run by test_writing under torchrun: a twin decoder trained by two processes.

`torchrun --nproc_per_node 2 writing_ddp.py FILE` saves the weights that the first one ends with.
"""

import os
import sys

import torch
from test_writing import CLIPS, SHORT, TASK, world_twin

from avlib import train
from avlib.checkpoint import save_tensors

if __name__ == "__main__":
    torch.set_num_threads(1)
    model = world_twin().double()
    train(model, CLIPS, TASK, **SHORT)
    if os.environ["RANK"] == "0":
        save_tensors(sys.argv[1], model.state_dict(), {})
