"""The pass over rows in PyTorch, a few rows at a time so that they stay in the cache."""

import torch
from torch import Tensor

from .chunks import Pull, Statistics

# Elements worked on at once: 1 MiB of float32.
BLOCK_ELEMENTS = 1 << 18


def row_pass(
    logits: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    statistics: Statistics,
    lse_is_known: bool,
    pull: Pull | None,
    gradient_dtype: torch.dtype,
) -> Tensor:
    """See `chunks.RowPass`. Logits and gradient are float32 or float64, the compute dtype here."""
    count, vocab = logits.shape
    # A label outside these columns belongs to another shard of the vocabulary.
    present = (labels >= 0) & (labels < vocab)
    labels = labels.clamp(0, vocab - 1)
    rows = max(BLOCK_ELEMENTS // vocab, 1)
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        x, label, here = logits[part], labels[part, None], present[part]
        if bias is not None:
            x += bias
        if softcap is not None:
            x.div_(softcap).tanh_().mul_(softcap)
        lse = statistics.lse[part]
        statistics.label_logit[part] = x.gather(1, label)[:, 0].where(here, 0.0)
        if statistics.logit_sum.numel():
            statistics.logit_sum[part] = x.sum(1)
        if not lse_is_known:
            lse.copy_(x.logsumexp(1))
        if pull is None:
            continue
        # Still from the logits, which the next lines overwrite.
        slope = None if softcap is None else 1.0 - (x / softcap).square_()
        on_probability = pull.lse[part] * (1.0 + 2.0 * pull.z_loss * lse)
        x.sub_(lse[:, None]).exp_().mul_(on_probability[:, None])
        x.scatter_add_(1, label, pull.label_logit[part].where(here, 0.0)[:, None])
        if pull.logit_sum is not None:
            x.add_(pull.logit_sum[part, None])
        if slope is not None:
            x.mul_(slope)
    return logits
