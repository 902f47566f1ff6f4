"""Bad input gets one sentence that names the argument."""

import pytest
import torch

from lrk.kernels.cross_entropy import linear_cross_entropy_reference

HIDDEN, WEIGHT = torch.zeros(2, 5, 8), torch.zeros(11, 8)
LABELS = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": HIDDEN.long()}, TypeError, "hidden must be floating point"),
        ({"hidden": HIDDEN[..., :7]}, ValueError, r"weight must have shape .*got \(11, 8\)"),
        ({"hidden": torch.tensor(1.0)}, ValueError, "weight must have shape"),
        ({"weight": WEIGHT.double()}, TypeError, r"weight is torch.float64, hidden torch.float32"),
        ({"weight": WEIGHT[0]}, ValueError, r"weight must have shape .*got \(8,\)"),
        ({"weight": WEIGHT[:0]}, ValueError, "empty vocabulary"),
        (
            {"hidden": HIDDEN[..., :0], "weight": WEIGHT[:, :0]},
            ValueError,
            "hidden and weight have no features: their last dimension is 0",
        ),
        ({"labels": LABELS.int()}, TypeError, "labels must be torch.int64, got torch.int32"),
        ({"labels": LABELS[0]}, ValueError, r"labels must have .*shape \(2, 5\), got \(5,\)"),
        ({"labels": LABELS.to("meta")}, ValueError, "labels is on meta, hidden on cpu"),
        ({"bias": torch.zeros(8)}, ValueError, r"bias must have shape \(11,\), got \(8,\)"),
        ({"bias": torch.zeros(11).half()}, TypeError, "bias is torch.float16"),
        ({"token_weight": torch.ones(5)}, ValueError, "token_weight must have the shape of labels"),
        ({"token_weight": LABELS}, TypeError, "token_weight must be floating point"),
        ({"reduction": "average"}, ValueError, "reduction must be one of .*got 'average'"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1, got 1.5"),
        ({"z_loss": -1.0}, ValueError, "z_loss must be from 0 to .*, got -1.0"),
        ({"softcap": 0.0}, ValueError, "softcap must be from 1e-15 to .* or None, got 0.0"),
        ({"num_items": 0}, ValueError, "num_items must be from 1e-15 to .*, got 0"),
        ({"num_items": torch.ones(2)}, ValueError, "num_items must be a 0-dim tensor"),
        ({"num_items": torch.tensor(3, device="meta")}, ValueError, "num_items is on meta"),
        ({"num_items": "3"}, TypeError, "num_items is '3', of type str: must be a real number"),
        ({"chunk_tokens": 2.0}, TypeError, r"chunk_tokens is 2\.0, of type float"),
        ({"ignore_index": 1.0}, TypeError, r"ignore_index is 1\.0, of type float"),
        ({"z_loss": True}, TypeError, "z_loss is True, of type bool: must be a real number"),
        ({"hidden": [[1.0]]}, TypeError, r"hidden is \[\[1\.0\]\], of type list: must be a tensor"),
        ({"hidden": HIDDEN.to(torch.float8_e4m3fn)}, TypeError, "hidden must be floating point of"),
        ({"reduction": None}, ValueError, "reduction must be one of .*got None"),
        ({"num_items": 3, "reduction": "sum"}, ValueError, "num_items divides reduction='mean'"),
        ({"chunk_tokens": 0}, ValueError, "chunk_tokens must be at least 1 or None, got 0"),
    ],
)
@pytest.mark.parametrize("reference", [False, True])
def test_bad_arguments(changes, error, message, reference, function):
    function = linear_cross_entropy_reference if reference else function
    with pytest.raises(error, match=message):
        function(**{"hidden": HIDDEN, "weight": WEIGHT, "labels": LABELS} | changes)


@pytest.mark.parametrize("label", [11, -1, 2**40])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("ignore_index", [-100, None])
def test_the_first_label_outside_the_vocabulary_is_named(label, reduction, ignore_index, function):
    labels = LABELS.clone()
    labels[1, 2:] = label
    sentence = rf"labels\[1, 2\] is {label}: .*ignore_index \({ignore_index}\) or from 0 to 10"
    with pytest.raises(ValueError, match=sentence):
        function(
            HIDDEN.requires_grad_(), WEIGHT, labels, reduction=reduction, ignore_index=ignore_index
        )
