"""Makes the calls of `jobs.py` over the stand-in for the driver; prints what they launch.

In a process of its own, as everything over that stand-in.
"""

from bench.gpu.compile import call
from tests.bench.gpu.jobs import JOBS
from tests.kernels.launch.stand_in_driver import StandIn

if __name__ == "__main__":
    stand_in = StandIn()
    stand_in.use((9, 0))
    for job in JOBS:
        call(job)
    print(*(launch.kernel.decode() for launch in stand_in.take_launches()))
