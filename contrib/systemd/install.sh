#!/usr/bin/env bash
# Builds, installs, deploys, upgrades and removes the AI gateway. `install.sh help` tells the commands.
#
# It stands in a checkout (contrib/systemd/) and in the artefact that `build` makes. A release is a folder of its own,
# /opt/ai-gateway/releases/VERSION-HASH; /opt/ai-gateway/current names the one that runs, so that going back is one rename.
# shellcheck disable=SC2015,SC2016 # `A && B || die` is meant, for die ends it; so are single quotes around what others expand
set -euo pipefail

NAME=ai-gateway
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd) # of the checkout
HOME_DIR=/opt/ai-gateway
ETC=/etc/ai-gateway
UNITS=/usr/local/lib/systemd/system # below /etc/systemd/system, where an operator's own copies and drop-ins go before ours
SYSUSERS=/usr/local/lib/sysusers.d/ai-gateway.conf
TMPFILES=/usr/local/lib/tmpfiles.d/ai-gateway.conf
WRAPPER=/usr/local/bin/ai-gateway
HELPER=ai-gateway@upgrade.service
KEEP=3          # releases
WATCH_SECONDS=3 # for how long a unit must stay up to count as started
READY_SECONDS=10 # within which it must say that it is ready
TMP=

help() {
  cat <<'EOF'
install.sh COMMAND

  build                 make dist/ai-gateway-VERSION-HASH.tar.gz and its .sha256: installs without network
  install [FILE]        install a release under /opt/ai-gateway and /usr/local/bin/ai-gateway; starts nothing
  install-service [FILE]  the same, the user, /etc/ai-gateway and the systemd units; starts it, or upgrades it
  upgrade [FILE]        replace the running release without a refused connection; goes back if the new one fails
  rollback              go back to the release before
  deploy [FILE]         build, copy to SSH_HOST, and install-service there
  uninstall [--purge]   remove it; --purge removes /etc/ai-gateway and the user too
  test                  run the tests (in a checkout)
  test-coverage         run the tests and measure their coverage (in a checkout)
  help                  this

FILE is an artefact of `build`, with FILE.sha256 beside it or its hash in SHA256; without FILE, the artefact that this
script lies in, else a new one from the checkout.
install, install-service, upgrade, rollback and uninstall are for root. All of them may be run twice.

Environment
  SSH_HOST   deploy: the server (required)          SSH_KEY    a private key file (else ssh's own choice)
  SSH_USER   deploy: root (default), or one with sudo  SSH_PORT  22
  SSH_OPTS   more options for ssh and scp, e.g. "-o StrictHostKeyChecking=accept-new" for a host never seen before
  CONFIG     install-service, deploy: a configuration for a machine that has none; never overwrites one
  PORT       install-service, deploy: the port to listen on instead of 443
  READY_URL  install-service, upgrade, deploy: what to ask for readiness, if not /ready on the socket unit's port
  PYTHON     build, install: the Python to use instead of python3
  SHA256     install, install-service, upgrade, deploy: what the SHA-256 of FILE has to be, instead of FILE.sha256
EOF
}

say() { printf '→ %s\n' "$*"; }
warn() { printf 'install.sh: warning: %s\n' "$*" >&2; }
die() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

temporary() { # sets TMP, removed on exit
  [ -n "$TMP" ] || TMP=$(mktemp -d)
}
trap 'rm -rf ${TMP:+"$TMP"}' EXIT

need_root() {
  [ "$(id -u)" = 0 ] || die "$1 needs root: sudo $0 $1"
  exec 9>/run/ai-gateway-install.lock
  flock -n 9 || die "another install.sh is at work on this machine"
}

need_systemd() {
  [ -d /run/systemd/system ] || die "this machine does not run systemd; '$0 install' installs the program alone"
}

need_checkout() {
  [ -f "$ROOT/setup.py" ] && [ -d "$ROOT/aigw" ] || die "$1 needs a checkout of the source; this is an artefact"
}

need_venv() { # PYTHON
  command -v "$1" >/dev/null || die "there is no $1; apt-get install python3 python3-venv"
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$1 is older than Python 3.10"
  "$1" -c 'import ensurepip, venv' 2>/dev/null || die "$1 cannot make virtual environments; apt-get install python3-venv"
}

platform_of() { # PYTHON: what its wheels are good for, e.g. "3.11 x86_64"
  "$1" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())'
}

