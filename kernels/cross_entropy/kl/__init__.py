from .op import linear_kl, linear_kl_triton
from .reference import linear_kl_reference

__all__ = ["linear_kl", "linear_kl_reference", "linear_kl_triton"]
