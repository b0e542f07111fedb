"""Machines that are bound to addresses, certificates and secrets: which connections may use their names."""

import itertools
import json
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.testing import StringTransport

from gateway.commands.check import check_config
from gateway.config.settings import DaqSettings, MachineSettings
from gateway.ingest.daq import DaqFactory
from gateway.ingest.machine_rules import MachineRuleError, MachineRules, Proofs, digest_of
from gateway.ingest.takeovers import HOLD
from gateway.model.records import Presence
from gateway.runtime.limited_log import shown
from gateway.runtime.secret_files import MAX_SECRET
from gateway.wire.errors import WireError, shown_text
from gateway.wire.frames import FrameReader
from gateway.wire.messages import InvalidMessage, Name
from tests.support.frames import frame
from tests.unit.test_frames import read_all
from tests.unit.test_ingest import Ingest

SECRET = "correct horse Батарейка"
CERTIFICATE = "shotblast.plant.example"
NFD = "\u110c\u1175\u11ab\u1103\u1169\u11bc\u1100\u1175"
NFC = "\uc9c4\ub3d9\uae30"


class BoundTransport(StringTransport):
    """Transport of a peer with an address and the names of a client certificate."""

    def __init__(self, address: str, names: frozenset[str]) -> None:
        kind = IPv6Address if ":" in address else IPv4Address
        super().__init__(peerAddress=kind("TCP", address, 51022))
        self.names = names


class Bound(Ingest):
    """Connections to a factory with rules."""

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        Path(self.folder, "secret").write_text(f"{SECRET}\n", "utf-8")
        self.factory = DaqFactory(
            self.reactor, self.bus, self.clock, self.counters, self.warnings, DaqSettings(), max_connections=100
        )
        self.factory.client_names = lambda transport: transport.names

    def bind(self, *, listed_only: bool = False, **machines: dict[str, Any]) -> None:
        rules = {name: MachineSettings.model_validate(rule) for name, rule in machines.items()}
        self.factory.use_rules(MachineRules.read(rules, listed_only, self.folder))

    def name(self, data: Any, address: str = "192.0.2.7", *names: str) -> BoundTransport:
        """Return the transport of a new connection that has sent its name."""
        protocol = self.factory.buildProtocol(None)
        assert protocol is not None
        transport = BoundTransport(address, frozenset(names))
        protocol.makeConnection(transport)
        protocol.dataReceived(frame("name", data))
        return transport

    def unproven(self, proof: str) -> float:
        labels = {"proof": proof}
        return self.counters.registry.get_sample_value("cynow_daq_unproven_connections_total", labels) or 0.0

    def presence(self) -> list[tuple[str, bool]]:
        return [(record.name, record.connected) for record in self.records if isinstance(record, Presence)]

    def is_refused(self, transport: StringTransport) -> bool:
        """Return whether a connection is held unread, and is closed after a second."""
        if transport.producerState != "paused":
            return False
        self.assertFalse(transport.disconnecting)
        self.reactor.advance(HOLD)
        self.assertTrue(transport.disconnecting)
        return True


