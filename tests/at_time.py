"""``twistd`` whose wall clock is so many seconds ahead: ``python tests/at_time.py SECONDS ARGUMENTS``.

Instead of the seconds, a file that holds them, and in which they may change. The clock that measures ages, and with it
every timer, is the machine's own.
"""

import sys
import time
from pathlib import Path


def main() -> None:
    ahead = sys.argv.pop(1)
    real = time.time
    file = Path(ahead)
    if file.is_file():
        time.time = lambda: real() + float(file.read_text("ascii"))
    else:
        time.time = lambda: real() + float(ahead)
    from twisted.scripts.twistd import run

    run()


if __name__ == "__main__":
    main()
