"""Names of all dependencies without their bounds, for ``make test-latest``."""

import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).parent.parent.parent / "setup.cfg"


def dependencies() -> list[str]:
    """Return the name of each dependency of the gateway and of its tests, with its extras."""
    config = configparser.ConfigParser()
    config.read(SETUP, "utf-8")
    texts = [config["options"]["install_requires"], config["options.extras_require"]["test"]]
    return [re.split(r"\s*[<>=]", line)[0] for text in texts for line in text.splitlines() if line]


if __name__ == "__main__":
    sys.stdout.write("\n".join(dependencies()) + "\n")
