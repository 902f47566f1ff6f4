"""Compile on all cores what the parts will launch, before the device waits for it.

Triton's cache is on disk, so what one process compiles another launches at once. A compiler needs
no device: `bench.offline` compiles the kernels of an ordinary call for the card that is named.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import NamedTuple

import torch

from bench.gpu.cases import AttentionCase, attention_cases
from bench.gpu.cell import Cell, one_line
from bench.gpu.row import BOTH, Row
from bench.gpu.sizes import Heads, Sizes
from bench.gpu.tiles import CANDIDATES, Candidate, candidates, with_tiles
from bench.offline import compiled_launches
from lrk.kernels.attention import attention_triton
from lrk.kernels.cross_entropy import (
    linear_cross_entropy_triton,
    linear_kl_triton,
    token_logprobs_triton,
)
from lrk.kernels.rope import rope_triton

_CPU = torch.device("cpu")


class Job(NamedTuple):
    """Kernels of one call: attention's of a case, with other tiles; or of RoPE; or of a loss, which
    is "linear_cross_entropy", "linear_kl" or "entropy"."""

    attention: AttentionCase | None = None
    candidate: Candidate | None = None
    rope: AttentionCase | None = None
    vocab: int = 0
    dtype: torch.dtype = torch.bfloat16
    loss: str = "linear_cross_entropy"


def jobs(sizes: Sizes) -> list[Job]:
    """What the other parts launch most."""
    cases = [*attention_cases(sizes)]
    for model in sizes.models.values():
        heads = Heads(model.num_heads, model.num_kv_heads)
        for s in sorted({*sizes.lengths, sizes.long}):
            cases += [
                AttentionCase(variant, sizes.dtype, model.head_dim, heads, 1, s, s)
                for variant in ("causal", "documents")
            ]
        query = sizes.dtype, model.head_dim, heads, 1, 1, max(sizes.lengths)
        cases.append(AttentionCase("cached", *query))
    b, h, hk, d, s = sizes.published
    cases.append(AttentionCase("causal", sizes.dtype, d, Heads(h, hk), b, s, s))
    model = next(iter(sizes.models.values()))
    heads = Heads(model.num_heads, model.num_kv_heads)
    found = [Job(attention=case) for case in cases]
    for kernel, documents in product(CANDIDATES, (False, True)):
        variant = "documents" if documents else "causal"
        case = AttentionCase(variant, sizes.dtype, model.head_dim, heads, 1, sizes.long, sizes.long)
        found += [Job(case, candidate) for candidate in candidates(sizes, kernel, documents)]
    dtypes = torch.bfloat16, torch.float16, torch.float32
    found += [Job(rope=case) for case in cases if case.variant == "causal"]
    vocabularies = {model.vocab for model in sizes.models.values()} | {sizes.loss_shape[2]}
    found += [Job(vocab=vocab) for vocab in sorted(vocabularies)]
    found += [Job(vocab=vocab, dtype=each) for vocab in (1003, 32_000) for each in dtypes]
    others = "linear_kl", "entropy"
    return found + [Job(vocab=1003, dtype=each, loss=loss) for loss in others for each in dtypes]


def compile_job(job: Job, arch: str) -> int:
    """Compile what the job launches on a device of `arch`; returns how many launches it has."""
    return len(compiled_launches(partial(call, job), arch))


def call(job: Job) -> None:
    """Make the call, on memory that nothing touches, which costs nothing however large it is."""
    if job.attention is not None:
        q, k, v = _heads(job.attention)
        with with_tiles(job.candidate) if job.candidate else nullcontext():
            outputs = attention_triton(q, k, v, **job.attention.arguments(_CPU), return_lse=True)
            upstream = [torch.empty_like(x) for x in outputs]
            torch.autograd.grad(outputs, (q, k, v), upstream, retain_graph=True)
            torch.autograd.grad(outputs[0], (q, k, v), upstream[0])
    elif job.rope is not None:
        q, k, _ = _heads(job.rope)
        positions = torch.empty(1, job.rope.q_length, dtype=torch.int64)
        increments = torch.empty(job.rope.head_dim // 2, dtype=torch.int64)
        outputs = rope_triton(q, k, positions, increments)
        torch.autograd.grad(outputs, (q, k), [torch.empty_like(x) for x in outputs])
    else:
        hidden, weight = (
            torch.empty(rows, 8, dtype=job.dtype, requires_grad=True) for rows in (64, job.vocab)
        )
        labels = torch.zeros(64, dtype=torch.int64)
        if job.loss == "linear_kl":
            linear_kl_triton(hidden, weight, hidden, weight, labels).backward()
        elif job.loss == "entropy":
            found = token_logprobs_triton(hidden, weight, labels, softcap=20.0, entropy=True)
            sum(x.sum() for x in found if x is not None).backward()
        else:
            linear_cross_entropy_triton(hidden, weight, labels).backward()


def _heads(case: AttentionCase) -> list[torch.Tensor]:
    shapes = (case.heads.q, case.q_length), *[(case.heads.k, case.k_length)] * 2
    return [
        torch.empty(case.batch, length, heads, case.head_dim, dtype=case.dtype)
        .transpose(1, 2)
        .requires_grad_()
        for heads, length in shapes
    ]


def cells(sizes: Sizes) -> Iterator[Cell]:
    """One cell: all of it."""
    what = Row("compile", BOTH, {}, "", "lrk")
    yield Cell(what, partial(_compile_all, what, jobs(sizes)[: sizes.compiled_before]))


def _compile_all(what: Row, todo: list[Job]) -> Iterator[Row]:
    major, minor = torch.cuda.get_device_capability()
    start = time.perf_counter()
    launches = 0
    workers = max(1, min(len(todo), (os.cpu_count() or 1) - 2))
    # Not forked: this process may have begun to use the device.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(compile_job, job, f"sm_{major}{minor}"): job for job in todo}
        for future in as_completed(futures):
            fault = future.exception()
            if fault is None:
                launches += future.result()
            else:
                note = one_line(fault) if isinstance(fault, Exception) else repr(fault)
                yield replace(what, variant=str(futures[future]), ok=False, note=note)
    seconds = time.perf_counter() - start
    shape = {"jobs": len(todo), "launches": launches, "processes": workers}
    yield replace(what, shape=shape, milliseconds=1000 * seconds, ok=True)
