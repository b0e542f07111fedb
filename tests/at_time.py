"""``twistd`` whose wall clock is so many seconds ahead: ``python tests/at_time.py SECONDS ARGUMENTS``.

The clock that measures ages, and with it every timer, is the machine's own.
"""

import sys
import time


def main() -> None:
    ahead = float(sys.argv.pop(1))
    real = time.time
    time.time = lambda: real() + ahead
    from twisted.scripts.twistd import run

    run()


if __name__ == "__main__":
    main()