class ProofTests(Bound):
    RULE: ClassVar[dict[str, Any]] = {
        "allow": ["192.0.2.0/24", "2001:db8::/64"],
        "certificate": CERTIFICATE,
        "secret_file": "secret",
    }
    GOOD: ClassVar[dict[str, Any]] = {
        "allow": ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7"],
        "certificate": [(CERTIFICATE,), (CERTIFICATE, "other")],
        "secret_file": [SECRET],
    }
    WRONG: ClassVar[dict[str, Any]] = {
        "allow": ["203.0.113.7", "2001:db8:0:1::7", "::1"],
        "certificate": [(), ("other",), (CERTIFICATE.upper(),), (f"x{CERTIFICATE}",)],
        "secret_file": [None, "", f"{SECRET}\n", SECRET[:-1], SECRET.upper(), "\ud800", "x" * 1000],
    }
    LABELS: ClassVar[dict[str, str]] = {"allow": "allow", "certificate": "certificate", "secret_file": "secret"}

    def try_it(self, address: str, names: tuple[str, ...], secret: str | None) -> BoundTransport:
        data: Any = "ShotBlast" if secret is None else {"name": "ShotBlast", "secret": secret}
        return self.name(data, address, *names)

    def test_connection_needs_every_proof_that_is_configured(self) -> None:
        """Try each set of configured proofs with each right and wrong value, against a connection that has all."""
        self.factory.machines.remember("ShotBlast")
        for count in range(4):
            for keys in itertools.combinations(self.RULE, count):
                self.factory.close()
                self.bind()
                self.name("ShotBlast")
                self.bind(ShotBlast={key: self.RULE[key] for key in keys})
                good = self.try_it("192.0.2.7", (CERTIFICATE,), SECRET)
                for wrong in (None, *keys):
                    values = [self.WRONG[key] if key == wrong else self.GOOD[key] for key in self.RULE]
                    for address, names, secret in itertools.product(*values):
                        before = 0.0 if wrong is None else self.unproven(self.LABELS[wrong])
                        tried = self.try_it(address, names, secret)
                        if wrong is None:
                            self.assertEqual(tried.producerState, "producing", (keys, address, names))
                            self.assertEqual(good.producerState, "paused", "it was taken over")
                            good = tried
                            self.reactor.advance(60)
                        else:
                            self.assertTrue(self.is_refused(tried), (keys, wrong, address, names, secret))
                            self.assertEqual(good.producerState, "producing")
                            self.assertEqual(self.unproven(self.LABELS[wrong]), before + 1)

    def test_refusal_says_which_proof_is_missing(self) -> None:
        self.bind(ShotBlast=self.RULE)
        self.name("ShotBlast", "203.0.113.7")
        self.name("ShotBlast", "192.0.2.1")
        self.name("ShotBlast", "192.0.2.2", "b.example", "a.example")
        self.name("ShotBlast", "192.0.2.3", CERTIFICATE)
        self.name({"name": "ShotBlast", "secret": "wrong horse"}, "192.0.2.4", CERTIFICATE)
        far = "DAQ connection of 203.0.113.7:51022 (machine ShotBlast) is closed: "
        of = "DAQ connection of 192.0.2.{}:51022 (machine ShotBlast) is closed: "
        needed = f"this program must present a client certificate for '{CERTIFICATE}' (machines.ShotBlast.certificate)"
        self.assertEqual(
            self.log.lines,
            [
                f"{far}its address is not in machines.ShotBlast.allow",
                f"{of.format(1)}{needed}; it presented none",
                f"{of.format(2)}{needed}; it presented one for 'a.example', 'b.example'",
                f'{of.format(3)}this program must send its secret: ("name", {{"name": "ShotBlast", "secret": ...}})',
                f"{of.format(4)}the secret it sent is not that of machines.ShotBlast.secret_file",
            ],
        )
        self.assertEqual(self.counters.daq_refused._value.get(), 5)

    def test_machine_without_a_rule_needs_no_proof(self) -> None:
        self.bind(ShotBlast=self.RULE)
        for data in ("Press", {"name": "Press"}, {"name": "Press", "secret": "anything"}):
            self.assertEqual(self.name(data, "203.0.113.7").producerState, "producing")
        self.assertEqual(self.presence(), [("Press", True)])

    def test_listed_only_refuses_other_machines(self) -> None:
        self.bind(listed_only=True, ShotBlast={})
        self.assertEqual(self.name("ShotBlast").producerState, "producing")
        self.assertTrue(self.is_refused(self.name("Press")))
        self.assertIn("daq.listed_only is set, and the machine is not in machines", self.log.lines[-1])
        self.assertEqual(self.unproven("listed"), 1)
        self.assertEqual(self.presence(), [("ShotBlast", True)])

    def test_name_is_compared_in_its_composed_form(self) -> None:
        self.bind(listed_only=True, **{NFC: {"secret_file": "secret"}})
        for name in (NFC, NFD):
            self.assertTrue(self.is_refused(self.name(name)))
            self.assertEqual(self.name({"name": name, "secret": SECRET}).producerState, "producing")

    def test_rules_that_change_refuse_connections_that_do_not_satisfy_them(self) -> None:
        secret = self.name({"name": "A", "secret": SECRET})
        plain = self.name("B")
        near = self.name("C", "192.0.2.7")
        far = self.name("D", "203.0.113.7")
        certified = self.name("E", "192.0.2.7", CERTIFICATE)
        secret_rule = {"secret_file": "secret"}
        allow = {"allow": ["192.0.2.0/24"]}
        certificate = {"certificate": CERTIFICATE}
        self.bind(A=secret_rule, B=secret_rule, C=allow, D=allow, E=certificate)
        states = [transport.producerState for transport in (secret, plain, near, far, certified)]
        self.assertEqual(states, ["producing", "paused", "producing", "paused", "producing"])
        self.reactor.advance(HOLD)
        self.assertEqual([plain.disconnecting, far.disconnecting, near.disconnecting], [True, True, False])
        # The secret changes.
        Path(self.folder, "secret").write_text("another", "utf-8")
        self.bind(A=secret_rule, C=allow, E=certificate)
        self.assertTrue(self.is_refused(secret))
        self.bind(listed_only=True, E=certificate)
        self.assertTrue(self.is_refused(near))
        self.assertEqual(certified.producerState, "producing")
        # A rule that is gone refuses nobody.
        self.bind()
        self.assertEqual(self.name("A").producerState, "producing")

    def test_proofs_do_not_show_the_secret(self) -> None:
        proofs = Proofs("192.0.2.7", frozenset(), digest_of(SECRET))
        self.assertNotIn("secret", repr(proofs))
        self.assertNotIn(SECRET, repr(Name("M", SECRET)))


