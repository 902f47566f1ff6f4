"""`lrk-data assemble`: long samples out of short documents that belong together."""

from lrk.data.assemble.arguments import Assembly
from lrk.data.assemble.assembly import assemble
from lrk.data.assemble.verification import Verification

__all__ = ["Assembly", "Verification", "assemble"]
