"""Commits while PostgreSQL and the gateway are killed, silent or read-only: none is lost, none is written twice."""

from pathlib import Path

from tests.support.daemon import Daemon, until
from tests.support.postgres import Server
from tests.support.tickets import CommitClient, failures, restart, wait_forwarded


def test_commits_through_failures_of_server_and_gateway_arrive_in_order_and_once(tmp_path: Path) -> None:
    server = Server()
    server.start()
    scale = {"commit_when_away": "ticket"}
    daemon = Daemon(tmp_path, database={"url": server.url}, gateway={"name": "hall-1"}, scale=scale)
    try:
        daemon.start()
        until(lambda: daemon.get("/healthz")[1]["problems"] == [], "PostgreSQL is connected")
        client = CommitClient(daemon)
        number = 0
        for way, (begin, end) in failures(server).items():
            begin()
            for step in range(40):
                client.commit(number)
                number += 1
                if step == 20:
                    (problem,) = [text for text in daemon.get("/healthz")[1]["problems"] if "as tickets" in text]
                    assert "commits wait" in problem, way
                    restart(daemon)
            end()
            for _ in range(20):
                client.commit(number)
                number += 1
            if way == "killed":
                # While tickets are being forwarded.
                restart(daemon)
        wait_forwarded(daemon)
        assert client.lost_twice_disordered(server) == (0, 0, 0)
        tickets = [answer for answer in client.answers.values() if answer["id"] is None]
        assert len(tickets) >= 100
        assert server.sql("SELECT count(*) FROM cynow_commit WHERE ticket LIKE 'hall-1-%'") == [(len(tickets),)]
        # The first answer stays, also once the row is written.
        name, answer = next((name, answer) for name, answer in client.answers.items() if answer["id"] is None)
        assert daemon.commit(name, key=name)[1] == answer
    finally:
        daemon.end()
        server.remove()
