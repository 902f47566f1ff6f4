"""Evaluation: does the long context work? Tasks, scores, perplexity, and the `lrk-eval` command."""
