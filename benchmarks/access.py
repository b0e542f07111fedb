"""Costs of access control and limits, and what the time of a refusal tells about a token."""

import contextlib
import http.client
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.scales import cpu_seconds
from benchmarks.table import Row
from gateway.auth.access import AccessControl
from gateway.auth.tokens import new_token, write_tokens
from tests.support.daemon import Daemon, running, until

ROUNDS: Final = 7
CONNECTIONS: Final = 50

#: Part of the rate of `latest` that has to remain.
GOAL: Final = 0.9

#: Tokens of the file.
TOKENS: Final = 20

#: Pairs of refusals that are compared, and the largest |t| of Welch's test that counts as no difference: that of dudect
#: (https://eprint.iacr.org/2016/1123).
PAIRS: Final = 20_000
REQUESTS: Final = 5_000
MAX_T: Final = 4.5

_LATEST: Final = "/api/scale-gateway/latest/"


def rows(folder: Path, seconds: float) -> list[Row]:
    """All of them."""
    made = [new_token(f"t{number}", ("read",), datetime.now(UTC), None) for number in range(TOKENS)]
    token = made[TOKENS // 2][0]
    for name in ("open", "guarded"):
        (folder / name).mkdir()
    write_tokens(str(folder / "guarded" / "tokens.json"), [entry for _, entry in made])
    access = AccessControl(time.time)
    access.update([entry for _, entry in made], ())
    found = [_compare("in the process", PAIRS, token, lambda text: _timed(access, text))]
    limits = {"requests_per_second": 1_000_000, "request_burst": 1_000_000}
    with (
        running(folder / "open") as plain,
        running(folder / "guarded", auth={"tokens_file": "tokens.json"}, limits=limits) as guarded,
    ):
        for daemon in (plain, guarded):
            daemon.weigh(b"ST , +000053.26 _kg")
        until(plain.latest_is(53.26), "the weight")
        connection = http.client.HTTPConnection("127.0.0.1", guarded.port)
        with contextlib.closing(connection):
            found.append(_compare("over HTTP", REQUESTS, token, lambda text: _requested(connection, text)))
        found.append(_rates(plain, guarded, token, seconds))
    return found


# -- what a refusal tells


def _compare(where: str, count: int, token: str, measure: Callable[[str], float]) -> Row:
    """Compare the times of wrong tokens that begin like a right one with those of others."""
    random = Random(14)
    near, far = f"{token[:-1]}{'A' if token[-1] != 'A' else 'B'}", "x" * len(token)
    times: dict[str, list[float]] = {near: [], far: []}
    for _ in range(count):
        # In random order, so that nothing periodic counts for one of them.
        for text in random.sample((near, far), 2):
            times[text].append(measure(text))
    # The slowest tenth is the system's.
    one, other = (sorted(values)[: int(0.9 * count)] for values in times.values())
    t = (statistics.mean(one) - statistics.mean(other)) / (
        (statistics.variance(one) + statistics.variance(other)) / len(one)
    ) ** 0.5
    medians = [1e6 * statistics.median(values) for values in times.values()]
    return Row(
        f"refusal of a wrong token {where}: one letter from a right one, or none the same, {count} each",
        f"{medians[0]:.2f} us and {medians[1]:.2f} us, t = {t:.1f}",
        f"|t| under {MAX_T}",
        abs(t) < MAX_T,
    )


def _timed(access: AccessControl, text: str) -> float:
    token = text.encode()
    began = time.perf_counter()
    access.identify(token)
    return time.perf_counter() - began


def _requested(connection: http.client.HTTPConnection, text: str) -> float:
    began = time.perf_counter()
    connection.request("GET", _LATEST, headers={"Authorization": f"Bearer {text}"})
    answer = connection.getresponse()
    answer.read()
    took = time.perf_counter() - began
    if answer.status != 401:
        raise RuntimeError(f"a wrong token got {answer.status}")
    return took


# -- what it costs


def _rates(plain: Daemon, guarded: Daemon, token: str, seconds: float) -> Row:
    what = f"latest with {TOKENS} tokens and a limit of requests, {CONNECTIONS} connections kept alive"
    wrk = shutil.which("wrk")
    if wrk is None:
        return Row(what, "missing: wrk", f">= {GOAL} x without")
    ratios, rates, bare = [], [], []
    for number in range(ROUNDS):
        part = max(1, round(seconds / ROUNDS))
        order = (plain, guarded) if number % 2 else (guarded, plain)
        found = {daemon: _rate(wrk, daemon, token, part) for daemon in order}
        rates.append(found[guarded])
        bare.append(found[plain])
        ratios.append(found[guarded] / found[plain])
    ratio = statistics.median(ratios)
    return Row(
        what,
        f"{statistics.median(rates):,.0f}/s of CPU",
        f">= {GOAL} x without",
        ratio >= GOAL,
        f"without: {statistics.median(bare):,.0f}/s of CPU",
        ratio,
    )


def _rate(wrk: str, daemon: Daemon, token: str, seconds: int) -> float:
    """Good answers a CPU second of the daemon, which other load on the machine changes less than the wall clock."""
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-H", f"Authorization: Bearer {token}"]
    before = cpu_seconds(daemon.process.pid)
    text = subprocess.run(
        [*command, f"http://127.0.0.1:{daemon.port}{_LATEST}"], check=True, capture_output=True, text=True
    ).stdout
    used = cpu_seconds(daemon.process.pid) - before
    count = re.search(r"(\d+) requests in", text)
    if count is None or "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    return int(count[1]) / used