# -- files of secrets


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read {path}: No such file or directory"),
        (b"", "{path} is empty; write the secret into it"),
        (b"\r\n", "{path} is empty; write the secret into it"),
        (b"\xef\xbb\xbf\n", "{path} is empty; write the secret into it"),
        (b"\xff\xfes\0", "{path}: the secret is not UTF-8 text"),
        (b"one\ntwo\n", "{path}: a secret is one line without control characters"),
        (b"x" * (MAX_SECRET + 1), "{path}: the secret is longer than 1000 bytes"),
        (b"x" * 10**6, "{path}: the secret is longer than 1000 bytes"),
        (b"secret", ""),
        (b"secret\r\n", ""),
        (b"\xef\xbb\xbfsecret\n", ""),
        (b"x" * MAX_SECRET + b"\r\n", ""),
    ],
)
def test_file_of_a_secret_that_cannot_be_used_is_a_problem(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "shotblast"
    if content is not None:
        path.write_bytes(content)
    config = tmp_path / "config.yaml"
    config.write_text("machines: {ShotBlast: {secret_file: shotblast}}")
    found = [str(each) for each in check_config(config, {}, str(tmp_path)).fatal]
    expected = f"machines.ShotBlast.secret_file: {problem.format(path=path)}" if problem else ""
    assert found == ([expected] if expected else [])
    rule = {"ShotBlast": MachineSettings(secret_file="shotblast")}
    if expected:
        with pytest.raises(MachineRuleError) as caught:
            MachineRules.read(rule, False, str(tmp_path))
        assert str(caught.value) == expected
    else:
        rules = MachineRules.read(rule, False, str(tmp_path))
        sent = (content or b"").decode("utf-8-sig").strip()
        assert rules.missing_proof("ShotBlast", Proofs("", secret=digest_of(sent))) is None


def test_machine_in_two_forms_of_unicode_is_a_problem(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f'machines: {{"{NFC}": {{allow: [127.0.0.1]}}, "{NFD}": {{}}}}', "utf-8")
    assert [str(each) for each in check_config(config, {}, str(tmp_path)).fatal] == [
        f"machines: machine {NFC} is listed twice, in two spellings"
    ]


# -- the frame of the name


def first(stream: bytes, size: int = 10**9) -> Any:
    """Return the first message of a connection, or the reason why it is closed."""
    reader = FrameReader()
    try:
        for at in range(0, len(stream), size):
            for message in read_all(reader, stream[at : at + size]):
                return message
    except WireError as error:
        return str(error)
    return None


def forms(data: Any) -> list[bytes]:
    """Return the frame of a name in each form."""
    pickles = [
        pickle.dumps(pair, protocol) + end
        for pair in (("name", data), ["name", data], {"event": "name", "data": data})
        for protocol in range(6)
        for end in (b"\0", b"\\o")
    ]
    texts = [json.dumps(pair).encode() + b"\0" for pair in (["name", data], {"event": "name", "data": data})]
    return [*pickles, *texts]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("ShotBlast", Name("ShotBlast")),
        ({"name": "ShotBlast"}, Name("ShotBlast")),
        ({"name": "ShotBlast", "secret": SECRET}, Name("ShotBlast", SECRET)),
        ({"secret": SECRET, "name": "ShotBlast"}, Name("ShotBlast", SECRET)),
        ({"name": "ShotBlast", "secret": ""}, Name("ShotBlast", "")),
        ({"name": NFD, "secret": SECRET}, Name(NFC, SECRET)),
    ],
)
def test_name_frame_may_have_a_secret(data: Any, expected: Name) -> None:
    for stream in forms(data):
        for size in (1, 7, len(stream)):
            assert first(stream, size) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({}, "name: the machine's name is needed"),
        ({"secret": SECRET}, 'or a dict {"name": ..., "secret": ...} without other keys'),
        ({"name": "ShotBlast", "secret": SECRET, "token": "x"}, "without other keys"),
        ({"name": "ShotBlast", "Secret": SECRET}, "without other keys"),
        ({"name": "ShotBlast", "secret": 5}, "secret of the machine: text is needed, this is a number"),
        ({"name": "ShotBlast", "secret": None}, "secret of the machine: text is needed, this is None"),
        ({"name": "ShotBlast", "secret": [SECRET]}, "secret of the machine: text is needed, this is a list"),
        ({"name": 5, "secret": SECRET}, "machine name: text is needed, this is a number"),
        ({"name": "Press#1", "secret": SECRET}, "machine name 'Press#1': '#' is not allowed"),
        ([{"name": "ShotBlast", "secret": SECRET}], "machine name: text is needed, this is a list"),
    ],
)
def test_name_frame_of_another_form_is_refused_in_words(data: Any, reason: str) -> None:
    for stream in forms(data):
        found = first(stream)
        assert isinstance(found, str)
        assert reason in found
        assert SECRET[:7] not in found


