"""Which tokens gain from a longer window: LongRecipe's impactful tokens, LongPPL's key tokens."""

from lrk.analysis.analysis import Analysis, analyze
from lrk.analysis.arguments import AnalysisArguments

__all__ = ["Analysis", "AnalysisArguments", "analyze"]
