"""Few queries on many keys, as in decoding: the keys split over programs (Flash-Decoding).

The ordinary grid has a program for each head and tile of queries: for one query that is a few
dozen programs, which leave most of a GPU idle, and whose tiles of queries are padding. Here a tile
holds the queries of all heads that share a key head, so that each key is read once, and a program
takes a share of the keys. It leaves the three parts of a softmax in one pass, its largest product
`m_s`, its `mass_s` and its sum of values `acc_s`; a second kernel adds them up,

    m = max_s m_s,    shrink_s = exp(unit * (m_s - m)),
    out = sum_s shrink_s acc_s / sum_s shrink_s mass_s,

always in the same order, as one program would have done tile by tile (module `online_softmax`). So
the result is as exact and as deterministic as the ordinary one, and has the same gradients.

The workspace is `B * Hq * Sq * splits * (D + 2)` float32 numbers. One query of Llama-3-8B on
131,072 keys has 49 splits on an H100: 0.8 MB, written and read once, beside 537 MB of K and V.

Source: Flash-Decoding (Dao, Haziza, Massa and Sizov, 2023), with the sums of FlashAttention-2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..target import architecture, multiprocessors
from .arguments import LENGTHS, common_arguments, strides
from .mask import Mask
from .memory import descriptor, document_offset, is_described
from .online_softmax import add_keys
from .schedule import key_range, position_at
from .tiles import Tiles

MIN_LENGTH = 1024
"""Keys from which on they are split."""
MIN_SHARE = 256
"""Keys of a program. At D 128 in 16 bits they take a multiprocessor of an H100, at its part of the
bandwidth, 5 microseconds: more than a program costs without any key."""
_TILES = {
    (16, 64): Tiles(16, 32, 4, 4),
    (16, 128): Tiles(16, 32, 4, 3),
    (16, 256): Tiles(16, 16, 4, 3),
    (32, 64): Tiles(32, 64, 8, 3),
    (32, 128): Tiles(32, 32, 8, 3),
    (32, 256): Tiles(32, 32, 8, 2),
    (64, 64): Tiles(64, 64, 8, 3),
    (64, 128): Tiles(64, 32, 8, 3),
}
"""By rows and padded head dimension: what compiles without stack for all GPUs (module `tiles`)."""
_FLOAT32 = {
    (16, 64): Tiles(16, 16, 4, 1),
    (16, 128): Tiles(16, 16, 4, 1),
    (16, 256): Tiles(16, 16, 8, 1),
}


def choose(arch: str, q: Tensor, k: Tensor) -> Tiles | None:
    """The tiles, whose rows are the queries of all heads of a group; None if these are too many."""
    rows = max(triton.next_power_of_2(q.shape[1] // k.shape[1] * q.shape[2]), 16)
    table = _FLOAT32 if q.element_size() == 4 else _TILES
    config = table.get((rows, max(triton.next_power_of_2(q.shape[3]), 64)))
    # AMD's local memory holds fewer stages.
    return config._replace(num_stages=2) if config and arch.startswith("gfx") else config


def programs_at_once(arch: str, config: Tiles) -> int:
    """How many fit on a multiprocessor up to head dimension 128, or a whole multiple.

    With 24 to 32 KB under way to each they keep the memory busy: an H100 needs some 40 KB for that.
    """
    has_99_kib = arch in ("sm_86", "sm_89") or arch.startswith("sm_12")
    return 2 if has_99_kib or config.num_warps == 8 else 3


def applies(q: Tensor, k: Tensor) -> bool:
    """Whether the queries of a group of heads fit one tile, and the keys are many.

    It does not depend on the batch: where that fills the GPU without a split, the ordinary kernel
    would still spend the time of 128 queries on a few, and read the keys for each head of a group.
    """
    return k.shape[2] >= MIN_LENGTH and choose(architecture(q), q, k) is not None


def max_splits(programs: int, k_length: int, at_once: int) -> int:
    """Into how many shares at most the keys are cut.

    All programs are of one size, so they run best all at once: as many as fit, and no second wave.
    With few keys the fixed costs of a program ask for fewer.

    Args:
        programs: without a split: rows of the batch times key heads.
        k_length: keys that there is room for; how many are visible only the device knows.
        at_once: programs that the GPU runs at once.
    """
    return max(1, min(at_once // programs, triton.cdiv(k_length, MIN_SHARE)))


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scale: float,
    softcap: float | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fill the output and lse of `op.attention`."""
    batch, heads, q_length, head_dim = q.shape
    kv_heads = k.shape[1]
    arch = architecture(q)
    config = choose(arch, q, k)
    assert config is not None, "see `applies`"
    # The tiles of a window are masked, and float32 would spill with tiles from the accelerator.
    described = mask.window is None and q.element_size() == 2
    described = described and is_described(arch, k) and is_described(arch, v)
    at_once = programs_at_once(arch, config) * multiprocessors(q)
    splits = max_splits(batch * kv_heads, k.shape[2], at_once)
    parts = q.new_empty(batch, heads, q_length, splits, head_dim, dtype=torch.float32)
    m, mass = (parts.new_empty(parts.shape[:-1]) for _ in range(2))
    arguments = common_arguments(q, k, v, mask, scale, softcap, config)
    ends, ends_k = mask.cu_seqlens, mask.cu_seqlens_k
    with torch.cuda.device_of(q):
        _attention_split[(batch * splits * kv_heads,)](
            k_desc=descriptor(k, config.block_n) if described else None,
            v_desc=descriptor(v, config.block_n) if described else None,
            parts_ptr=parts,
            m_ptr=m,
            mass_ptr=mass,
            cu_q_ptr=ends,
            cu_k_ptr=ends_k,
            stride_cu_q=0 if ends is None else ends.stride(0),
            stride_cu_k=0 if ends_k is None else ends_k.stride(0),
            documents=0 if ends is None else ends.shape[0] - 1,
            splits=splits,
            **arguments,
        )
        _attention_merge[(batch * heads * q_length,)](
            parts_ptr=parts,
            m_ptr=m,
            mass_ptr=mass,
            o_ptr=out,
            lse_ptr=lse,
            **strides("o", out),
            heads=heads,
            q_length=q_length,
            splits=splits,
            unit=scale if softcap is None else softcap,
            factor=arguments["factor"],
            HEAD_DIM=head_dim,
            BLOCK_D=arguments["BLOCK_D"],
            BLOCK_S=64,
            num_warps=4,
            enable_fp_fusion=True,
        )


