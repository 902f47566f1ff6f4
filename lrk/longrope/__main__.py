"""`python -m lrk.longrope`: as `lrk-data rope`."""

import sys

from lrk.longrope.command import main

sys.exit(main())
