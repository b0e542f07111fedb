"""Check of the credentials for push messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway.alert.firebase import connect_firebase
from gateway.alert.sender import NotSentError
from gateway.doctor.findings import Finding, error, ok, warning
from gateway.doctor.plant import Plant

_KEY: Final = "fcm.cred_path"
_NEW_KEY: Final = "download a new key: Firebase console, project settings, service accounts"


def check_push(plant: Plant) -> Iterator[Finding]:
    """Read the credentials and ask Google for an access token."""
    given = plant.settings.fcm.cred_path
    if given is None:
        yield ok(_KEY, "not set: push messages are off")
        return
    path = plant.path_of(given)
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as problem:
        yield error(_KEY, f"{path} cannot be read: {problem.strerror}", "correct fcm.cred_path, or the file's rights")
        return
    except ValueError:
        yield error(_KEY, f"{path} is not JSON", _NEW_KEY)
        return
    if not isinstance(content, dict) or content.get("type") != "service_account":
        yield error(_KEY, f"{path} is not the key of a service account", _NEW_KEY)
        return
    try:
        send = connect_firebase(path)
    except Exception as problem:  # the library has many, and their texts may quote the key
        yield error(_KEY, f"{path} cannot be used: {type(problem).__name__}", _NEW_KEY)
        return
    try:
        send(None)
    except NotSentError as problem:
        if problem.retry:
            yield warning(
                _KEY,
                f"Google gave {problem.reason}",
                "check the network: the gateway needs https to oauth2.googleapis.com and fcm.googleapis.com",
            )
        else:
            yield error(
                _KEY,
                f"Google refuses the credentials: {problem.reason.rpartition(': ')[2]}",
                f"check the clock, or {_NEW_KEY}",
            )
    else:
        yield ok(_KEY, f"{path}: Google gave an access token for project {content.get('project_id')}")
