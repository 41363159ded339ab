"""What a training step does otherwise on CUDA, computed on the CPU: which tensors it keeps there.

From PyTorch's documentation of `torch.amp` and `scaled_dot_product_attention`, and its sources.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from avlib.ledger import tensors_in

# Functions that CUDA's autocast computes in float32 and the CPU's does not (documented in
# torch.amp): those met in transformers and their losses. The first read 16-bit numbers as they are.
_TO_FLOAT32 = {"sum", "prod", "cumsum", "cumprod", "softmax", "log_softmax", "vector_norm"}
_IN_FLOAT32 = {
    *("layer_norm", "group_norm", "norm", "normalize", "softmin", "softplus", "logsumexp"),
    *("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "kl_div"),
    *("cosine_similarity", "pow", "__pow__", "__rpow__", "square", "exp", "expm1", "log", "log1p"),
    *("log2", "log10", "rsqrt", "reciprocal", "__rtruediv__", "interpolate"),
}


class AsOnCuda(TorchFunctionMode):
    """Where a step on the CPU keeps other tensors than on CUDA, compute as CUDA does."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            if name in _IN_FLOAT32:
                args, kwargs = tree_map_only(Tensor, _float32, (args, kwargs))
            elif name in _TO_FLOAT32 and tensors_in((args, kwargs))[0].dtype.itemsize == 2:
                kwargs = {"dtype": torch.float32, **kwargs}
            else:
                return func(*args, **kwargs)
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Fused where CUDA has a kernel for it, which keeps no dropout mask; else with all scores.

    One kernel takes no mask, the other only heads of whole 16-byte rows (`sdp_utils.cpp`).
    """
    autocast = torch.is_autocast_enabled("cpu") and query.dtype == torch.float32
    dtype = torch.get_autocast_dtype("cpu") if autocast else query.dtype
    whole_rows = all(t.shape[-1] * dtype.itemsize % 16 == 0 for t in (query, value))
    flash = dtype.itemsize == 2 and attn_mask is None and query.shape[-1] <= 256
    fused = query.ndim == 4 and dtype.itemsize < 8 and (flash or whole_rows)
    call = partial(F.scaled_dot_product_attention, query, key, value, attn_mask)
    if fused:
        return call(0.0, *args, **kwargs)
    with sdpa_kernel(SDPBackend.MATH):
        return call(dropout_p, *args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """CUDA's dropout keeps a mask of booleans, the CPU's one of numbers."""
    if inplace or not training or not 0 < p < 1:
        return F.dropout(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def over_all_parameters(optimizer: torch.optim.Optimizer) -> None:
    """What torch chooses where parameters are on CUDA."""
    for group in optimizer.param_groups:
        chosen = group.get("fused") or group.get("foreach") is not None
        if not chosen and not group.get("differentiable") and not isinstance(group["lr"], Tensor):
            group["foreach"] = True
