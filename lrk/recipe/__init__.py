"""The way of the data: documents -> token ids -> segments -> samples -> batches."""

from lrk.recipe.collate import Batch, Collator
from lrk.recipe.document_stream import DocumentStream, stream_documents
from lrk.recipe.documents import load_documents
from lrk.recipe.fingerprint import tokenizer_fingerprint
from lrk.recipe.impactful import ImpactfulTokens, read_impactful
from lrk.recipe.mixture import MixedSamples
from lrk.recipe.placement import PlacedSamples, Placement
from lrk.recipe.sample_stream import SampleStream
from lrk.recipe.samples import Sample, Samples
from lrk.recipe.segments import SentenceEnds, segment_lengths, sentence_ends
from lrk.recipe.selection import Selection, selection_of
from lrk.recipe.tokens import tokenize

__all__ = [
    "Batch",
    "Collator",
    "DocumentStream",
    "ImpactfulTokens",
    "MixedSamples",
    "PlacedSamples",
    "Placement",
    "Sample",
    "SampleStream",
    "Samples",
    "Selection",
    "SentenceEnds",
    "load_documents",
    "read_impactful",
    "segment_lengths",
    "selection_of",
    "sentence_ends",
    "stream_documents",
    "tokenize",
    "tokenizer_fingerprint",
]