@triton.jit(do_not_specialize=[*LENGTHS, "documents", "splits"])
def _attention_split(
    q_ptr,
    k_ptr,
    v_ptr,
    k_desc,
    v_desc,
    parts_ptr,
    m_ptr,
    mass_ptr,
    cu_q_ptr,
    cu_k_ptr,
    kv_lengths_ptr,
    q_offsets_ptr,
    positions_ptr,
    stride_qb,
    stride_qh,
    stride_qs,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vs,
    stride_vd,
    stride_cu_q,
    stride_cu_k,
    stride_kv_lengths,
    stride_q_offsets,
    stride_position_row,
    stride_position,
    heads,
    q_length,
    k_length,
    q_offset,
    window,
    documents,
    splits,
    factor,
    softcap_scale,
    CAUSAL: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The softmax of all queries of a batch row over a share of the keys of each document."""
    index = tl.program_id(0)
    kv_heads = heads // GROUP
    kv_head = index % kv_heads
    split = index // kv_heads % splits
    row = index // kv_heads // splits

    line = tl.arange(0, BLOCK_M)
    i, member = line // GROUP, line % GROUP
    first_head = kv_head * GROUP
    column = tl.arange(0, BLOCK_D)[None, :]
    q_ptr += document_offset(row, first_head, 0, stride_qb, stride_qh, stride_qs)
    q_ptrs = q_ptr + document_offset(0, member, i, 0, stride_qh, stride_qs)[:, None]
    in_tile = (i < q_length)[:, None] & (column < HEAD_DIM)
    q = tl.load(q_ptrs + column * stride_qd, mask=in_tile, other=0.0)
    part = document_offset(row, first_head + member, i, heads * q_length, q_length, 1)
    part = part * splits + split

    first, last = 0, 0
    if cu_q_ptr is not None:
        token = tl.cast(row, tl.int64) * q_length
        first = _last_begun(token, cu_q_ptr, stride_cu_q, documents)
        last = _last_begun(token + q_length - 1, cu_q_ptr, stride_cu_q, documents)
    for document in range(first, last + 1):
        q_start = 0
        k_start = 0
        q_count = q_length
        k_count = k_length
        offset = q_offset
        if cu_q_ptr is not None:
            q_start, q_count = _in_row(document, row, q_length, cu_q_ptr, stride_cu_q)
            k_start, k_count = _in_row(document, row, k_length, cu_k_ptr, stride_cu_k)
            offset = k_count - q_count
        if kv_lengths_ptr is not None:
            k_count = tl.load(kv_lengths_ptr + row * stride_kv_lengths).to(tl.int32)
            k_count = tl.maximum(tl.minimum(k_count, k_length), 0)
        if q_offsets_ptr is not None:
            offset = tl.load(q_offsets_ptr + row * stride_q_offsets).to(tl.int32)

        p = (offset + i - q_start)[:, None]
        at_p = None
        of_document = None
        position_count = k_length
        if positions_ptr is not None:
            of_document = positions_ptr + document_offset(
                row, 0, k_start, stride_position_row, 0, stride_position
            )
            if cu_q_ptr is not None:
                position_count = k_count
            at_p = position_at(of_document, stride_position, p, position_count)
        start, _, inner_end, end = key_range(
            offset,
            offset + q_count - 1,
            k_count,
            window,
            of_document,
            stride_position,
            position_count,
            CAUSAL,
            BLOCK_N,
        )
        # The tiles of keys that some query sees, in equal shares: the first ones are one larger.
        count = tl.where(q_count > 0, tl.maximum(tl.cdiv(end - start, BLOCK_N), 0), 0)
        share, rest = count // splits, count % splits
        begin = start + (split * share + tl.minimum(split, rest)) * BLOCK_N
        end = tl.minimum(begin + (share + (split < rest).to(tl.int32)) * BLOCK_N, end)
        # Two stretches: where nothing is hidden, and the rest; of a window's few keys, all.
        middle = begin
        if window is None:
            middle = tl.minimum(tl.maximum(inner_end, begin), end)

        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        mass = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for stretch in tl.static_range(2):
            low, high = begin, middle
            if stretch == 1:
                low, high = middle, end
            if stretch == 1 or window is None:
                acc, mass, m = add_keys(
                    acc,
                    mass,
                    m,
                    q,
                    p,
                    at_p,
                    k_ptr + document_offset(row, kv_head, k_start, stride_kb, stride_kh, stride_ks),
                    v_ptr + document_offset(row, kv_head, k_start, stride_vb, stride_vh, stride_vs),
                    k_desc,
                    v_desc,
                    row,
                    kv_head,
                    k_start,
                    of_document,
                    stride_ks,
                    stride_kd,
                    stride_vs,
                    stride_vd,
                    stride_position,
                    low,
                    high,
                    k_count,
                    window,
                    factor,
                    softcap_scale,
                    CAUSAL,
                    HEAD_DIM,
                    BLOCK_D,
                    BLOCK_N,
                    MASKED=stretch == 1,
                )
        in_document = (i >= q_start) & (i < q_start + q_count) & (i < q_length)
        tl.store(m_ptr + part, m, mask=in_document)
        tl.store(mass_ptr + part, mass, mask=in_document)
        # A share without keys for a query has no sum to add.
        with_keys = (in_document & (mass != 0.0))[:, None] & (column < HEAD_DIM)
        tl.store(parts_ptr + part[:, None] * HEAD_DIM + column, acc, mask=with_keys)


@triton.jit
def _last_begun(token, ends_ptr, stride, documents):
    """The last document that begins at or before a token, by bisection: the one that holds it."""
    low, high = tl.cast(0, tl.int32), tl.cast(documents, tl.int32)
    while high - low > 1:
        middle = (low + high) // 2
        begun = tl.load(ends_ptr + middle * stride) <= token
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle)
    return low


@triton.jit
def _in_row(document, row, length, ends_ptr, stride):
    """(start, count) of a document's tokens in a batch row; not outside of it if ends are wrong."""
    before = tl.cast(row, tl.int64) * length
    start = tl.load(ends_ptr + document * stride) - before
    end = tl.load(ends_ptr + (document + 1) * stride) - before
    start = tl.minimum(tl.maximum(start, 0), length).to(tl.int32)
    end = tl.minimum(tl.maximum(end, start), length).to(tl.int32)
    return start, end - start


@triton.jit(do_not_specialize=["heads", "q_length", "splits"])
def _attention_merge(
    parts_ptr,
    m_ptr,
    mass_ptr,
    o_ptr,
    lse_ptr,
    stride_ob,
    stride_oh,
    stride_os,
    stride_od,
    heads,
    q_length,
    splits,
    unit,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Output and lse of a query from the parts of its softmax."""
    query = tl.program_id(0)
    i = query % q_length
    head = query // q_length % heads
    row = query // q_length // heads
    first = tl.cast(query, tl.int64) * splits
    column = tl.arange(0, BLOCK_D)
    m = tl.full([], float("-inf"), tl.float32)
    mass = tl.zeros([], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for split in range(0, splits, BLOCK_S):
        parts = split + tl.arange(0, BLOCK_S)
        inside = parts < splits
        m_part = tl.load(m_ptr + first + parts, mask=inside, other=float("-inf"))
        mass_part = tl.load(mass_ptr + first + parts, mask=inside, other=0.0)
        with_keys = mass_part != 0.0
        acc_part = tl.load(
            parts_ptr + (first + parts)[:, None] * HEAD_DIM + column[None, :],
            mask=with_keys[:, None] & (column < HEAD_DIM)[None, :],
            other=0.0,
        )
        m_next = tl.maximum(m, tl.max(m_part, 0))
        m_finite = tl.where(m_next == float("-inf"), 0.0, m_next)
        weights = tl.exp2((m_part - m_finite) * factor)
        shrink = tl.exp2((m - m_finite) * factor)
        mass = mass * shrink + tl.sum(weights * mass_part, 0)
        acc = acc * shrink + tl.sum(weights[:, None] * acc_part, 0)
        m = m_next

    without_keys = mass == 0.0
    mass = tl.where(without_keys, 1.0, mass)
    lse = tl.where(without_keys, float("-inf"), m * unit + tl.log(mass))
    o_ptr += document_offset(row, head, i, stride_ob, stride_oh, stride_os)
    out = (acc / mass).to(o_ptr.dtype.element_ty)
    tl.store(o_ptr + column * stride_od, out, mask=column < HEAD_DIM)
    tl.store(lse_ptr + query, lse)
