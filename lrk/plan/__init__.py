"""The memory planner: what a training step allocates, found by tracing the real code without a GPU.

`plan(name, config, settings)` needs no weights and no memory; `python -m lrk.plan.check` takes real
steps and compares.
"""

from lrk.plan.configs import MODELS, load_config
from lrk.plan.planner import Plan, longest, plan
from lrk.plan.settings import Settings

__all__ = ["MODELS", "Plan", "Settings", "load_config", "longest", "plan"]
