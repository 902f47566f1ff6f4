"""`python -m lrk.analysis`: as `lrk-data analyze`."""

import sys

from lrk.analysis.command import main

sys.exit(main())
