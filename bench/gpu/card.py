"""What the card can do at best: the ceilings that everything else is a share of."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bench.device import DEVICE
from bench.gpu.cell import Cell
from bench.gpu.row import FORWARD, Row
from bench.gpu.sizes import Sizes
from bench.gpu.timing import timed
from lrk.kernels.cross_entropy.chunks import add_product, product


@dataclass(frozen=True)
class Ceilings:
    """Most that one card reached, in its own units; None where it was not measured."""

    gb_per_s: float | None = None
    tflop_per_s: float | None = None

    def share(self, row: Row) -> Row:
        """The row with its share of the ceiling of its kind."""
        for reached, most in (
            (row.tflop_per_s, self.tflop_per_s),
            (row.gb_per_s, self.gb_per_s),
        ):
            if reached is not None and most is not None:
                return replace(row, share=reached / most)
        return row


def ceilings(rows: Iterable[Row]) -> Ceilings:
    """Of the rows of this part."""
    copies = [row.gb_per_s for row in rows if row.gb_per_s is not None]
    products = [row.tflop_per_s for row in rows if row.tflop_per_s is not None]
    return Ceilings(max(copies, default=None), max(products, default=None))


def cells(sizes: Sizes) -> Iterator[Cell]:
    what = Row("copy", FORWARD, {"MiB": sizes.copy_mib}, "int8", "torch")
    yield Cell(what, partial(_time_copy, what, sizes.copy_mib << 20))
    n = sizes.product
    shape = {"M": n, "N": n, "K": n}
    for variant, multiply in PRODUCTS.items():
        what = Row("product", FORWARD, shape, "bfloat16", "torch", variant)
        yield Cell(what, partial(_time_product, what, n, multiply))


def _time_copy(what: Row, size: int) -> Iterator[Row]:
    """Bytes read and bytes written."""
    source = torch.randint(0, 127, (size,), dtype=torch.int8, device=DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    yield timed(what, lambda: target.copy_(source), traffic=2 * size, seconds=0.5)


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "": lambda a, b, total: a @ b,
    "float32 output": lambda a, b, total: product(a, b, total),
    "onto a float32 total": lambda a, b, total: add_product(total, a, b, 1.0),
}


def _time_product(
    what: Row, n: int, multiply: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Iterator[Row]:
    """Of random values: zeros take less current, and less time."""
    a, b = (torch.randn(n, n, device=DEVICE).bfloat16() for _ in range(2))
    total = torch.zeros(n, n, device=DEVICE)
    multiply(a, b, total)
    yield timed(what, lambda: multiply(a, b, total), flop=2 * n**3, seconds=0.5)
