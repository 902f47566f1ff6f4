"""`python -m lrk.longrope`: as `lrk-data rope`."""

import sys

from lrk.data.command import main

if __name__ == "__main__":
    sys.exit(main(["rope", *sys.argv[1:]]))
