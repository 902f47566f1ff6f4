"""The way of the data: documents -> token ids -> segments -> samples -> batches."""

from lrk.recipe.collate import Batch, Collator
from lrk.recipe.document_stream import DocumentStream, stream_documents
from lrk.recipe.documents import load_documents
from lrk.recipe.placement import PlacedSamples, Placement
from lrk.recipe.sample_stream import SampleStream
from lrk.recipe.samples import Sample, Samples
from lrk.recipe.segments import SentenceEnds, segment_lengths, sentence_ends
from lrk.recipe.tokens import tokenize

__all__ = [
    "Batch",
    "Collator",
    "DocumentStream",
    "PlacedSamples",
    "Placement",
    "Sample",
    "SampleStream",
    "Samples",
    "SentenceEnds",
    "load_documents",
    "segment_lengths",
    "sentence_ends",
    "stream_documents",
    "tokenize",
]
