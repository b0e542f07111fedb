"""``twistd`` with a shifted wall clock: ``python tests/support/at_time.py SECONDS ARGUMENTS``.

Instead of the seconds, the path of a file can be given; the seconds in it may change. The monotonic clock, and so every
timer, is not shifted.
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
