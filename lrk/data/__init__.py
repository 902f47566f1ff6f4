"""`lrk-data`: documents become token ids, and token ids the text of samples, before training."""

from lrk.data.prepare import Preparation, prepare
from lrk.data.select import SelectionRun, select
from lrk.share import Share

__all__ = ["Preparation", "SelectionRun", "Share", "prepare", "select"]
