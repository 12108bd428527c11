"""Item 16 of issue 11: when the listeners' certificates are good, whether their chain is whole, and those of our own make."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from OpenSSL import SSL, crypto
from pytest_twisted import ensureDeferred

from aigw.commands import demo
from aigw.net.validity import Authorities
from aigw.upstream.trust import ProviderTls, Trust
from tests.certificates import DAY, NOW, Issued, authority, dns, ip, issue
from tests.test_install_parts import part

HERE = Path(__file__).parent.parent
ROOT = authority()
MIDDLE = authority("intermediate", by=ROOT)
NAMES = dns("localhost"), ip("127.0.0.1")


def gateway_with(world, *issued: Issued):
    """A gateway that shows these certificates, the first by default; /ready is asked in plain HTTP."""
    pairs = []
    for number, each in enumerate(issued):
        (world.folder / f"{number}.pem").write_bytes(each.pem)
        (world.folder / f"{number}.key").write_bytes(each.key_pem)
        pairs.append({"cert_file": f"{number}.pem", "key_file": f"{number}.key"})
    plain = {"endpoint": "tcp:0:interface=127.0.0.1", "insecure": True}
    return world.gateway(
        None, top={"tls": {**pairs[0], **({"certificates": pairs[1:]} if pairs[1:] else {})}, "listen": [plain]}
    )


def told(world) -> list[tuple[str, str]]:
    """What was logged of certificates: level and message."""
    lines = map(json.loads, world.log)
    return [(line["level"], line["message"]) for line in lines if "certificate" in line["message"]]


def leaf(by: Issued = ROOT, **more) -> Issued:
    """With the root in the file, so that nothing is missing."""
    made = issue(*NAMES, by=by, **more)
    return Issued(made.certificate, made.key, (*made.above, ROOT.certificate))


def under(ca: Issued) -> Issued:
    return leaf(ca)


def old_root() -> Issued:
    """A good certificate, and behind it in the file an old root that has expired."""
    made = leaf()
    return Issued(made.certificate, made.key, (*made.above, authority("old root", ends=NOW - DAY / 2).certificate))


OLD, NEW = NOW - DAY / 2, NOW + 3 * DAY

#   what the listeners show                                                                status  code                         level    told
SHOWN = {
    "good":                         (lambda: [leaf()],                                     200,    None,                        None,    None),
    "good, with an intermediate":   (lambda: [under(MIDDLE)],                              200,    None,                        None,    None),
    "one that expires soon":        (lambda: [leaf(ends=NOW + 5 * DAY)],                   200,    None,                        "WARN",  r"A certificate expires in [45]\.\d days: .*/0\.pem: CN=common name\)"),
    "an intermediate that does":    (lambda: [under(authority("a", by=ROOT, ends=NOW + 5 * DAY))], 200, None,                   "WARN",  r"A certificate expires in [45]\.\d days: .*/0\.pem: CN=a\)"),
    "expired":                      (lambda: [leaf(ends=OLD)],                             503,    "certificate_expired",       "ERROR", r"A certificate has expired, .*CN=common name\)"),
    "an intermediate that has":     (lambda: [under(authority("a", by=ROOT, ends=OLD))],   503,    "certificate_expired",       "ERROR", r"A certificate has expired, .*CN=a\)"),
    "an old root in the file":      (lambda: [old_root()],                                 503,    "certificate_expired",       "ERROR", r"A certificate has expired, .*CN=old root\)"),
    "another name's has expired":   (lambda: [leaf(), leaf(ends=OLD)],                     503,    "certificate_expired",       "ERROR", r"A certificate has expired, .*/1\.pem: "),
    "not valid yet":                (lambda: [leaf(begins=NEW)],                           503,    "certificate_not_yet_valid", "ERROR", r"A certificate is not valid yet, for [23]\.\d days.*CN=common name\)"),
    "an intermediate, not yet":     (lambda: [under(authority("a", by=ROOT, begins=NEW))], 503,    "certificate_not_yet_valid", "ERROR", r"A certificate is not valid yet, .*CN=a\)"),
    "another name's, not yet":      (lambda: [leaf(), leaf(begins=NEW)],                   503,    "certificate_not_yet_valid", "ERROR", r"A certificate is not valid yet, .*/1\.pem: "),
}  # fmt: skip


@pytest.mark.parametrize("case", SHOWN)
@ensureDeferred
async def test_d2a_every_certificate_of_every_chain_counts_for_ready_and_warnings(world, case):
    make, status, code, level, message = SHOWN[case]
    gateway = gateway_with(world, *make())
    got = await gateway.get("/ready", {})
    assert got.status == status
    assert code is None or got.error["code"] == code
    assert "CN=" not in got.body.decode()
    if level is None:
        assert told(world) == []
    else:
        ((found_level, found),) = told(world)
        assert found_level == level
        assert re.match(message, found), found


@ensureDeferred
async def test_d2a_a_certificate_becomes_valid_without_a_reload(world, monkeypatch):
    gateway = gateway_with(world, leaf(begins=NEW))
    assert (await gateway.get("/ready", {})).status == 503
    monkeypatch.setattr("aigw.net.validity.time.time", lambda: NEW.timestamp() + 1)
    assert (await gateway.get("/ready", {})).status == 200


@ensureDeferred
async def test_the_metric_is_the_earliest_end_in_all_chains(world):
    ends = NOW.replace(microsecond=0) + 20 * DAY
    gateway = gateway_with(world, leaf(), under(authority("a", by=ROOT, ends=ends)))
    got = await gateway.get("/metrics")
    (shown,) = re.findall(r"^aigw_certificate_expiry_timestamp_seconds (\S+)$", got.body.decode(), re.MULTILINE)
    assert float(shown) == ends.timestamp()


#   what stands in the file                                                                                  whose issuer is missing
CHAINS = {
    "the root above it":                         (lambda: leaf(),                                            None),
    "the root not sent":                         (lambda: issue(*NAMES, by=ROOT),                            "CN=root"),
    "an intermediate, the root not sent":        (lambda: issue(*NAMES, by=MIDDLE),                          None),
    "an intermediate and the root":              (lambda: under(MIDDLE),                                     None),
    "the intermediate missing":                  (lambda: issue(*NAMES, by=MIDDLE).alone(),                  "CN=intermediate"),
    "the root instead of the intermediate":      (lambda: Issued(*alone_by(MIDDLE), (ROOT.certificate,)),    "CN=intermediate"),
    "another intermediate":                      (lambda: Issued(*alone_by(MIDDLE), (other(MIDDLE),)),       "CN=intermediate"),
    "self-signed":                               (lambda: issue(*NAMES),                                     None),
    "self-signed, a CA's":                       (lambda: issue(*NAMES, ca=True),                            None),
    "expired, with an intermediate":             (lambda: issue(*NAMES, by=MIDDLE, ends=OLD),                None),
}  # fmt: skip


def alone_by(ca: Issued):
    made = issue(*NAMES, by=ca)
    return made.certificate, made.key


def other(ca: Issued) -> x509.Certificate:
    """A CA of the same name that has another key."""
    return issue(
        by=ROOT, cn=ca.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value, ca=True
    ).certificate


def loaded(issued: Issued) -> list[crypto.X509]:
    return [crypto.X509.from_cryptography(each) for each in (issued.certificate, *issued.above)]


@pytest.mark.parametrize("case", CHAINS)
def test_b11_a_missing_intermediate_is_seen(case):
    make, missing = CHAINS[case]
    assert Authorities().missing_issuer(loaded(make())) == missing


def test_b11_nothing_is_missing_above_what_a_ca_of_the_system_issued(tmp_path, monkeypatch):
    (tmp_path / "system.pem").write_bytes(ROOT.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    assert Authorities().missing_issuer(loaded(issue(*NAMES, by=ROOT))) is None
    assert Authorities().missing_issuer(loaded(issue(*NAMES, by=MIDDLE).alone())) == "CN=intermediate"


def test_b11_nor_above_what_the_clients_ca_issued():
    known = Authorities([crypto.X509.from_cryptography(ROOT.certificate)])
    assert known.missing_issuer(loaded(issue(*NAMES, by=ROOT))) is None


@ensureDeferred
async def test_b11_a_missing_intermediate_is_warned_of_at_start_and_reload(world):
    gateway = gateway_with(world, leaf(), issue(*NAMES, by=MIDDLE).alone())
    assert await gateway.reload()
    first, second = told(world)
    assert first == second
    level, message = first
    assert level == "WARN"
    assert message.startswith("tls.certificates[0].cert_file: ")
    assert (
        "its issuer, CN=intermediate, is neither in the file nor a CA of this system, so clients may refuse the connection; append"
        in message
    )
    assert (await gateway.get("/ready", {})).status == 200, "it is only a warning"
    assert any("CN=intermediate" in warning for warning in gateway.service.warnings())


def test_d4_check_config_warns_of_all_of_it(tmp_path):
    from tests.test_daemon import CONFIG, run

    for made, warning in (
        (issue(*NAMES, by=MIDDLE).alone(), "warning: config.yaml, line 8: tls.cert_file: "),
        (leaf(begins=NEW), "warning: a certificate is not valid yet, for "),
        (under(authority("a", by=ROOT, ends=OLD)), "warning: a certificate has expired, "),
    ):
        (tmp_path / "cert.pem").write_bytes(made.pem)
        (tmp_path / "key.pem").write_bytes(made.key_pem)
        done = run(tmp_path, "--check-config", config=CONFIG + "tls: {cert_file: cert.pem, key_file: key.pem}")
        assert done.returncode == 0
        assert warning in done.stdout


# The certificates that the project makes itself


def by_the_demo(folder: Path) -> None:
    demo.certify(folder)


def by_the_documents(folder: Path) -> None:
    (line,) = re.findall(r"^openssl req (?:.*\\\n)*.*$", (HERE / "docs" / "tls.md").read_text(), re.MULTILINE)
    subprocess.run(shlex.split(line.replace("\\\n", "")), cwd=folder, check=True, capture_output=True, timeout=20)


def by_install(folder: Path) -> None:
    """Its function, with this Python instead of the installed one."""
    (folder / "etc" / "tls").mkdir(parents=True)
    done = part(folder, "self_signed")
    assert done.returncode == 0, done.stderr
    (folder / "etc" / "tls" / "fullchain.pem").rename(folder / "cert.pem")
    (folder / "etc" / "tls" / "privkey.pem").rename(folder / "key.pem")


@pytest.mark.parametrize("make", [by_the_demo, by_the_documents, by_install])
def test_b11_a_certificate_that_we_make_is_a_servers_and_no_cas(tmp_path, make):
    """rustls refuses CA:TRUE from a server; Python 3.13 wants key identifiers (VERIFY_X509_STRICT)."""
    make(tmp_path)
    pem = (tmp_path / "cert.pem").read_bytes()
    made = x509.load_pem_x509_certificate(pem)
    found = made.extensions

    basic = found.get_extension_for_class(x509.BasicConstraints)
    assert (basic.value.ca, basic.critical) == (False, True)
    usage = found.get_extension_for_class(x509.KeyUsage)
    assert usage.value == x509.KeyUsage(True, *[False] * 8)
    assert usage.critical
    assert list(found.get_extension_for_class(x509.ExtendedKeyUsage).value) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]
    names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert "127.0.0.1" in map(str, names.get_values_for_type(x509.IPAddress))
    assert made.not_valid_before_utc.timestamp() <= time.time() < made.not_valid_after_utc.timestamp()
    assert Authorities().missing_issuer([crypto.X509.from_cryptography(made)]) is None
    for host in ("localhost", "127.0.0.1"):
        assert shakes_hands(tmp_path, ProviderTls(host, Trust(pem)))


def shakes_hands(folder: Path, creator: ProviderTls) -> bool:
    """Whether a client that has the certificate in its ca_file takes it; in memory."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate_file(str(folder / "cert.pem"))
    context.use_privatekey_file(str(folder / "key.pem"))
    client, server = creator.clientConnectionForTLS(None), SSL.Connection(context, None)
    client.set_connect_state()
    server.set_accept_state()
    for _ in range(6):
        for one, two in ((client, server), (server, client)):
            try:
                one.do_handshake()
                if one is client:
                    return True
            except SSL.WantReadError:
                pass
            with suppress(SSL.WantReadError):
                two.bio_write(one.bio_read(65536))
    return False