# --- build ----------------------------------------------------------------------------------------------------------

build() {
  need_checkout build
  local python=${PYTHON:-python3} stage version id
  need_venv "$python"
  temporary
  version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$ROOT/aigw/__init__.py")
  stage=$TMP/stage
  mkdir -p "$TMP/source" "$stage/wheels" "$stage/systemd"
  say "building version $version for Python $(platform_of "$python")"
  # A copy, because setuptools leaves its traces in the folder that it builds.
  cp -R "$ROOT"/{aigw,twisted,setup.py,pyproject.toml,README.md,LICENSE} "$TMP/source"
  find "$TMP/source" -name __pycache__ -prune -exec rm -rf {} +
  "$python" -m venv "$TMP/build"
  # Nothing comes in whose hash does not stand in the repository, and nothing is built but our own wheel.
  pip() { "$TMP/build/bin/pip" "$@" -q --disable-pip-version-check; }
  pip install --require-hashes --only-binary :all: -r "$HERE/requirements-build.txt"
  pip download --require-hashes --only-binary :all: -r "$HERE/requirements.txt" -d "$stage/wheels"
  SOURCE_DATE_EPOCH=315532800 pip wheel --no-build-isolation --no-deps -w "$stage/wheels" "$TMP/source"
  cp "$HERE"/{ai-gateway,ai-gateway.service,ai-gateway@.service,ai-gateway.socket,ai-gateway.sysusers} \
    "$HERE"/{ai-gateway.tmpfiles,certbot-deploy-hook,config.yaml,reload} "$stage/systemd"
  cp -R "$ROOT"/{conf,docs,README.md,LICENSE,CHANGELOG.md} "$stage"
  cp "$HERE/install.sh" "$stage"
  platform_of "$python" >"$stage/PLATFORM"
  # The same content gives the same name, so that installing it again is seen to change nothing.
  id=$version-$(cd "$stage" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-10)
  echo "$id" >"$stage/ID"
  mv "$stage" "$TMP/ai-gateway-$id"
  mkdir -p "$ROOT/dist"
  ARTEFACT=$ROOT/dist/ai-gateway-$id.tar.gz
  tar -C "$TMP" --owner=0 --group=0 -czf "$ARTEFACT.new" "ai-gateway-$id"
  printf '%s  %s\n' "$(hash_of "$ARTEFACT.new")" "${ARTEFACT##*/}" >"$ARTEFACT.sha256.new"
  mv "$ARTEFACT.sha256.new" "$ARTEFACT.sha256"
  mv "$ARTEFACT.new" "$ARTEFACT"
  say "made $ARTEFACT ($(du -h "$ARTEFACT" | cut -f1)) and its .sha256"
}

verified() { # FILE TO: copies FILE to TO, which is FILE as its hash says; others may be able to write to FILE
  local wanted=${SHA256:-} got
  [ -f "$1" ] || die "$1: no such file"
  if [ -z "$wanted" ]; then
    [ -f "$1.sha256" ] || die "$1: there is no $1.sha256, as \`build\` makes it, and no SHA256=...: not installed"
    read -r wanted _ <"$1.sha256" || true
  fi
  wanted=${wanted,,}
  [[ $wanted =~ ^[0-9a-f]{64}$ ]] || die "$1: its hash is to be 64 hexadecimal digits; it is: ${wanted:-nothing}"
  cp "$1" "$2"
  got=$(hash_of "$2")
  [ "$got" = "$wanted" ] || die "$1: its SHA-256 is $got, and has to be $wanted: not installed"
}

hash_of() { # FILE
  sha256sum <"$1" | cut -d' ' -f1
}

