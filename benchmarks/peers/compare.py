"""pyhub beside what one would use instead, in turns, in one table: `make bench-peers`.

    python benchmarks/peers/compare.py                 # all that is installed, some 20 minutes
    python benchmarks/peers/compare.py --quick         # one short repetition
    python benchmarks/peers/compare.py --ways pyzmq "iceoryx2, event"

See README.md here for what is measured, and comparison.py for the options.
"""

import sys

# Every child process imports this file again, and is measured: nothing that is
# not needed there may be imported outside of this block.
if __name__ == "__main__":
    from comparison import main

    sys.exit(main())
