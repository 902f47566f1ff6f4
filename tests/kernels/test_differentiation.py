"""What PyTorch would differentiate otherwise is refused: in silence it would drop a derivative."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lrk.kernels.attention import attention, attention_triton
from lrk.kernels.cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_triton,
    linear_kl,
    linear_kl_triton,
    token_logprobs,
    token_logprobs_triton,
)
from lrk.kernels.rope import rope, rope_triton

Q, K, V = torch.randn(3, 1, 2, 8, 16)
FREQUENCIES = torch.rand(8)
HIDDEN, WEIGHT = torch.randn(6, 5), torch.randn(7, 5)
LABELS = torch.arange(6)

CALLS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "attention": (lambda q: attention(q, K, V).sum(), Q),
    "attention_triton": (lambda q: attention_triton(q, K, V).sum(), Q),
    "keys": (lambda k: attention(Q, k, V, return_lse=True)[1].sum(), K),
    "rope": (lambda q: rope(q, K, torch.arange(8)[None], FREQUENCIES)[0].sum(), Q),
    "rope_triton": (lambda q: rope_triton(q, K, torch.arange(8)[None], FREQUENCIES)[0].sum(), Q),
    "loss": (lambda h: linear_cross_entropy(h, WEIGHT, LABELS), HIDDEN),
    "loss_triton": (lambda h: linear_cross_entropy_triton(h, WEIGHT, LABELS), HIDDEN),
    "head": (lambda w: linear_cross_entropy(HIDDEN, w, LABELS, reduction="none").sum(), WEIGHT),
    "logprobs": (lambda h: token_logprobs(h, WEIGHT, LABELS).lse.sum(), HIDDEN),
    "logprobs_triton": (lambda h: token_logprobs_triton(h, WEIGHT, LABELS).lse.sum(), HIDDEN),
    "divergence": (lambda h: linear_kl(h, WEIGHT, HIDDEN, WEIGHT), HIDDEN),
    "divergence_triton": (lambda h: linear_kl_triton(h, WEIGHT, HIDDEN, WEIGHT), HIDDEN),
    "teacher": (lambda h: linear_kl(HIDDEN, WEIGHT, h, WEIGHT), HIDDEN),
}
EVERY = pytest.mark.parametrize(("call", "x"), CALLS.values(), ids=CALLS)


def twice(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(x), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), x)[0]


@EVERY
def test_forward_mode_is_refused(call, x):
    for transform in (
        lambda: torch.func.jvp(call, (x,), (torch.ones_like(x),)),
        lambda: torch.func.jacfwd(call)(x),
    ):
        with pytest.raises(NotImplementedError, match="has no derivative in forward mode") as error:
            transform()
        assert "\n" not in str(error.value)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="has no derivative in forward mode"):
            call(dual)


@EVERY
def test_torch_func_is_refused(call, x):
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        with pytest.raises(NotImplementedError, match=r"has no derivative (by torch.func|in forw)"):
            transform(call)(x)


@EVERY
def test_a_second_derivative_is_right_or_refused(call, x):
    """The rotation is linear: its own is known. Of the teacher nothing is differentiated."""
    try:
        second = twice(call, x)
    except NotImplementedError as error:
        assert "create_graph=True" in str(error)  # noqa: PT017
    except RuntimeError as error:
        assert "does not require grad" in str(error)  # noqa: PT017
    else:
        assert second.count_nonzero() == 0


@pytest.mark.parametrize("name", ["attention", "rope", "logprobs", "divergence"])
def test_a_batch_by_vmap_is_right(name):
    call, x = CALLS[name]
    batch = torch.stack([x, 2 * x, -x])
    torch.testing.assert_close(torch.vmap(call)(batch), torch.stack([call(x) for x in batch]))