payload() { # [FILE]: sets PAYLOAD, an unpacked artefact, and ID
  if [ -n "${1:-}" ]; then
    temporary
    verified "$1" "$TMP/artefact.tar.gz"
    tar -C "$TMP" -xzf "$TMP/artefact.tar.gz" || die "$1 is no artefact of '$0 build'"
    PAYLOAD=$(dirname "$(find "$TMP" -maxdepth 2 -name PLATFORM)")
  elif [ -f "$HERE/PLATFORM" ]; then
    PAYLOAD=$HERE
  else
    build
    PAYLOAD=$TMP/$(basename "$ARTEFACT" .tar.gz)
  fi
  [ -f "$PAYLOAD/ID" ] && [ -d "$PAYLOAD/wheels" ] || die "${1:-$PAYLOAD} is no artefact of '$0 build'"
  ID=$(<"$PAYLOAD/ID")
}

# --- releases -------------------------------------------------------------------------------------------------------

matching_python() { # sets PYTHON_HERE, one that the wheels are for
  local wanted found python all=
  wanted=$(<"$PAYLOAD/PLATFORM")
  for python in ${PYTHON:+"$PYTHON"} python3 "python${wanted% *}"; do
    found=$(platform_of "$python" 2>/dev/null) || continue
    if [ "$found" = "$wanted" ]; then
      need_venv "$python"
      PYTHON_HERE=$python
      return
    fi
    all=${all:+$all, }$found
  done
  die "release $ID is for Python $wanted, this machine has ${all:-none}; build it with that Python (PYTHON=python3.X $0 build)"
}

install_release() { # unpacks PAYLOAD as releases/ID, complete or not at all
  local release=$HOME_DIR/releases/$ID
  umask 022
  if [ -f "$release/.complete" ]; then
    say "release $ID is there already"
    return
  fi
  matching_python
  say "installing release $ID to $release"
  rm -rf "$release"
  mkdir -p "$release"
  cp -R "$PAYLOAD"/{systemd,conf,docs,README.md,LICENSE,CHANGELOG.md,ID,PLATFORM,install.sh} "$release"
  "$PYTHON_HERE" -m venv "$release/venv"
  "$release/venv/bin/pip" --isolated install -q --disable-pip-version-check --no-cache-dir --no-index \
    --find-links "$PAYLOAD/wheels" aigw
  # Twisted caches which plugins there are; the service may not write, so it is done here.
  "$release/venv/bin/python" -c 'from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))'
  chown -R root:root "$release"
  touch "$release/.complete"
}

current() { basename "$(readlink "$HOME_DIR/${1:-current}" 2>/dev/null)" 2>/dev/null || true; }

point() { # LINK ID
  ln -sfn "releases/$2" "$HOME_DIR/.$1.new" && mv -T "$HOME_DIR/.$1.new" "$HOME_DIR/$1"
}

activate() { # ID: what starts from now on
  local release=$HOME_DIR/releases/$1
  point current "$1" && install -D -m 0755 "$release/systemd/ai-gateway" "$WRAPPER" || return
  [ ! -f "$UNITS/ai-gateway.service" ] || install_units "$release"
}

install_units() { # RELEASE
  install -D -m 0644 -t "$UNITS" "$1"/systemd/ai-gateway{,@}.service "$1/systemd/ai-gateway.socket" &&
    install -D -m 0644 "$1/systemd/ai-gateway.sysusers" "$SYSUSERS" &&
    install -D -m 0644 "$1/systemd/ai-gateway.tmpfiles" "$TMPFILES" &&
    systemctl daemon-reload
}

prune() { # keep what runs, what ran before, and the newest
  local id count=0
  for id in $(cd "$HOME_DIR/releases" && ls -t); do
    count=$((count + 1))
    case $id in "$(current)" | "$(current previous)") continue ;; esac
    [ "$count" -le "$KEEP" ] || { say "removing release $id" && rm -rf "${HOME_DIR:?}/releases/$id"; }
  done
}

# --- the service ----------------------------------------------------------------------------------------------------

running() { # the units that serve, one a line
  systemctl list-units --plain --no-legend --state=active,activating,reloading,deactivating \
    ai-gateway.service 'ai-gateway@*.service' | cut -d' ' -f1 | grep -vxF "$HELPER" || true
}

state() { systemctl show --value -p "$2" "$1"; }

