"""One run on a GPU: is every kernel right, how fast beside its peers, does the plan hold?

docs/gpu.md says how to run it and how to read what it writes.
"""
