"""Firebase Cloud Messaging through firebase-admin. Every function blocks, and must be called in a thread."""

import contextlib
import logging
import time
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final

from gateway.alert.sender import NotSentError, PushMessage, Send

#: FCM topic of all messages.
TOPIC: Final = "anomaly"

#: Maximum seconds for an answer; Google advises at least 10.
_TIMEOUT: Final = 10.0

#: Seconds to wait after status 429 without ``Retry-After``: https://firebase.google.com/docs/cloud-messaging/scale-fcm
_QUOTA: Final = 60.0


def connect_firebase(cred_path: str) -> Send:
    """Return the function that sends through Firebase.

    firebase-admin is imported here only: it takes 0.4 s and 33 MB.

    :param cred_path: path of a service account's credentials.
    :raises Exception: firebase-admin cannot use the file.
    """
    import firebase_admin
    from firebase_admin import credentials, exceptions, messaging
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.auth.transport.requests import Request

    # Without a handler, errors that these libraries log would go to standard error, with Google's answers.
    for name in ("firebase_admin", "google"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    credential = credentials.Certificate(cred_path)
    app = firebase_admin.initialize_app(credential, {"httpTimeout": _TIMEOUT}, name="cynow-gateway")
    # If another version has other internals, its own retries merely add to those of the gateway.
    with contextlib.suppress(AttributeError):
        _turn_off_retries(messaging._get_messaging_service(app))

    def send(message: PushMessage | None) -> None:
        try:
            if message is None:
                # The library's own function waits up to two minutes for an answer.
                credential.get_credential().refresh(partial(Request(), timeout=_TIMEOUT))
            else:
                note = messaging.Notification(title=message.title, body=message.body)
                messaging.send(messaging.Message(topic=TOPIC, notification=note), app=app)
        except (exceptions.UnavailableError, exceptions.DeadlineExceededError) as error:
            raise _not_sent_error(error, retry=True) from None
        except exceptions.FirebaseError as error:
            raise _not_sent_error(error, retry=False) from None
        except TransportError as error:
            raise NotSentError(f"no access token: {type(error).__name__}", retry=True) from None
        except GoogleAuthError as error:
            raise NotSentError(
                f"no access token: {type(error).__name__}", retry=error.retryable, refused=not error.retryable
            ) from None

    return send


def _turn_off_retries(service: Any) -> None:
    """Turn off the library's retries of messages; those of access tokens are quick and stay.

    The library would retry up to four times, and block the only thread for ``Retry-After`` seconds, even hours. It has
    no option for that (https://github.com/firebase/firebase-admin-python/issues/554).
    """
    adapter = service._client.session.get_adapter(service._fcm_url)
    adapter.max_retries = adapter.max_retries.new(total=0, read=False)


def _not_sent_error(error: Any, *, retry: bool) -> NotSentError:
    response = error.http_response
    if response is None:
        return NotSentError(f"{type(error).__name__}: {type(error.cause).__name__}", retry=retry)
    status = response.status_code
    after = parse_retry_after(response.headers.get("Retry-After"))
    if status == 429 and after is None:
        after = _QUOTA
    return NotSentError(
        f"HTTP {status}", retry=status == 429 or status >= 500, after=after, refused=status in {401, 403}
    )


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, at least 1; ``None`` if it is missing or not valid.

    :param value: seconds or a date (RFC 9110, 10.2.3).
    """
    if value is None:
        return None
    if value.isdecimal():
        return max(1.0, float(value))
    try:
        return max(1.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
