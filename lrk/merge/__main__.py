"""`python -m lrk.merge` is `lrk-merge`."""

import sys

from lrk.merge.command import main

sys.exit(main())