check_config() { # ID: judged as the service would, by that release
  AI_GATEWAY_RELEASE=$HOME_DIR/releases/$1 "$HOME_DIR/releases/$1/systemd/ai-gateway" check
}

configured() { # NAME: whether the configuration has it
  "$HOME_DIR/current/venv/bin/python" -I - "$ETC/config.yaml" "$1" <<'EOF'
import sys, yaml
with open(sys.argv[1]) as file:
    sys.exit(not (yaml.safe_load(file) or {}).get(sys.argv[2]))
EOF
}

shares_socket() { # whether the units listen on the socket unit's port; listeners of their own two processes cannot share
  systemctl -q is-active ai-gateway.socket && ! configured listen
}

ready_url() {
  local scheme=http
  if [ -n "${READY_URL:-}" ]; then
    echo "$READY_URL"
  elif shares_socket; then
    ! configured tls || scheme=https
    state ai-gateway.socket Listen |
      sed -nE "1{s,^(\[::\]|0\.0\.0\.0):,127.0.0.1:,;s,^(.*:[0-9]+) \(Stream\)\$,$scheme://\1/ready,p}"
  fi
}

# Units that share a socket answer for one another, so it is asked, by a new connection each time, until this process has
# answered. Any certificate will do, and a demand for one of ours counts as an answer. The certificate may come from the
# environment, or as a credential, where it is not seen from here: without an answer the other scheme is tried as well.
asked_ready() { # PID: whether that process answers 200 to /ready
  local url
  url=$(ready_url)
  [ -n "$url" ] || return 0
  "$HOME_DIR/current/venv/bin/python" -I - "$url" "$1" "$READY_SECONDS" "${READY_URL:-}" <<'EOF'
import http.client, json, os, ssl, sys, time, urllib.error, urllib.request
url, pid, end, given = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3]), sys.argv[4]
scheme, _, rest = url.partition("://")
other = given or f"{'http' if scheme == 'https' else 'https'}://{rest}"
trusting = ssl.create_default_context()
trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
no_proxy, https = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting)
opener, others, heard = urllib.request.build_opener(no_proxy, https), 0, "no answer of its own"

def who(answer):
    try:
        said = json.loads(answer.read())
        return said.get("pid", said.get("error", {}).get("pid"))
    except (ValueError, AttributeError):
        return None  # no answer of the gateway's

while time.monotonic() < end:
    if not os.path.exists(f"/proc/{pid}"):
        sys.exit(f"install.sh: {url}: process {pid} has ended")
    try:
        with opener.open(url, timeout=5) as answer:
            if who(answer) == pid:
                sys.exit()
        others += 1
    except urllib.error.HTTPError as error:
        heard = str(error)
        if who(error) == pid:
            break
        if error.code == 400:  # plain HTTP, where the gateway speaks TLS
            url, other = other, url
    except (OSError, http.client.HTTPException) as error:
        if "CERTIFICATE_REQUIRED" in str(error):
            sys.exit()
        heard = str(error)
        url, other = other, url
    time.sleep(0.05)
sys.exit(f"install.sh: {url}: process {pid} is not ready: {heard} ({others} good answers came from others)")
EOF
}

stays_up() { # UNIT: the gateway says that it is ready, and it stays active
  local pid i
  pid=$(state "$1" MainPID)
  asked_ready "$pid" || return 1
  for ((i = 0; i < WATCH_SECONDS * 2; i++)); do
    [ "$(state "$1" ActiveState)" = active ] && [ "$(state "$1" MainPID)" = "$pid" ] || return 1
    sleep 0.5
  done
}

restarted() { # UNIT
  say "restarting $1; requests under way are let finish"
  timeout 120 systemctl restart "$1" && stays_up "$1"
}

tell_why() { # UNIT
  warn "$1 did not become ready; its last words:"
  journalctl -q --no-pager -n 8 -o cat -u "$1" >&2 || true
}