def test_name_frame_with_keys_that_are_no_text_is_refused() -> None:
    found = first(pickle.dumps(("name", {"name": "ShotBlast", 5: SECRET})) + b"\0")
    assert "without other keys" in found
    assert SECRET not in found


@pytest.mark.parametrize(
    "stream",
    [
        b'"name", {"name": "M", "secret": "hunter2"}\0',
        b'name {"name": "M", "secret": "hunter2"}\0',
        b"name=M Secret=hunter2\n",
        b"{'name': 'M', 'secret': 'hunter2'}\0",
        b'["name", {"name": "M", "secret": hunter2}]\0',
        b'["name", {"name": "M", "secret": hunter2}]x' + b" " * 100,
        b'["name", {"name": "M", "secret": ' + b" " * 70_000 + b"hunter2}]\0",
        b'["name", {"name": "M", "secret": "hunter2", }]\0',
        b'["name", {"name": "M", "secret": "hunter2"}]\\o["name", "M"]',
        b'["name", "M", "hunter2"]\0',
        b'["DataUpdate", {"secret": "hunter2"}]\0',
        b'{"name": "M", "secret": "hunter2"}\0',
        pickle.dumps(("name", {"name": "M", "secret": b"hunter2"})) + b"\0",
        pickle.dumps(("name", {"name": "M", "secret": ("hunter2",)}), 0) + b"\0",
        pickle.dumps(("name", {"name": "M", "secret": {"hunter2"}})) + b"\0",
    ],
)
def test_refused_first_frame_does_not_show_its_secret(stream: bytes) -> None:
    for size in (1, 50, len(stream)):
        found = first(stream, size)
        assert isinstance(found, str), found
        assert not any(piece in found for piece in ("hun", "ter2", "'h'", "b'h"))


def test_quoted_input_ends_at_the_word_secret() -> None:
    assert shown_text('{"secret": "hunter2"}') == "'{\"secret'..."
    assert shown(b'["name", {"SECRET": "hunter2"}]') == 'b\'["name", {"SECRET\'...'
    assert shown_text("secret") == "'secret'"
    assert shown_text("x" * 48 + "secret") == repr("x" * 48 + "se") + "..."


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    data=VALUES | st.fixed_dictionaries({"name": st.text(max_size=20)}, optional={"secret": VALUES, "x": VALUES}),
    protocol=st.integers(0, 5),
    seed=st.integers(0, 10**6),
)
def test_name_frame_of_any_data_gives_a_name_or_a_reason(data: Any, protocol: int, seed: int) -> None:
    """Send any data as a name, and once more with bytes changed: the result never depends on the pieces."""
    source = random.Random(seed)
    stream = pickle.dumps(("name", data), protocol) + b"\0"
    damaged = bytearray(stream)
    for _ in range(source.randint(0, 3)):
        damaged[source.randrange(len(damaged))] = source.randrange(256)
    for sent in (stream, bytes(damaged)):
        whole = first(sent)
        assert whole is None or isinstance(whole, Name | str)
        in_pieces = first(sent, source.randint(1, 9))
        # The reason may quote fewer bytes, if fewer have arrived.
        assert in_pieces == whole or (isinstance(in_pieces, str) and isinstance(whole, str))
    if isinstance(data, dict) and isinstance(first(stream), Name):
        assert data.keys() <= {"name", "secret"}
        assert not isinstance(first(stream), InvalidMessage)
