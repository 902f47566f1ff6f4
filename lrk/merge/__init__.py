"""Merging: one model from several of one architecture, in bounded memory."""

from lrk.merge.command import main
from lrk.merge.rules import Linear, Slerp, TaskArithmetic
from lrk.merge.stream import merge

__all__ = ["Linear", "Slerp", "TaskArithmetic", "main", "merge"]
