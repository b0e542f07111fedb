"""The same live events by python-socketio: an ASGI application for uvicorn, and whoever feeds it by TCP.

``NAMESPACE`` is the one that its clients join, ``FEED_PORT`` where a line of JSON is an ``anomaly`` event for all of
them.
"""

import asyncio
import json
import os

import socketio


def application() -> socketio.ASGIApp:
    """What uvicorn runs."""
    namespace = os.environ["NAMESPACE"]
    server = socketio.AsyncServer(async_mode="asgi", namespaces=[namespace])

    async def feed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await server.emit("anomaly", json.loads(line), namespace=namespace)
        writer.close()

    async def begin() -> None:
        await asyncio.start_server(feed, "127.0.0.1", int(os.environ["FEED_PORT"]))

    return socketio.ASGIApp(server, on_startup=begin)
