"""B11, S5: what TLS scanners find at a daemon whose certificate a private CA has signed. ``python -m pytest -m scan``.

``testssl.sh`` is Debian's package of that name; ``sslyze`` is installed into an environment of its own, since it wants an
older ``cryptography`` than the gateway.
"""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.test_admission import configuration
from tests.test_daemon import Daemon

pytestmark = pytest.mark.scan

#   what testssl.sh finds that is not the gateway's to mend; it is told of the private CA
NOT_OURS = {
    "DNS_CAArecord": "says in the DNS which CA may sign; localhost has none",
    "HSTS": "holds for every port of a host: it would lock browsers out of whatever speaks plain HTTP beside the gateway",
}


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not sign, False, False, False, False, sign, sign, False, False)


def issue(folder: Path) -> None:
    """ca.pem, and tls.pem with the key and chain of localhost, as a CA of today makes them: for 90 days, with a CRL."""
    now = datetime.datetime.now(datetime.timezone.utc)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    crl = x509.DistributionPoint([x509.UniformResourceIdentifier("http://localhost/crl")], None, None, None)

    def begun(subject: str, public_key, days: int) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(name("a private CA"), name(subject), public_key)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(days))

    ca = (
        begun("a private CA", ca_key.public_key(), 3650)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(usage(sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        begun("localhost", key.public_key(), 89)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.CRLDistributionPoints([crl]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "tls.pem").write_bytes(key_pem + leaf.public_bytes(Encoding.PEM))


@pytest.fixture
def daemon(tmp_path):
    issue(tmp_path)
    tree = configuration(tmp_path, False)
    tree["tls"] = {"cert_file": "tls.pem", "key_file": "tls.pem"}
    with Daemon(tmp_path, config=json.dumps(tree)) as daemon:
        daemon.wait_for("The gateway has started")
        yield daemon
        assert not [line for line in daemon.lines() if "traceback" in line["fields"]], "S7"


@pytest.fixture(scope="session")
def sslyze(tmp_path_factory) -> str:
    """The command; it is made where there is none."""
    if found := shutil.which("sslyze"):
        return found
    folder = tmp_path_factory.mktemp("sslyze")
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin/pip", "install", "-q", "sslyze"], check=True, timeout=300)
    return str(folder / "bin/sslyze")


def test_b11_sslyze_finds_mozilla_s_intermediate_configuration(daemon, tmp_path, sslyze):
    """But for the curves: pyOpenSSL cannot choose them, and OpenSSL's own include X448 and secp521r1, both strong."""
    found = tmp_path / "sslyze.json"
    command = [sslyze, "--mozilla_config=intermediate", f"--certinfo_ca_file={tmp_path / 'ca.pem'}"]
    target = f"localhost:{daemon.address()[1]}"
    done = subprocess.run(
        [*command, f"--json_out={found}", target], capture_output=True, text=True, timeout=120, check=False
    )
    verdict = done.stdout.partition("COMPLIANCE AGAINST")[2]
    findings = [line.strip() for line in verdict.splitlines() if line.strip().startswith("* ")]
    assert len(findings) == 1, findings
    assert findings[0].startswith("* tls_curves: ")
    assert {each.strip("{}',. ") for each in findings[0].split() if "'" in each} == {"X448", "secp521r1"}
    (result,) = json.loads(found.read_text())["server_scan_results"]
    assert (result["scan_status"], result["connectivity_status"]) == ("COMPLETED", "COMPLETED")
    scans = {name: scan["result"] for name, scan in result["scan_result"].items() if scan and scan["result"]}
    for old in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert not scans[f"{old}_cipher_suites"]["accepted_cipher_suites"]
    assert not scans["heartbleed"]["is_vulnerable_to_heartbleed"]
    assert not scans["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
    assert not scans["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
    assert not scans["tls_compression"]["supports_compression"]
    assert scans["tls_fallback_scsv"]["supports_fallback_scsv"]
    assert scans["tls_extended_master_secret"]["supports_ems_extension"]


@pytest.mark.skipif(not (shutil.which("testssl") or shutil.which("testssl.sh")), reason="testssl.sh is not installed")
def test_b11_testssl_finds_nothing_but_the_private_ca(daemon, tmp_path, capsys):
    found = tmp_path / "testssl.json"
    command = [shutil.which("testssl") or shutil.which("testssl.sh"), "--quiet", "--color=0", "--warnings=batch"]
    command += ["--ip=127.0.0.1", f"--add-ca={tmp_path / 'ca.pem'}", f"--jsonfile={found}"]
    subprocess.run(
        [*command, f"localhost:{daemon.address()[1]}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900, check=False,
    )  # fmt: skip
    results = {each["id"]: each for each in json.loads(found.read_text())}
    assert len(results) > 100, "it went through"
    assert not [each for each in results if each in ("scanProblem", "engine_problem")]
    assert results["ALPN"]["finding"] == "http/1.1", "S5"
    assert results["sessionresumption_ticket"]["finding"] == "supported", "S25"
    assert results["sessionresumption_ID"]["finding"] == "not supported"  # no session is kept here
    findings = {each: result for each, result in results.items() if result["severity"] not in ("OK", "INFO", "DEBUG")}
    with capsys.disabled():
        print(f" [testssl.sh: {len(results)} results; {', '.join(sorted(findings))}]", end="")
    assert not {each: result["finding"] for each, result in findings.items() if each not in NOT_OURS}