roll() { # ID: makes it the running release, one unit after the other; goes back and returns 1 if it does not become ready
  local new=$1 old units unit touched='' helper=
  old=$(current)
  units=$(running)
  temporary
  if ! check_config "$new" >"$TMP/check" 2>&1; then
    cat "$TMP/check" >&2
    warn "release $new does not accept the configuration; nothing was changed"
    return 1
  fi
  activate "$new" || return 1
  # One unit alone would leave its clients waiting while it drains; a second one on the same socket takes them meanwhile,
  # and shows whether the new release works before the old one is touched.
  # Not where each would want a listener for administrators of its own: then the socket unit alone keeps clients waiting.
  if [ "$(wc -w <<<"$units")" = 1 ] && shares_socket && ! configured admin; then
    helper=$HELPER
    say "starting release $new beside the running one"
    if ! timeout 120 systemctl restart "$helper" || ! stays_up "$helper"; then
      tell_why "$helper"
      go_back "$old" "$helper"
      return 1
    fi
  fi
  for unit in $units; do
    touched+=" $unit"
    if ! restarted "$unit"; then
      tell_why "$unit"
      go_back "$old" "$helper" "$touched"
      return 1
    fi
  done
  stop_helper "$helper"
  [ "$new" = "$old" ] || point previous "$old"
  say "release $new is running"
}

go_back() { # ID HELPER [UNITS]
  local unit
  warn "going back to release $1"
  [ -n "${3:-}" ] || stop_helper "$2" # at once, for it takes clients, and the old unit was not touched
  activate "$1"
  for unit in ${3:-}; do
    systemctl reset-failed "$unit" 2>/dev/null || true
    restarted "$unit" || warn "$unit does not run with release $1 either"
  done
  stop_helper "$2"
}

stop_helper() { # UNIT or nothing
  [ -n "$1" ] || return 0
  systemctl stop "$1" 2>/dev/null || true
  systemctl reset-failed "$1" 2>/dev/null || true
}

first_files() { # what a machine has to have before the first start, and keeps ever after
  local key=$ETC/keys/GATEWAY_API_KEY
  systemd-sysusers "$SYSUSERS"
  systemd-tmpfiles --create "$TMPFILES"
  if [ -e "$ETC/config.yaml" ]; then
    say "keeping $ETC/config.yaml"
    [ -z "${CONFIG:-}" ] || warn "CONFIG is ignored: there is a configuration"
  else
    [ -z "${CONFIG:-}" ] || [ -f "$CONFIG" ] || die "CONFIG: $CONFIG: no such file"
    say "writing $ETC/config.yaml${CONFIG:+ from $CONFIG}"
    install -m 0600 -o $NAME -g $NAME "${CONFIG:-$HOME_DIR/current/systemd/config.yaml}" "$ETC/config.yaml"
  fi
  if [ ! -s "$key" ] && grep -q '^[^#]*\${GATEWAY_API_KEY}' "$ETC/config.yaml" &&
    ! grep -qs '^GATEWAY_API_KEY=' "$ETC/environment"; then
    say "making up the clients' key, in $key"
    temporary
    "$HOME_DIR/current/venv/bin/python" -c 'import secrets; print(secrets.token_urlsafe(32))' >"$TMP/key"
    install -m 0600 "$TMP/key" "$key"
  fi
  if [ ! -e "$ETC/tls/fullchain.pem" ] && grep -q "^[^#]*$ETC/tls/fullchain.pem" "$ETC/config.yaml"; then
    say "making a self-signed certificate, in $ETC/tls; put a real one in its place"
    self_signed
  fi
  systemd-tmpfiles --create "$TMPFILES"
}

self_signed() {
  "$HOME_DIR/current/venv/bin/python" -I - "$ETC/tls" <<'EOF'
import datetime, ipaddress, os, socket, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
host = socket.getfqdn()
names = [*map(x509.DNSName, dict.fromkeys([host, socket.gethostname(), "localhost"]))]
names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host[:64])])
signs_only = x509.KeyUsage(True, *[False] * 8)  # with CA:FALSE: clients that use rustls refuse a CA's certificate here
certificate = (
    x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=825))
    .add_extension(x509.SubjectAlternativeName(names), critical=False)
    .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    .add_extension(signs_only, critical=True)
    .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    .sign(key, hashes.SHA256())
)
pem, raw = serialization.Encoding.PEM, serialization.NoEncryption()
os.umask(0o077)
with open(f"{sys.argv[1]}/privkey.pem", "xb") as file:
    file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, raw))
