"""How much memory a training step will need, without allocating it.

Fake tensors have shapes, dtypes and strides, and no numbers (`torch._subclasses.fake_tensor`). The
step runs on them as it would on real ones, so the `Ledger` finds the sizes that it would find.
"""

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from avlib.ledger import Ledger, tensors_in, watched
from avlib.memory import KINDS, MemoryUse, make_step, use_of

Inputs = Mapping[str, Any] | Sequence[Any]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def predict(
    model_fn: Callable[[], nn.Module],
    inputs: Inputs,
    *,
    device: str = "cpu",
    optimizer: MakeOptimizer | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    autocast: torch.dtype | None = None,
    training: bool = True,
) -> MemoryUse:
    """What `measure` would find for a step of this model, made and run on fake tensors.

    For CUDA, which need not be there, the step takes the paths that it takes there: fused
    attention (dropout in it costs nothing; float64 has none), fused dropout, CUDA's autocast, and
    optimizers over all parameters at once. Workspaces of kernels and the allocator's rounding are
    not predicted.

    Args:
        model_fn: makes the model, on the CPU. It and the model must not ask for numbers in
            tensors; a yes-or-no question about them is answered with no.
        inputs: keywords in a dictionary, or positional arguments in a sequence; of tensors only
            shape, dtype and device count, and those on "meta" cost nothing.
        device: "cpu" or "cuda".
        optimizer: parameters → optimizer, such as `torch.optim.AdamW`.
        loss, autocast: as in `make_step`.
        training: with False, a forward pass under `no_grad`.

    Raises:
        ValueError: another device, or the model asks for a number in a tensor.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(
            f"predict: device is {device!r}, there are 'cpu' and 'cuda'; name the kind"
        )
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy
        stack.enter_context(_FakeTensors(allow_non_fake_inputs=True))
        stack.enter_context(_Answers())
        if device == "cuda":
            stack.enter_context(_AsOnCuda())
        model = model_fn()
        given = tree_map_only(Tensor, _fake, inputs)
        maker = None
        if optimizer is not None:
            maker = optimizer(model.parameters())
            for group in maker.param_groups if device == "cuda" else ():
                if group.get("foreach") is None and not group.get("fused"):
                    group["foreach"] = True  # as torch chooses for CUDA parameters
        step = make_step(
            model, given, optimizer=maker, loss=loss, autocast=autocast, training=training
        )
        if maker is None:
            step()  # so that there are gradients to add to
        with watched(Ledger(settled=True), model, maker) as ledger:
            step()
    return use_of(ledger)


@dataclass(frozen=True)
class ByDepth:
    """The memory of a model at any depth, from predictions at two.

    Each layer adds the same, and before or after each layer of one phase a step holds more, or
    less, than at the layer before. So within a phase the most is held near its beginning or near
    its end, and there the bytes are linear in depth. A peak is the largest of these.

    Args:
        depths: the two.
        uses: what was predicted there, at the largest moment of each half of each phase.
    """

    depths: tuple[int, int]
    uses: tuple[MemoryUse, MemoryUse]

    def at(self, depth: int) -> MemoryUse:
        """The use at this depth, at the largest moment of each half of each phase.

        Raises:
            ValueError: a depth below the two.
        """
        if depth < self.depths[0]:
            raise ValueError(
                f"ByDepth.at: depth is {depth}, wanted {self.depths[0]} or more; use predict"
            )
        shallow, deep = self.uses
        steps, apart = depth - self.depths[0], self.depths[1] - self.depths[0]
        timeline = {
            kind: shallow.timeline[kind]
            + (deep.timeline[kind] - shallow.timeline[kind]) * steps // apart
            for kind in KINDS
        }
        return MemoryUse(timeline, shallow.phases, shallow.operations)

    def deepest(self, budget: float) -> int:
        """The largest depth that needs no more than `budget` bytes; 0 where the two need more.

        Raises:
            ValueError: the memory does not grow with depth.
        """
        if self.uses[1].peak <= self.uses[0].peak:
            raise ValueError(
                f"ByDepth.deepest: the peak does not grow from depth {self.depths[0]} to "
                f"{self.depths[1]}; there is no deepest"
            )
        fits = range(self.depths[0], self.depths[0] + int(budget) + 1)  # a byte or more a layer
        count = bisect_right(fits, budget, key=lambda depth: self.at(depth).peak)
        return self.depths[0] + count - 1 if count else 0


def predict_by_depth(
    model_fn: Callable[[int], nn.Module],
    inputs: Inputs,
    *,
    depths: tuple[int, int] = (4, 6),
    **settings: Any,
) -> ByDepth:
    """What `predict` finds at any depth, from what it finds at two.

    Args:
        model_fn: depth → model.
        inputs: as for `predict`.
        depths: of the two predictions. Where kinds of layers take turns, whole turns, such as
            (6, 12) for three kinds; then other whole turns are predicted too.
        settings: further keywords of `predict`.
    """
    shallow, deep = (
        _extremes(predict(partial(model_fn, depth), inputs, **settings)) for depth in depths
    )
    return ByDepth(depths, (shallow, deep))


def _extremes(use: MemoryUse) -> MemoryUse:
    """The use at the largest moment of each half of each phase."""
    moments = []
    for phase in dict.fromkeys(use.phases):
        own = torch.tensor([i for i, other in enumerate(use.phases) if other == phase])
        for half in own.tensor_split(2):
            if len(half):
                moments.append(int(half[use.total[half].argmax()]))
    return MemoryUse(
        {kind: values[moments] for kind, values in use.timeline.items()},
        tuple(use.phases[moment] for moment in moments),
        tuple(use.operations[moment] for moment in moments),
    )


def _fake(tensor: Tensor) -> Tensor:
    """A fake of the same shape, strides and dtype, on the CPU."""
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return fake.requires_grad_(tensor.requires_grad)


class _FakeTensors(FakeTensorMode):
    """Models copy layers; copies of fake tensors must belong to the same mode."""

    def __deepcopy__(self, memo: Any) -> "_FakeTensors":
        return self


class _Answers(TorchDispatchMode):
    """Answers what fake tensors cannot, and lets real tensors alone be computed with."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        tensors = tensors_in((args, kwargs))
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():  # such as states of random generators
                return func(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except DataDependentOutputException as error:
            if tensors[0].dtype == torch.bool:
                return False
            raise ValueError(
                f"predict: the model asks for a number in a tensor ({error}), and nothing is "
                "computed; give it as a plain number, or measure a small model"
            ) from error


# Functions that CUDA's autocast computes in float32 and the CPU's does not (documented in
# torch.amp): those met in transformers and their losses.
_FLOAT32 = {
    *("layer_norm", "group_norm", "norm", "normalize", "softmax", "log_softmax", "softplus"),
    *("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "kl_div"),
    *("cosine_similarity", "pow", "__pow__", "square", "exp", "log", "rsqrt", "reciprocal"),
    *("sum", "prod", "cumsum"),
}


class _AsOnCuda(TorchFunctionMode):
    """Where a step on the CPU keeps other tensors than on CUDA, compute as CUDA does."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if torch.is_autocast_enabled("cpu") and func.__name__ in _FLOAT32:
            args, kwargs = tree_map_only(Tensor, _float32, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, dropout_p: float = 0.0, **kwargs: Any
) -> Tensor:
    """CUDA's fused attention keeps no dropout mask; there is none for float64."""
    mask, _, *rest = (*args, None, None)[: max(2, len(args))]
    call = (query, key, value, kwargs.pop("attn_mask", mask), 0.0, *rest)
    if query.dtype != torch.float64:
        return F.scaled_dot_product_attention(*call, **kwargs)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*call, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """CUDA's dropout keeps a mask of booleans, the CPU's one of numbers."""
    if not training or p == 0:
        return input
    return torch.native_dropout(input, p, True)[0]


def _float32(tensor: Tensor) -> Tensor:
    return (
        tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
    )
