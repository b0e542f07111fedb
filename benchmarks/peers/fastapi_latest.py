"""``latest`` on FastAPI: ``uvicorn --factory benchmarks.peers.fastapi_latest:app``."""

from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from benchmarks.peers.reading import given_reading


class Latest(BaseModel):
    """The answer. FastAPI writes JSON fastest where it is told what it is."""

    ok: bool
    scale_id: str
    status: str
    weight: float
    raw: str
    received_at: str
    stale: bool


def app() -> FastAPI:
    """The application."""
    reading = given_reading()
    scales = {reading["scale_id"]: reading}
    made = FastAPI()

    # Not a plain function: it would be run by a thread.
    @made.get("/api/scale-gateway/latest/")  # type: ignore[untyped-decorator, unused-ignore]  # FastAPI may be missing
    async def latest(scale_id: str = "default") -> Latest:
        if scale_id not in scales:
            raise HTTPException(404)
        found: dict[str, Any] = scales[scale_id]
        return {**found, "ok": True, "received_at": found["received_at"].isoformat(), "stale": False}  # type: ignore[return-value]  # it is made one

    return made