with open(f"{sys.argv[1]}/fullchain.pem", "wb") as file:
    file.write(certificate.public_bytes(pem))
EOF
}

choose_port() { # PORT becomes a drop-in of the socket unit
  local dropin=/etc/systemd/system/ai-gateway.socket.d/port.conf
  [ -n "${PORT:-}" ] || return 0
  [[ $PORT =~ ^[1-9][0-9]{0,4}$ && $PORT -le 65535 ]] || die "PORT: $PORT is no port; there are 1 to 65535"
  mkdir -p "$(dirname "$dropin")"
  printf '[Socket]\nListenStream=\nListenStream=%s\n' "$PORT" >"$dropin"
  systemctl daemon-reload
  say "listening on port $PORT, by $dropin"
}

start_service() {
  temporary
  if ! check_config "$(current)" >"$TMP/check" 2>&1; then
    cat "$TMP/check" >&2
    die "$ETC/config.yaml cannot be used yet. Mend it (keys go to $ETC/keys/NAME), then run this again: nothing was started"
  fi
  systemctl enable -q ai-gateway.service
  if [ "$(state ai-gateway.socket LoadState)" = masked ]; then
    say "ai-gateway.socket is masked: the gateway opens listeners of its own"
  else
    systemctl enable -q ai-gateway.socket
    systemctl start ai-gateway.socket ||
      die "the port cannot be opened ($(state ai-gateway.socket Result)); another one: PORT=8443 $0 install-service"
  fi
  systemctl reset-failed ai-gateway.service 2>/dev/null || true
  if ! timeout 120 systemctl start ai-gateway.service || ! stays_up ai-gateway.service; then
    tell_why ai-gateway.service
    die "the service did not start"
  fi
  say "ai-gateway.service is active: $(state ai-gateway.service StatusText)"
}

# --- commands -------------------------------------------------------------------------------------------------------

cmd_install() {
  need_root install
  payload "$@"
  install_release
  if [ -d /run/systemd/system ] && [ -n "$(running)" ]; then
    die "the service is running release $(current); to replace it: $0 upgrade"
  fi
  [ -z "$(current)" ] || [ "$(current)" = "$ID" ] || point previous "$(current)"
  activate "$ID"
  prune
  say "installed $WRAPPER; '$NAME --help' tells its options"
}

cmd_install_service() {
  need_root install-service
  need_systemd
  payload "$@"
  install_release
  if [ -f "$UNITS/ai-gateway.service" ] && [ -n "$(running)" ]; then
    first_files
    [ -z "${PORT:-}" ] || [[ $(state ai-gateway.socket Listen) == *":$PORT ("* ]] ||
      warn "PORT is ignored: the service is running; to change its port: systemctl edit ai-gateway.socket"
    replace
    return
  fi
  [ -z "$(current)" ] || [ "$(current)" = "$ID" ] || point previous "$(current)"
  activate "$ID"
  install_units "$HOME_DIR/current"
  first_files
  choose_port
  start_service
  prune
}

replace() { # the running release by ID
  if [ "$(current)" = "$ID" ]; then
    say "release $ID is running already; nothing to do"
    return
  fi
  roll "$ID" || die "release $ID was not taken; release $(current) is serving"
  prune
}

cmd_upgrade() {
  need_root upgrade
  need_systemd
  [ -n "$(current)" ] && [ -f "$UNITS/ai-gateway.service" ] || die "nothing to upgrade: use '$0 install-service'"
  payload "$@"
  install_release
  if [ -z "$(running)" ]; then
    warn "the service is not running: the new release is put in place, and not started"
    [ "$(current)" = "$ID" ] || point previous "$(current)"
    activate "$ID"
    return
  fi
  replace
}

cmd_rollback() {
  local back
  need_root rollback
  need_systemd
  back=$(current previous)
  [ -n "$back" ] && [ -f "$HOME_DIR/releases/$back/.complete" ] || die "nothing to roll back to"
  if [ -n "$(running)" ]; then
    roll "$back" || die "release $back was not taken; release $(current) is serving"
  else
    point previous "$(current)"
    activate "$back"
    say "release $back is in place; the service is not running"
  fi
}

