"""`python -m lrk.analysis`: as `lrk-data analyze`."""

import sys

from lrk.data.command import main

if __name__ == "__main__":
    sys.exit(main(["analyze", *sys.argv[1:]]))
