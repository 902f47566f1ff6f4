"""The pass over rows in PyTorch, a few rows at a time so that they stay in the cache."""

from torch import Tensor

from .chunks import Pull, Statistics

# Elements worked on at once: 2 MiB of float32.
BLOCK_ELEMENTS = 1 << 19
# Its exponential is 0 in any dtype, and unlike an infinity it may be multiplied by that.
FLOOR = -1000.0


def row_pass(
    logits: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    statistics: Statistics,
    pull: Pull | None,
    gradient: Tensor,
) -> None:
    """See `chunks.RowPass`. Logits and gradient are float32 or float64, and in one place."""
    assert gradient.dtype == logits.dtype
    assert gradient.data_ptr() == logits.data_ptr()
    count, vocab = logits.shape
    # A label outside these columns belongs to another shard of the vocabulary: its logit is 0 here.
    present = (labels >= 0) & (labels < vocab)
    labels = labels.clamp(0, vocab - 1)
    rows = max(BLOCK_ELEMENTS // vocab, 1)
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        x, label, here = logits[part], labels[part, None], present[part]
        if bias is not None:
            x += bias
        if softcap is not None:
            x.div_(softcap).tanh_()
            slope = 1.0 - x.square()
            x.mul_(softcap)
        label_logit = x.gather(1, label)[:, 0].where(here, 0.0)
        if statistics.logit_sum.numel():
            statistics.logit_sum[part] = x.sum(1)
        top = x.amax(1)
        x.sub_(top[:, None])
        below = x.clamp(min=FLOOR) if statistics.entropy.numel() else None
        total = x.exp_().sum(1)
        log_total = total.log()
        # lse - label_logit would round a confident token's small loss like its large lse.
        statistics.nll[part] = (top - label_logit) + log_total
        statistics.lse[part] = top + log_total
        if below is not None:
            # Both log sum_v exp(x_v - top) and the mean of top - x_v are positive.
            mean_below = (x * below).sum(1) / total
            statistics.entropy[part] = log_total - mean_below
        if pull is None:
            continue
        z_factor = 1.0 + 2.0 * pull.z_loss * statistics.lse[part]
        on_exponential = (pull.on_probability[part] * z_factor / total)[:, None]
        if below is not None and pull.on_entropy is not None:
            below.sub_(mean_below[:, None])  # log p_v + H
            below.mul_((pull.on_entropy[part] / total)[:, None])
            on_exponential = on_exponential - below
        x.mul_(on_exponential)
        x.scatter_add_(1, label, pull.on_label[part].where(here, 0.0)[:, None])
        if pull.on_logit is not None:
            x.add_(pull.on_logit[part, None])
        if softcap is not None:
            x.mul_(slope)