cmd_uninstall() {
  local purge=
  case ${1:-} in "") ;; --purge) purge=yes ;; *) die "uninstall takes --purge or nothing" ;; esac
  need_root uninstall
  if [ -d /run/systemd/system ]; then
    say "stopping the service"
    systemctl stop ai-gateway.socket 'ai-gateway@*.service' ai-gateway.service 2>/dev/null || true
    systemctl disable -q ai-gateway.socket ai-gateway.service 2>/dev/null || true
    find /etc/systemd/system -type l -name 'ai-gateway@*.service' -delete
    systemctl reset-failed 'ai-gateway*' 2>/dev/null || true
  fi
  say "removing $HOME_DIR, $WRAPPER and the units"
  rm -rf "$HOME_DIR" "$WRAPPER" "$UNITS"/ai-gateway{,@}.service "$UNITS/ai-gateway.socket" "$SYSUSERS" "$TMPFILES" /run/aigw
  if [ -n "$purge" ]; then
    say "removing $ETC, the drop-ins and the user"
    rm -rf "$ETC" /etc/systemd/system/ai-gateway{,@}.{service,socket}.d
    ! id $NAME >/dev/null 2>&1 || userdel $NAME
  elif [ -d "$ETC" ]; then
    say "$ETC is kept (uninstall --purge removes it)"
  fi
  [ ! -d /run/systemd/system ] || systemctl daemon-reload
}

remote() { ssh "${SSH[@]}" -p "$SSH_PORT" "$TARGET" "$@"; }

