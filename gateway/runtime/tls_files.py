"""Files of the TLS of a listener, and errors in them."""

from collections.abc import Callable
from dataclasses import dataclass, replace


class TlsError(Exception):
    """Error in a certificate, a key or an authority; the text is one line for the operator.

    :ivar key: configuration key.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of the files of one listener, in PEM.

    :ivar cert: certificate, followed by those of intermediate authorities.
    :ivar client_ca: authorities of client certificates; ``None`` if clients need no certificate.
    """

    cert: str
    key: str
    client_ca: str | None = None

    def located(self, locate: Callable[[str], str]) -> "TlsFiles":
        """Return the absolute paths.

        :param locate: joins the base of relative paths and a path.
        """
        client_ca = None if self.client_ca is None else locate(self.client_ca)
        return replace(self, cert=locate(self.cert), key=locate(self.key), client_ca=client_ca)
