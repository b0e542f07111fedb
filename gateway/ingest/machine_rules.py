"""Proofs that a DAQ program must give before it may use the name of a machine.

A machine of the section ``machines`` may be bound to networks, to the name in a client certificate, and to a secret; a
connection must satisfy all that are configured for it.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.config.settings import MachineSettings
from gateway.runtime.networks import NetworkSet
from gateway.runtime.secret_files import SecretFileError, read_secret
from gateway.wire.errors import shown_text

#: Maximum names of a certificate that a log line shows.
_MAX_SHOWN: Final = 3


class MachineRuleError(Exception):
    """Error for a rule that cannot be used.

    :param key: configuration key.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Proofs:
    """Proofs that a connection has given, kept to be judged again when the rules change.

    :ivar certificates: names in its client certificate.
    :ivar secret: digest of the secret that it sent; ``None`` without one.
    """

    address: str
    certificates: frozenset[str] = frozenset()
    secret: bytes | None = field(default=None, repr=False)


class MissingProof(NamedTuple):
    """The first proof that a connection lacks.

    :ivar proof: ``listed``, ``allow``, ``certificate`` or ``secret``.
    :ivar reason: reason for a log line, which the author of a DAQ program can act on.
    """

    proof: str
    reason: str


class _Rule(NamedTuple):
    allowed: NetworkSet
    certificate: str | None
    secret: bytes | None


class MachineRules:
    """Rules of all machines that have some.

    :param listed_only: whether machines without a rule are refused.
    """

    def __init__(self, rules: Mapping[str, _Rule] | None = None, listed_only: bool = False) -> None:
        self._rules = rules or {}
        self._listed_only = listed_only

    @classmethod
    def read(cls, machines: Mapping[str, MachineSettings], listed_only: bool, folder: str) -> "MachineRules":
        """Return the configured rules, with the secrets of their files. It blocks.

        :param folder: base of relative paths.
        :raises MachineRuleError: a file cannot be used.
        """
        rules = {
            machine: _Rule(NetworkSet(settings.allow), settings.certificate, _secret_of(machine, settings, folder))
            for machine, settings in machines.items()
        }
        return cls(rules, listed_only)

    def missing_proof(self, machine: str, proofs: Proofs) -> MissingProof | None:
        """Return the first proof that a connection lacks for a machine; ``None`` if it may use its name."""
        rule = self._rules.get(machine)
        if rule is None:
            if self._listed_only:
                return MissingProof("listed", "daq.listed_only is set, and the machine is not in machines")
            return None
        if rule.allowed and proofs.address not in rule.allowed:
            return MissingProof("allow", f"its address is not in machines.{machine}.allow")
        if rule.certificate is not None and rule.certificate not in proofs.certificates:
            return MissingProof("certificate", _certificate_reason(machine, rule.certificate, proofs.certificates))
        if rule.secret is not None:
            if proofs.secret is None:
                form = f'("name", {{"name": "{machine}", "secret": ...}})'
                return MissingProof("secret", f"this program must send its secret: {form}")
            if not hmac.compare_digest(rule.secret, proofs.secret):
                return MissingProof("secret", f"the secret it sent is not that of machines.{machine}.secret_file")
        return None


def no_client_names(transport: object) -> frozenset[str]:
    """Return no names: the listener asks for no client certificates."""
    return frozenset()


def digest_of(secret: str) -> bytes:
    """Return the digest of a secret, which is all that is kept of it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _secret_of(machine: str, settings: MachineSettings, folder: str) -> bytes | None:
    if settings.secret_file is None:
        return None
    try:
        return digest_of(read_secret(os.path.join(folder, settings.secret_file)))
    except (SecretFileError, ValueError) as error:
        raise MachineRuleError(f"machines.{machine}.secret_file", str(error)) from error


def _certificate_reason(machine: str, name: str, presented: frozenset[str]) -> str:
    shown = ", ".join(map(shown_text, sorted(presented)[:_MAX_SHOWN]))
    return (
        f"this program must present a client certificate for {shown_text(name)} (machines.{machine}.certificate);"
        f" it presented {f'one for {shown}' if presented else 'none'}"
    )
