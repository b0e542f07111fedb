"""The reading that peers answer, held in memory as the gateway holds its own."""

import json
import os
from datetime import datetime
from typing import Any, Final

#: The gateway's answer as JSON, in the peer's environment.
VARIABLE: Final = "CYNOW_BENCHMARK_LATEST"


def given_reading() -> dict[str, Any]:
    """What the gateway answered, with its time as a time and without what every answer tells anew."""
    reading: dict[str, Any] = json.loads(os.environ[VARIABLE])
    del reading["ok"], reading["stale"]
    return {**reading, "received_at": datetime.fromisoformat(reading["received_at"])}