cmd_deploy() {
  local there wanted sudo='' tty='' folder python
  [ -n "${SSH_HOST:-}" ] || die "SSH_HOST is not set: SSH_HOST=example.com [SSH_USER=deploy] [SSH_KEY=~/.ssh/id] $0 deploy"
  [ -z "${SSH_KEY:-}" ] || [ -f "$SSH_KEY" ] || die "SSH_KEY: $SSH_KEY: no such file"
  [ -z "${CONFIG:-}" ] || [ -f "$CONFIG" ] || die "CONFIG: $CONFIG: no such file"
  [ -z "${1:-}" ] || [ -f "$1" ] || die "$1: no such file"
  command -v ssh >/dev/null || die "there is no ssh; apt-get install openssh-client"
  SSH_PORT=${SSH_PORT:-22}
  SSH_HOST=${SSH_HOST#[} SSH_HOST=${SSH_HOST%]}
  TARGET=${SSH_USER:-root}@$SSH_HOST
  COPY_TO=$TARGET
  [[ $SSH_HOST != *:* ]] || COPY_TO=${SSH_USER:-root}@[$SSH_HOST] # scp wants an IPv6 address in brackets, ssh does not
  temporary
  # One connection for all, so that a password is asked for once. Host keys are judged as ssh is configured to.
  read -ra SSH <<<"${SSH_OPTS:-}"
  SSH+=(-o ControlMaster=auto -o "ControlPath=$TMP/ssh" -o ControlPersist=120 -o ConnectTimeout=15)
  [ -z "${SSH_KEY:-}" ] || SSH+=(-i "$SSH_KEY" -o IdentitiesOnly=yes)
  say "connecting to $TARGET, port $SSH_PORT"
  there=$(remote 'set -e
    [ -d /run/systemd/system ] || { echo "it does not run systemd"; exit; }
    command -v python3 >/dev/null || { echo "it has no python3"; exit; }
    python3 -c "import ensurepip, venv" 2>/dev/null || { echo "it has no python3-venv"; exit; }
    if [ "$(id -u)" = 0 ]; then how=root; elif ! command -v sudo >/dev/null; then how=none
    elif sudo -n true 2>/dev/null; then how=sudo; else how=ask; fi
    echo "ok $how"; python3 -c "import platform, sys; print(\"%d.%d\" % sys.version_info[:2], platform.machine())"') ||
    die "cannot log in to $TARGET (a host that ssh does not know yet: SSH_OPTS=\"-o StrictHostKeyChecking=accept-new\")"
  [[ $there == "ok "* ]] || die "$SSH_HOST cannot run it: $there"
  wanted=${there#*$'\n'}
  case ${there%%$'\n'*} in
    "ok root") ;;
    "ok sudo") sudo="sudo -n" ;;
    "ok ask")
      [ -t 0 ] || die "${SSH_USER:-root} needs a password for sudo on $SSH_HOST: run this from a terminal"
      sudo=sudo tty=-t
      ;;
    *) die "${SSH_USER:-root} is not root on $SSH_HOST, and there is no sudo" ;;
  esac
  if [ -n "${1:-}" ]; then
    ARTEFACT=$TMP/$(basename "$1")
    verified "$1" "$ARTEFACT"
  elif [ -f "$HERE/PLATFORM" ]; then
    ARTEFACT=$TMP/$(basename "$HERE").tar.gz
    tar -C "$(dirname "$HERE")" --owner=0 --group=0 -czf "$ARTEFACT" "$(basename "$HERE")"
  else
    for python in ${PYTHON:+"$PYTHON"} python3 "python${wanted% *}" ''; do
      [ -n "$python" ] || die "$SSH_HOST has Python $wanted, and this machine has no such Python to build with (PYTHON=...)"
      [ "$(platform_of "$python" 2>/dev/null)" = "$wanted" ] && break
    done
    PYTHON=$python build
  fi
  folder=$(remote 'umask 077 && mktemp -d')
  say "copying $(basename "$ARTEFACT") to $SSH_HOST"
  scp -q "${SSH[@]}" -P "$SSH_PORT" "$ARTEFACT" "$COPY_TO:$folder/artefact.tar.gz"
  [ -z "${CONFIG:-}" ] || scp -q "${SSH[@]}" -P "$SSH_PORT" "$CONFIG" "$COPY_TO:$folder/config.yaml"
  say "installing there"
  # shellcheck disable=SC2086,SC2029 # -t or nothing; the folder and the variables are meant to be expanded here
  if remote $tty "cd $folder && echo '$(hash_of "$ARTEFACT")  artefact.tar.gz' | sha256sum --quiet -c - &&
    tar -xzf artefact.tar.gz --strip-components=1 &&
    $sudo env ${CONFIG:+CONFIG=$folder/config.yaml} ${PORT:+PORT=$(printf %q "$PORT")} \
      ${READY_URL:+READY_URL=$(printf %q "$READY_URL")} ./install.sh install-service
    status=\$?; cd / && $sudo rm -rf $folder; exit \$status"; then
    say "deployed to $SSH_HOST"
  else
    die "the deployment to $SSH_HOST failed"
  fi
}

cmd_test() {
  need_checkout "$1"
  local python=${PYTHON:-python3} venv=$ROOT/.venv
  cd "$ROOT"
  if [ ! -x "$venv/bin/python" ]; then
    need_venv "$python"
    say "making $venv"
    "$python" -m venv "$venv"
  fi
  "$venv/bin/pip" install -q --disable-pip-version-check '.[test]'
  if [ "$1" = test ]; then
    exec "$venv/bin/python" -m pytest -q
  fi
  "$venv/bin/pip" install -q --disable-pip-version-check coverage
  "$venv/bin/python" -m coverage run --branch --source=aigw -m pytest -q
  exec "$venv/bin/python" -m coverage report --show-missing
}

command=${1:-help}
[ $# = 0 ] || shift
[ $# -le 1 ] || die "too many arguments; '$0 help' tells the commands"
case $command in
  build) build ;;
  install) cmd_install "$@" ;;
  install-service) cmd_install_service "$@" ;;
  upgrade) cmd_upgrade "$@" ;;
  rollback) cmd_rollback ;;
  deploy) cmd_deploy "$@" ;;
  uninstall) cmd_uninstall "$@" ;;
  test | test-coverage) cmd_test "$command" ;;
  help | -h | --help) help ;;
  *)
    printf 'install.sh: there is no command %q\n\n' "$command" >&2
    help >&2
    exit 2
    ;;
esac
