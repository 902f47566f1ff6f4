from .op import rope, rope_triton
from .phase import phase_increments
from .reference import rope_reference

__all__ = ["phase_increments", "rope", "rope_reference", "rope_triton"]
