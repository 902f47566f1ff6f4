"""The output embedding of a causal language model as one matrix product, its adapters included.

A loss without logits multiplies hidden states and weights itself, so it must know what the module
would compute. With LoRA (arXiv 2106.09685) that is `W x + sum_i s_i B_i A_i dropout(x)`: the
product of `[x, s_1 A_1 dropout(x), ...]` and `[W, B_1, ...]`. So the small terms are not rounded to
the large weights, as they would be in the dtype of `W + s B A`.

The weight may not be where the module is. FSDP2, ZeRO-3 and accelerate's hooks bring it when the
module is called, so the loss is computed inside such a call (`LrkHead`). Under tensor parallelism
each process has some of its rows for good, and the loss is computed from those.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from lrk.hf.logit_scale import LogitScale
from lrk.kernels.cross_entropy import (
    linear_cross_entropy,
    vocab_parallel_linear_cross_entropy,
)

Result = TypeVar("Result")


class Head(NamedTuple):
    """What to multiply: the logits are `hidden @ weight.T + bias`."""

    hidden: Tensor
    """(..., H + R), R the ranks of all adapters together."""
    weight: Tensor
    """(V, H + R)."""
    bias: Tensor | None
    """(V,)."""
    rows: "Rows | None" = None
    """Where `weight` and `bias` are some rows of the whole."""


class Rows(NamedTuple):
    """How processes share an output embedding: rank r has rows r n to (r + 1) n - 1."""

    group: dist.ProcessGroup
    vocab_size: int
    """V, of all processes together; rows from there on are padding."""


class LrkHead:
    """Mixed in before an output embedding: it is called with a function of its factors, too."""

    def forward(
        self,
        input: Tensor,
        *args: Any,
        of_factors: Callable[[Head], Result] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock forward, or `(of_factors(head_of(self, input)),)` inside the call's hooks.

        A tuple, so that a hook that changes logits does not change a loss in silence.

        Raises:
            ValueError: for `of_factors` with what a hook adds, as peft does where rows of a batch
                have adapters of their own.
        """
        if of_factors is None:
            return super().forward(input, *args, **kwargs)  # type: ignore[misc]
        if args or kwargs:
            raise _refusal(self, " with hooks (adapter_names sets them)")  # type: ignore[arg-type]
        return (of_factors(head_of(self, input)),)  # type: ignore[arg-type]


def is_known(kind: type[Any]) -> bool:
    """Whether `head_of` knows modules of a stock class: a linear layer, or peft's around one."""
    if not kind.__module__.startswith("peft."):
        return kind is nn.Linear
    from peft.tuners.lora import Linear as LoraLinear
    from peft.utils import ModulesToSaveWrapper

    return kind in (LoraLinear, ModulesToSaveWrapper)


def with_head(lm_head: nn.Module, hidden: Tensor, function: Callable[[Head], Result]) -> Result:
    """`function(head_of(lm_head, hidden))`, where the weight is.

    Args:
        lm_head: as for `head_of`; patched, it is called, so that its hooks run.
        hidden: (..., H).

    Raises:
        ValueError: as `head_of`.
    """
    if isinstance(lm_head, LrkHead):
        (result,) = lm_head(hidden, of_factors=function)
        return cast(Result, result)
    if mesh_of(lm_head) is None and (lm_head._forward_pre_hooks or lm_head._forward_hooks):
        raise _refusal(lm_head, " with hooks (adapter_names sets them)")
    return function(head_of(lm_head, hidden))


def head_cross_entropy(
    lm_head: nn.Module, hidden: Tensor, labels: Tensor, scale: LogitScale, **options: Any
) -> Tensor:
    """`linear_cross_entropy` of what `lm_head` makes of hidden states.

    Args:
        hidden: (..., H). labels: (...).
        scale: what the model does with the logits.
        options: of `linear_cross_entropy`.
    """
    return with_head(lm_head, hidden, lambda head: cross_entropy_of(head, labels, scale, **options))


def cross_entropy_of(head: Head, labels: Tensor, scale: LogitScale, **options: Any) -> Tensor:
    """`head_cross_entropy`, of the factors themselves."""
    factors: dict[str, Any] = {
        "hidden": scale.divided(head.hidden),
        "weight": head.weight,
        "labels": labels.to(head.hidden.device),
        "bias": None if head.bias is None else scale.divided(head.bias),
        "softcap": scale.softcap,
        **options,
    }
    if head.rows is None:
        return cast(Tensor, linear_cross_entropy(**factors))
    rows = head.rows._asdict()
    return cast(Tensor, vocab_parallel_linear_cross_entropy(**factors, **rows))


