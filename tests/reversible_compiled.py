"""Run by test_reversible: each callable compiled, against ordinary autograd of the same."""

import torch
from towers import TYPES, gradients, make_blocks, make_inputs, worst

from avlib import DualModalityReversibleSequence


def main():
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # past it, eager code draws other random numbers
    torch.manual_seed(0)
    types, inputs = TYPES[1:2], make_inputs()
    blocks = make_blocks(types, dropout=0.2)
    eager = DualModalityReversibleSequence(blocks, types).double().eval()
    compiled = [tuple(torch.compile(fn) for fn in block) for block in blocks]
    compiled = DualModalityReversibleSequence(compiled, types).eval()

    wanted = gradients(eager, inputs, reverse=False)
    found = gradients(compiled, inputs, reverse=True)
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}
    assert worst(found, wanted) < 1e-12, worst(found, wanted)

    compiled.train()
    results = []
    for reverse in (False, True):
        torch.manual_seed(3)
        results.append(gradients(compiled, inputs, reverse=reverse))
    assert worst(results[1], results[0]) < 1e-12, worst(results[1], results[0])


if __name__ == "__main__":
    main()
