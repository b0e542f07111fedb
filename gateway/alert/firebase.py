"""Firebase Cloud Messaging by firebase-admin. Everything here blocks and belongs into a thread."""

import contextlib
import logging
import time
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

from gateway.alert.push import NotSentError, PushMessage, Send

TOPIC: Final = "anomaly"

#: Seconds that Google may take to answer; its own advice is 10 at least.
_TIMEOUT: Final = 10.0

#: Seconds to wait after 429 without ``Retry-After``: https://firebase.google.com/docs/cloud-messaging/scale-fcm
_QUOTA: Final = 60.0


def connect_firebase(cred_path: str) -> Send:
    """The function that sends by Firebase with a service account's credentials.

    firebase-admin is imported here only: it takes 0.4 s and 33 MB.

    :raises Exception: whatever firebase-admin has against the file.
    """
    import firebase_admin
    from firebase_admin import credentials, exceptions, messaging
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.auth.transport.requests import Request

    # Without a handler what they log of errors, with what Google answered, would go to standard error and so into ours.
    for name in ("firebase_admin", "google"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    credential = credentials.Certificate(cred_path)
    app = firebase_admin.initialize_app(credential, {"httpTimeout": _TIMEOUT}, name="cynow-gateway")
    # Another version may look otherwise inside. Then its own tries come on top of ours, and nothing worse.
    with contextlib.suppress(AttributeError):
        _without_retries(messaging._get_messaging_service(app))

    def send(message: PushMessage | None) -> None:
        try:
            if message is None:
                # The library's own way waits two minutes for an answer.
                credential.get_credential().refresh(partial(Request(), timeout=_TIMEOUT))
            else:
                note = messaging.Notification(title=message.title, body=message.body)
                messaging.send(messaging.Message(topic=TOPIC, notification=note), app=app)
        except (exceptions.UnavailableError, exceptions.DeadlineExceededError) as error:
            raise _not_sent(error, retry=True) from None
        except exceptions.FirebaseError as error:
            raise _not_sent(error, retry=False) from None
        except TransportError as error:
            raise NotSentError(f"no access token: {type(error).__name__}", retry=True) from None
        except GoogleAuthError as error:
            raise NotSentError(
                f"no access token: {type(error).__name__}", retry=error.retryable, refused=not error.retryable
            ) from None

    return send


def _without_retries(service: Any) -> None:
    """Leave all waiting to the reactor.

    The library would ask again up to four times, and sleep for as long as ``Retry-After`` says, even hours, in the one
    thread that there is. It has no option for that (https://github.com/firebase/firebase-admin-python/issues/554), so
    the adapter that its session has for FCM is told. Access tokens keep google-auth's three quick tries.
    """
    adapter = service._client.session.get_adapter(service._fcm_url)
    adapter.max_retries = adapter.max_retries.new(total=0, read=False)


def _not_sent(error: Any, *, retry: bool) -> NotSentError:
    response = error.http_response
    if response is None:
        return NotSentError(f"{type(error).__name__}: {type(error.cause).__name__}", retry=retry)
    status = response.status_code
    after = _seconds(response.headers.get("Retry-After"))
    if status == 429 and after is None:
        after = _QUOTA
    return NotSentError(
        f"HTTP {status}", retry=status == 429 or status >= 500, after=after, refused=status in {401, 403}
    )


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` is seconds or a date (RFC 9110, 10.2.3); a second at least, None for nonsense."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return max(1.0, float(retry_after))
    try:
        return max(1.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