def head_of(lm_head: nn.Module, hidden: Tensor, drops: bool = True) -> Head:
    """The factors of `lm_head(hidden)`.

    With adapters that are trained, the gradient of the loss is formed for `[W, B]` as a whole, also
    where W is frozen.

    Args:
        lm_head: a `torch.nn.Linear`, or peft's LoRA or `modules_to_save` around one.
        hidden: (..., H).
        drops: whether adapters' dropout is that of the module's mode, or none.

    Raises:
        ValueError: for any other module, for variants of LoRA (DoRA and others), and for an adapter
            that a hook feeds, as peft does where rows of a batch have adapters of their own; and
            for a weight that is divided among processes other than by rows.
    """
    kind = _stock(lm_head)
    if not is_known(kind):
        raise _refusal(lm_head)
    if kind is nn.Linear:
        return _linear(lm_head, hidden)
    head: Any = lm_head
    if hasattr(head, "lora_A"):
        return _with_lora(head, hidden, drops)
    saved = [name for name in head.active_adapters if name in head.modules_to_save]
    if head.disable_adapters or not saved:
        return head_of(head.original_module, hidden, drops)
    return head_of(head.modules_to_save[saved[0]], hidden, drops)


def _stock(lm_head: nn.Module) -> type[Any]:
    """The class before the patch, and before FSDP derived another of the patched one."""
    # peft's wrappers have the attributes of what they wrap, their classes have not.
    return getattr(type(lm_head), "_lrk_stock", type(lm_head))


def _linear(layer: Any, hidden: Tensor) -> Head:
    mesh = mesh_of(layer)
    if mesh is None:
        return Head(hidden, layer.weight, layer.bias)
    if isinstance(layer, FSDPModule):
        raise _refusal(
            cast(nn.Module, layer),
            " sharded by FSDP apart from the head around it (patch after peft)",
        )
    if not isinstance(layer.weight, DTensor):
        raise _refusal(layer, " divided among processes as by transformers before 5.17")
    weight, bias = _rows_here(layer, layer.weight), _rows_here(layer, layer.bias)
    if weight.shape[0] == layer.out_features:
        return Head(hidden, weight, bias)
    size = -(-layer.out_features // mesh.size())
    bias = None if bias is None else _padded(bias, size)
    return Head(hidden, _padded(weight, size), bias, Rows(mesh.get_group(), layer.out_features))


def mesh_of(layer: nn.Module) -> Any:
    """Of the processes among which transformers has divided a linear layer (`tp_plan`), or None.

    Newer releases make its weight a DTensor; older ones note the mesh on the module, and forget how
    many rows there are in all.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, DTensor):
        return weight.device_mesh
    return getattr(layer, "_hf_device_mesh", None)


def _rows_here(layer: nn.Module, parameter: Any) -> Any:
    """What this process has of a weight or a bias, differentiably."""
    if not isinstance(parameter, DTensor):
        return parameter
    if parameter.placements not in ((Shard(0),), (Replicate(),)):
        raise _refusal(layer, f" divided among processes as {parameter.placements}")
    return parameter.to_local()


def _padded(rows: Tensor, size: int) -> Tensor:
    """The last process may have fewer rows than the others."""
    missing = size - rows.shape[0]
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def _with_lora(layer: Any, hidden: Tensor, drops: bool) -> Head:
    """As `peft.tuners.lora.Linear.forward`, which see for the order of casts."""
    if layer.merged and layer.disable_adapters:
        layer.unmerge()
    head = head_of(layer.base_layer, hidden)
    if layer.merged or layer.disable_adapters:
        return head
    hiddens, weights, bias = [hidden], [head.weight], head.bias
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if name in layer.lora_variant:
            raise _refusal(layer, f" of the variant {type(layer.lora_variant[name]).__name__}")
        down, up, scale = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
        seen = hidden.to(down.weight.dtype)
        low = down(layer.lora_dropout[name](seen) if drops else seen) * scale
        hiddens.append(low.to(hidden.dtype))
        weights.append(up.weight.to(head.weight.dtype))
        if up.bias is not None:
            shift = (up.bias * scale).to(head.weight.dtype)
            bias = shift if bias is None else bias + shift
    return Head(torch.cat(hiddens, dim=-1), torch.cat(weights, dim=1), bias)


def _refusal(module: nn.Module, detail: str = "") -> ValueError:
    kind = _stock(module)
    return ValueError(
        f"lm_head is a {kind.__module__}.{kind.__qualname__}{detail}; lrk's loss needs a "
        "torch.nn.Linear, which may have LoRA: leave lm_head out of the adapter or use "
        "lrk.patch(model, cross_entropy=False)"
    )
