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
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from avlib.as_on_cuda import AsOnCuda, over_all_parameters
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
    attention where CUDA has it, fused dropout, CUDA's autocast, and optimizers over all parameters
    at once. Workspaces of kernels and the allocator's rounding are not predicted. Autocast is
    asked for here: `torch.autocast("cuda")` within the model has no effect.

    Args:
        model_fn: makes the model, on the CPU. It and the model must not ask for numbers in
            tensors; a yes-or-no question about them is answered with no.
        inputs: keywords in a dictionary, or positional arguments in a sequence; of tensors only
            their layout in memory counts, and those on "meta" cost nothing.
        device: "cpu" or "cuda".
        optimizer: parameters → optimizer, such as `torch.optim.AdamW`.
        loss, autocast: as in `make_step`.
        training: with False, a forward pass under `no_grad`.

    Raises:
        ValueError: another device; the model was made before, asks for a number in a tensor, or
            holds a recurrent network, whose memory fake tensors do not show.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(
            f"predict: device is {device!r}, there are 'cpu' and 'cuda'; name the kind"
        )
    with ExitStack() as stack:
        for context in (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),  # model_fn may set a seed
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device("cpu"),
        ):
            stack.enter_context(context)
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # deepcopy
        stack.enter_context(_FakeTensors())
        stack.enter_context(_Answers())
        if device == "cuda":
            stack.enter_context(AsOnCuda())
        model = model_fn()
        parameters = list(model.parameters())
        if not all(isinstance(parameter, FakeTensor) for parameter in parameters):
            raise ValueError(
                "predict: model_fn returned a model with numbers in its parameters, which a step "
                "would change; make the model within model_fn"
            )
        given = _fakes(inputs)
        maker = None
        if optimizer is not None:
            maker = optimizer(parameters)
            if device == "cuda":
                over_all_parameters(maker)
        step = make_step(
            model, given, optimizer=maker, loss=loss, autocast=autocast, training=training
        )
        owned = (
            [] if maker is None else [p for group in maker.param_groups for p in group["params"]]
        )
        leaves = [tensor for tensor in (*parameters, *tensors_in(given)) if tensor.requires_grad]
        if {id(leaf) for leaf in leaves} - {id(parameter) for parameter in owned}:
            step()  # so that those are there that no optimizer frees
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
            ValueError: the memory does not grow with depth, or the budget is no number.
        """
        if not 0 <= budget < 2**60:
            raise ValueError(f"ByDepth.deepest: budget is {budget}; give a number of bytes")
        shallow, deep = (use.peak for use in self.uses)
        if deep <= shallow:
            raise ValueError(
                f"ByDepth.deepest: the peak does not grow from depth {self.depths[0]} to "
                f"{self.depths[1]}; there is no deepest"
            )
        if shallow > budget:
            return 0
        # A largest of lines bends upwards: it lies above the one through both depths beyond them.
        most = (int(budget) - shallow) * (self.depths[1] - self.depths[0]) // (deep - shallow)
        depths = range(self.depths[0], self.depths[1] + most + 1)
        count = bisect_right(depths, budget, key=lambda depth: self.at(depth).peak)
        return depths[count - 1]


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
            (6, 12) for three kinds; then only whole turns are predicted. Below 4 the first and
            the last layer may hide what the others need.
        settings: further keywords of `predict`.

    Raises:
        ValueError: depths that are not two growing whole numbers; or as `predict`.
    """
    if len(depths) != 2 or not 0 < depths[0] < depths[1]:
        raise ValueError(
            f"predict_by_depth: depths are {depths}, wanted two that grow, such as (4, 6)"
        )
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


def _fakes(inputs: Inputs) -> Any:
    """Fakes of all tensors, on the CPU; those that share memory still do."""
    storages: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = torch.empty(storage.nbytes(), dtype=torch.uint8)
        whole = storages[storage._cdata].view(tensor.dtype) if storage.nbytes() else None
        if whole is None:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        part = whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).detach()
        return part.requires_grad_(tensor.requires_grad)

    return tree_map_only(Tensor, fake, inputs)


class _FakeTensors(FakeTensorMode):
    """Models copy their layers, and change their types: these fake tensors bear both."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        convert = self.fake_tensor_converter.from_meta_and_device
        memo = self.fake_tensor_converter.meta_converter.tensor_memo

        def forgetful(*args: Any, **kwargs: Any) -> FakeTensor:
            before = set(memo)
            fake = convert(*args, **kwargs)
            for key in set(memo) - before:  # a weak reference, which `Module.to` refuses
                del memo[key]
            return fake

        self.fake_tensor_converter.from_meta_and_device = forgetful  # type: ignore[method-assign]

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
        if "rnn" in func.__name__ or "lstm" in func.__name__ or "gru" in func.__name__:
            raise ValueError(
                f"predict: the model computes {func}, whose memory fake tensors do not show; "
                "measure it where it runs"
            )
        tensors = tensors_in((args, kwargs))
        real = not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if tensors and real and func is not torch.ops.aten.lift_fresh.default:
            with unset_fake_temporarily():  # such as states of random generators
                return func(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            asked = func is torch.ops.aten._local_scalar_dense.default
            if asked and tensors[0].dtype == torch.bool:
                return False
            raise ValueError(
                f"predict: the model asks for numbers in a tensor ({error}), and nothing is "
                "computed; give it plain numbers, or measure a small model"
            ) from error
