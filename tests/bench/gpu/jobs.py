"""A few jobs of the part `compile`: RoPE, a loss, and attention with a tile of its own."""

import torch

from bench.gpu.cases import AttentionCase
from bench.gpu.compile import Job, compile_job
from bench.gpu.sizes import Heads
from bench.gpu.tiles import Candidate
from lrk.kernels.attention.tiles import FORWARD, Tiles

CASE = AttentionCase("documents", torch.bfloat16, 64, Heads(4, 2), 1, 704, 704)
JOBS = [Job(CASE, Candidate(FORWARD, Tiles(64, 64, 4, 1))), Job(rope=CASE), Job(vocab=1003)]

if __name__ == "__main__":
    print(sum(compile_job(job, "sm_90") for job in JOBS))
