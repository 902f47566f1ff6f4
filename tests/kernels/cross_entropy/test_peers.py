"""What docs/cross_entropy.md says that others lack, as far as it shows without a GPU."""

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F

LACKS_IN_TORCH = ["softcap", "z_loss", "token_weight", "num_items", "return_lse"]
LACKS_IN_CUT = ["label_smoothing", "z_loss", "token_weight", "num_items", "return_lse"]
LACKS_IN_LIGER = ["token_weight", "num_items", "return_lse"]


torch_has_it = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="PyTorch has a chunked loss from 2.13 on"
)


def chunked(hidden, weight, labels):
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, options=options)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    hidden = torch.randn(6, 8, requires_grad=True)
    return hidden, torch.randn(11, 8, requires_grad=True), torch.full((6,), -100)


@torch_has_it
def test_torch_lacks_options():
    parameters = inspect.signature(F.linear_cross_entropy).parameters
    assert not set(LACKS_IN_TORCH) & set(parameters)


@torch_has_it
def test_torch_gives_nan_if_no_token_is_kept(inputs):
    assert chunked(*inputs).isnan()


@torch_has_it
def test_torch_compile_breaks_at_the_chunked_loss(inputs):
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match=r"(?i)graph break|fullgraph|unsupported"):
            torch.compile(chunked, fullgraph=True, backend="aot_eager")(*inputs).backward()


def test_cut_cross_entropy_lacks_options():
    peer = pytest.importorskip("cut_cross_entropy")
    parameters = inspect.signature(peer.linear_cross_entropy).parameters
    assert not set(LACKS_IN_CUT) & set(parameters)


def test_liger_lacks_options():
    module = pytest.importorskip("liger_kernel.ops.fused_linear_cross_entropy")
    forward = module.LigerFusedLinearCrossEntropyFunction.forward
    assert not set(LACKS_IN_LIGER) & set(inspect.signature(forward).parameters)
