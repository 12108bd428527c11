#!/usr/bin/env bash
# Builds, installs, deploys, upgrades and removes the AI gateway. `install.sh help` prints the commands.
#
# It is in a checkout (contrib/systemd/) and in the artefact that `build` makes. Each release has its own folder,
# /opt/ai-gateway/releases/VERSION-HASH; /opt/ai-gateway/current names the running one, so that a rollback is one rename.
# shellcheck disable=SC2015,SC2016 # `A && B || fail` is intended, because fail exits; so are single quotes around what other programs expand
set -euo pipefail

NAME=ai-gateway
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd) # of the checkout
HOME_DIR=/opt/ai-gateway
ETC=/etc/ai-gateway
ENABLED=/etc/systemd/system/multi-user.target.wants
UNITS=/usr/local/lib/systemd/system # lower in priority than /etc/systemd/system, where an operator puts own copies and drop-ins
SYSUSERS=/usr/local/lib/sysusers.d/ai-gateway.conf
TMPFILES=/usr/local/lib/tmpfiles.d/ai-gateway.conf
WRAPPER=/usr/local/bin/ai-gateway
RUN=/run/systemd/system # for what a reboot may forget
HELPER=ai-gateway@upgrade.service
KEEP=3          # releases
WATCH_SECONDS=3 # for how long a unit must stay up to count as started
READY_SECONDS=10 # the time within which it must be ready
TMP=

help() {
  cat <<'EOF'
install.sh COMMAND

  build                 make dist/ai-gateway-VERSION-HASH.tar.gz and its .sha256: installs without network
  install [FILE]        install a release in /opt/ai-gateway and /usr/local/bin/ai-gateway; it does not start it
  install-service [FILE]  also make the user, /etc/ai-gateway and the systemd units; start it, or upgrade it
  upgrade [FILE]        replace the running release without a refused connection; if the new one fails, return to the old one
  rollback              return to the previous release
  reload                make each instance read the configuration again, one after the other; stop at the first that refuses it
  restart               restart each instance, one after the other, without a refused or waiting connection
  deploy [FILE]         build, copy to SSH_HOST, and install-service there
  uninstall [--purge]   remove it; --purge removes /etc/ai-gateway and the user too
  test                  run the tests (in a checkout)
  test-coverage         run the tests and measure their coverage (in a checkout)
  help                  print this text

FILE is an artefact of `build`. FILE.sha256 in the same folder, or SHA256, has its hash. Without FILE the script uses the
artefact or the installed release in which it is, or builds one from the checkout.
install, install-service, upgrade, rollback, reload, restart and uninstall need root. Each command may be repeated.

Environment
  SSH_HOST   deploy: the server (required)          SSH_KEY    a private key file (default: ssh's own choice)
  SSH_USER   deploy: root (default), or one with sudo  SSH_PORT  22
  SSH_OPTS   more options for ssh and scp, e.g. "-o StrictHostKeyChecking=accept-new" for a new host
  CONFIG     install-service, deploy: a configuration for a machine that has none; an existing one is kept
  PORT       install-service, deploy: the port to listen on instead of 443
  INSTANCES  install-service, deploy: how many processes share the port, one for each core: a number, or auto for as many as
             there are cores (default: as many as there are, 1 at first)
  READY_URL  install-service, upgrade, restart, deploy: the URL for readiness, instead of /ready on the socket unit's port
  PYTHON     build, install: the Python to use instead of python3
  SHA256     install, install-service, upgrade, deploy: the SHA-256 of FILE, instead of FILE.sha256
EOF
}

info() { printf '→ %s\n' "$*"; }
warn() { printf 'install.sh: warning: %s\n' "$*" >&2; }
fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

temporary() { # sets TMP, removed on exit
  [ -n "$TMP" ] || TMP=$(mktemp -d)
}
trap 'rm -rf ${TMP:+"$TMP"}' EXIT

need_root() {
  [ "$(id -u)" = 0 ] || fail "$1 needs root; run: sudo $0 $1"
  exec 9>/run/ai-gateway-install.lock
  flock -n 9 || fail "another install.sh is running on this machine; run this one again later"
}

need_systemd() {
  [ -d /run/systemd/system ] || fail "this machine does not run systemd; to install only the program, run: $0 install"
}

need_checkout() {
  [ -f "$ROOT/setup.py" ] && [ -d "$ROOT/aigw" ] || fail "$1 needs a checkout of the source, and this is an artefact; run it in a checkout"
}

need_venv() { # PYTHON
  command -v "$1" >/dev/null || fail "$1 is not installed; run: apt-get install python3 python3-venv"
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$1 is older than Python 3.10; set PYTHON to a newer one"
  "$1" -c 'import ensurepip, venv' 2>/dev/null || fail "$1 cannot make virtual environments; run: apt-get install python3-venv"
}

platform_of() { # PYTHON: the platform of its wheels, e.g. "3.11 x86_64"
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
  info "building version $version for Python $(platform_of "$python")"
  # A copy, because setuptools writes files into the folder that it builds.
  cp -R "$ROOT"/{aigw,twisted,setup.py,pyproject.toml,README.md,LICENSE} "$TMP/source"
  find "$TMP/source" -name __pycache__ -prune -exec rm -rf {} +
  "$python" -m venv "$TMP/build"
  # Every downloaded file has its hash in the repository, and only our own wheel is built.
  pip() { "$TMP/build/bin/pip" "$@" -q --disable-pip-version-check; }
  pip install --require-hashes --only-binary :all: -r "$HERE/requirements-build.txt"
  pip download --require-hashes --only-binary :all: -r "$HERE/requirements.txt" -d "$stage/wheels"
  SOURCE_DATE_EPOCH=315532800 pip wheel --no-build-isolation --no-deps -w "$stage/wheels" "$TMP/source"
  cp "$HERE"/{ai-gateway,ai-gateway.service,ai-gateway@.service,ai-gateway.socket,ai-gateway@.socket} \
    "$HERE"/{ai-gateway.sysusers,ai-gateway.tmpfiles,certbot-deploy-hook,config.yaml,reload} "$stage/systemd"
  cp -R "$ROOT"/{conf,docs,README.md,LICENSE,CHANGELOG.md} "$stage"
  cp "$HERE/install.sh" "$stage"
  platform_of "$python" >"$stage/PLATFORM"
  # The same content gives the same name, so that a repeated installation changes nothing.
  id=$version-$(cd "$stage" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-10)
  echo "$id" >"$stage/ID"
  mv "$stage" "$TMP/ai-gateway-$id"
  mkdir -p "$ROOT/dist"
  ARTEFACT=$ROOT/dist/ai-gateway-$id.tar.gz
  tar -C "$TMP" --owner=0 --group=0 -czf "$ARTEFACT.new" "ai-gateway-$id"
  printf '%s  %s\n' "$(hash_of "$ARTEFACT.new")" "${ARTEFACT##*/}" >"$ARTEFACT.sha256.new"
  mv "$ARTEFACT.sha256.new" "$ARTEFACT.sha256"
  mv "$ARTEFACT.new" "$ARTEFACT"
  info "made $ARTEFACT ($(du -h "$ARTEFACT" | cut -f1)) and its .sha256"
}

verified() { # FILE TO: copies FILE to TO and checks the hash of TO, because other users may be able to write to FILE
  local expected=${SHA256:-} got
  [ -f "$1" ] || fail "$1: no such file"
  if [ -z "$expected" ]; then
    [ -f "$1.sha256" ] || fail "$1 is not installed: its hash is unknown; copy $1.sha256, which \`build\` makes, or set SHA256"
    read -r expected _ <"$1.sha256" || true
  fi
  expected=${expected,,}
  [[ $expected =~ ^[0-9a-f]{64}$ ]] || fail "$1 is not installed: the hash ${expected:-(empty)} is wrong; write 64 hexadecimal digits"
  cp "$1" "$2"
  got=$(hash_of "$2")
  [ "$got" = "$expected" ] || fail "$1 is not installed: its SHA-256 is $got instead of $expected; copy the file again"
}

hash_of() { # FILE
  sha256sum <"$1" | cut -d' ' -f1
}

payload() { # [FILE]: sets PAYLOAD, an unpacked artefact, and ID
  if [ -n "${1:-}" ]; then
    temporary
    verified "$1" "$TMP/artefact.tar.gz"
    tar -C "$TMP" -xzf "$TMP/artefact.tar.gz" || fail "$1 is not an artefact; make one with: $0 build"
    PAYLOAD=$(dirname "$(find "$TMP" -maxdepth 2 -name PLATFORM)")
  elif [ -f "$HERE/.complete" ]; then # the script of an installed release: that release
    PAYLOAD=$HERE
    ID=$(<"$PAYLOAD/ID")
    return
  elif [ -f "$HERE/PLATFORM" ]; then
    PAYLOAD=$HERE
  else
    build
    PAYLOAD=$TMP/$(basename "$ARTEFACT" .tar.gz)
  fi
  [ -f "$PAYLOAD/ID" ] && [ -d "$PAYLOAD/wheels" ] || fail "${1:-$PAYLOAD} is not an artefact; make one with: $0 build"
  ID=$(<"$PAYLOAD/ID")
}

# --- releases -------------------------------------------------------------------------------------------------------

matching_python() { # sets PYTHON_HERE, a Python that fits the wheels
  local expected found python all=
  expected=$(<"$PAYLOAD/PLATFORM")
  for python in ${PYTHON:+"$PYTHON"} python3 "python${expected% *}"; do
    found=$(platform_of "$python" 2>/dev/null) || continue
    if [ "$found" = "$expected" ]; then
      need_venv "$python"
      PYTHON_HERE=$python
      return
    fi
    all=${all:+$all, }$found
  done
  fail "release $ID is for Python $expected, and this machine has ${all:-none}; build a release for that: PYTHON=python3.X $0 build"
}

install_release() { # unpacks PAYLOAD as releases/ID, complete or not at all
  local release=$HOME_DIR/releases/$ID
  umask 022
  if [ -f "$release/.complete" ]; then
    info "release $ID is installed already"
    return
  fi
  matching_python
  info "installing release $ID to $release"
  rm -rf "$release"
  mkdir -p "$release"
  cp -R "$PAYLOAD"/{systemd,conf,docs,README.md,LICENSE,CHANGELOG.md,ID,PLATFORM,install.sh} "$release"
  "$PYTHON_HERE" -m venv "$release/venv"
  "$release/venv/bin/pip" --isolated install -q --disable-pip-version-check --no-cache-dir --no-index \
    --find-links "$PAYLOAD/wheels" aigw
  # Twisted caches the list of plugins; the service may not write, so the cache is made here.
  "$release/venv/bin/python" -c 'from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))'
  chown -R root:root "$release"
  touch "$release/.complete"
}

current() { basename "$(readlink "$HOME_DIR/${1:-current}" 2>/dev/null)" 2>/dev/null || true; }

point() { # LINK ID
  ln -sfn "releases/$2" "$HOME_DIR/.$1.new" && mv -T "$HOME_DIR/.$1.new" "$HOME_DIR/$1"
}

activate() { # ID: the release for the next start
  local release=$HOME_DIR/releases/$1
  point current "$1" && install -D -m 0755 "$release/systemd/ai-gateway" "$WRAPPER" || return
  [ ! -f "$UNITS/ai-gateway.service" ] || install_units "$release"
}

install_units() { # RELEASE
  install -D -m 0644 -t "$UNITS" "$1"/systemd/ai-gateway{,@}.service "$1"/systemd/ai-gateway*.socket &&
    install -D -m 0644 "$1/systemd/ai-gateway.sysusers" "$SYSUSERS" &&
    install -D -m 0644 "$1/systemd/ai-gateway.tmpfiles" "$TMPFILES" &&
    systemctl daemon-reload
}

prune() { # keeps the running release, the previous one, and the newest
  local id count=0
  for id in $(cd "$HOME_DIR/releases" && ls -t); do
    count=$((count + 1))
    case $id in "$(current)" | "$(current previous)") continue ;; esac
    [ "$count" -le "$KEEP" ] || { info "removing release $id" && rm -rf "${HOME_DIR:?}/releases/$id"; }
  done
}

# --- the service ----------------------------------------------------------------------------------------------------

running() { # the running units, one per line
  systemctl list-units --plain --no-legend --state=active,activating,reloading,deactivating \
    ai-gateway.service 'ai-gateway@*.service' | cut -d' ' -f1 | grep -vxF "$HELPER" || true
}

state() { systemctl show --value -p "$2" "$1"; }

check_config() { # ID: checks the configuration with that release, as the service does
  AI_GATEWAY_RELEASE=$HOME_DIR/releases/$1 "$HOME_DIR/releases/$1/systemd/ai-gateway" check
}

configured() { # NAME: whether the configuration has the setting
  "$HOME_DIR/current/venv/bin/python" -I - "$ETC/config.yaml" "$1" <<'EOF'
import sys, yaml
with open(sys.argv[1]) as file:
    sys.exit(not (yaml.safe_load(file) or {}).get(sys.argv[2]))
EOF
}

open_sockets() { # the open socket units, one per line
  systemctl list-units --plain --no-legend --state=active ai-gateway.socket 'ai-gateway@*.socket' | cut -d' ' -f1
}

shares_socket() { # whether the units use the port of socket units; two processes cannot share other listeners
  [ -n "$(open_sockets)" ] && ! configured listen
}

shares_admin() { # whether a second process with this configuration can open its listener for administrators
  ! configured admin || { admin_of_unit && ! admin_in_environment; }
}

admin_of_unit() { # whether the unit sets the listener for administrators
  grep -Eq '^admin: *["'\'']?\$\{AIGW_ADMIN\}["'\'']? *(#.*)?$' "$ETC/config.yaml"
}

admin_in_environment() { # whether the file of the environment sets it: for systemd it wins over the units
  grep -Eqs '^[[:space:]]*AIGW_ADMIN=' "$ETC/environment"
}

ready_url() {
  local scheme=http
  if [ -n "${READY_URL:-}" ]; then
    echo "$READY_URL"
  elif shares_socket; then
    ! configured tls || scheme=https
    state "$(open_sockets | head -n 1)" Listen |
      sed -nE "1{s,^(\[::\]|0\.0\.0\.0):,127.0.0.1:,;s,^(.*:[0-9]+) \(Stream\)\$,$scheme://\1/ready,p}"
  fi
}

# Any unit that shares the socket may answer, so the question is repeated, with a new connection each time, until this
# process has answered. Every certificate is accepted, and a request for a client certificate counts as an answer. Whether
# there is TLS cannot be known here if the certificate comes from the environment or a credential, so both schemes are tried.
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
opener, others, problem = urllib.request.build_opener(no_proxy, https), 0, "it did not answer"

def who(answer):
    try:
        status = json.loads(answer.read())
        return status.get("pid", status.get("error", {}).get("pid"))
    except (ValueError, AttributeError):
        return None  # not an answer of the gateway

while time.monotonic() < end:
    if not os.path.exists(f"/proc/{pid}"):
        sys.exit(f"install.sh: {url}: process {pid} has ended")
    try:
        with opener.open(url, timeout=5) as answer:
            if who(answer) == pid:
                sys.exit()
        others += 1
    except urllib.error.HTTPError as error:
        problem = str(error)
        if who(error) == pid:
            break
        if error.code == 400:  # plain HTTP, and the gateway uses TLS
            url, other = other, url
    except (OSError, http.client.HTTPException) as error:
        if "CERTIFICATE_REQUIRED" in str(error):
            sys.exit()
        problem = str(error)
        url, other = other, url
    time.sleep(0.05)
sys.exit(f"install.sh: {url}: process {pid} is not ready: {problem} ({others} good answers came from other processes)")
EOF
}

stays_up() { # UNIT: whether the gateway becomes ready and stays active
  local pid i
  pid=$(state "$1" MainPID)
  asked_ready "$pid" || return 1
  for ((i = 0; i < WATCH_SECONDS * 2; i++)); do
    [ "$(state "$1" ActiveState)" = active ] && [ "$(state "$1" MainPID)" = "$pid" ] || return 1
    sleep 0.5
  done
}

restarted() { # UNIT
  info "restarting $1; it finishes its running requests first"
  timeout 120 systemctl restart "$1" && stays_up "$1"
}

show_journal() { # UNIT
  warn "$1 did not become ready; its last log lines are:"
  journalctl -q --no-pager -n 8 -o cat -u "$1" >&2 || true
}

roll() { # ID: makes it the running release, one unit after the other; if it does not become ready, restores the old one and returns 1
  local new=$1 old units unit touched='' helper=
  old=$(current)
  units=$(running)
  temporary
  if ! check_config "$new" >"$TMP/check" 2>&1; then
    cat "$TMP/check" >&2
    warn "release $new does not accept the configuration; nothing was changed"
    return 1
  fi
  if [[ $units == *@* && ! -f $HOME_DIR/releases/$new/systemd/ai-gateway@.socket ]]; then
    warn "release $new has no sockets for several instances; run INSTANCES=1 $0 install-service first"
    return 1
  fi
  activate "$new" || return 1
  # While a unit drains, the clients that the kernel gives to its socket would wait. One more unit on the same sockets serves
  # them, and shows whether the new release works before the old one is stopped.
  # This is impossible if each needs its own listener for administrators: then clients wait in the socket unit's queue.
  if shares_socket && shares_admin; then
    helper=$HELPER
    info "starting release $new in addition to the running one"
    prepare_helper
    if ! timeout 120 systemctl restart "$helper" || ! stays_up "$helper"; then
      show_journal "$helper"
      go_back "$old" "$helper"
      return 1
    fi
  fi
  for unit in $units; do
    touched+=" $unit"
    if ! restarted "$unit"; then
      show_journal "$unit"
      go_back "$old" "$helper" "$touched"
      return 1
    fi
  done
  stop_helper "$helper"
  [ "$new" = "$old" ] || point previous "$old"
  write_targets "$units"
  info "release $new is running"
}

go_back() { # ID HELPER [UNITS]
  local unit
  warn "returning to release $1"
  [ -n "${3:-}" ] || stop_helper "$2" # at once, because it accepts clients, and the old unit still runs
  activate "$1"
  for unit in ${3:-}; do
    systemctl reset-failed "$unit" 2>/dev/null || true
    restarted "$unit" || warn "$unit does not run with release $1; see: journalctl -u $unit"
  done
  stop_helper "$2"
}

prepare_helper() { # makes it accept on all open sockets; it has none of its own
  mkdir -p "$RUN/$HELPER.d"
  ln -sfn /dev/null "$RUN/${HELPER%.service}.socket"
  # The name is the last one, so that it overrides the drop-ins of all instances.
  printf '[Service]\nSockets=%s\nEnvironment=AIGW_ADMIN=unix:/run/aigw/upgrade.sock AIGW_INSTANCE=\n' \
    "$(open_sockets | tr '\n' ' ')" >"$RUN/$HELPER.d/zz-upgrade.conf"
  systemctl daemon-reload
}

stop_helper() { # UNIT or nothing
  [ -n "$1" ] || return 0
  systemctl stop "$1" 2>/dev/null || true
  systemctl reset-failed "$1" 2>/dev/null || true
  rm -rf "$RUN/$HELPER.d" "$RUN/${HELPER%.service}.socket"
  systemctl daemon-reload
}

first_files() { # the files that a machine needs before the first start; existing ones are kept
  local key=$ETC/keys/GATEWAY_API_KEY
  systemd-sysusers "$SYSUSERS"
  systemd-tmpfiles --create "$TMPFILES"
  if [ -e "$ETC/config.yaml" ]; then
    info "keeping $ETC/config.yaml"
    [ -z "${CONFIG:-}" ] || warn "CONFIG is ignored, because $ETC/config.yaml exists"
  else
    [ -z "${CONFIG:-}" ] || [ -f "$CONFIG" ] || fail "CONFIG: $CONFIG: no such file"
    info "writing $ETC/config.yaml${CONFIG:+ from $CONFIG}"
    install -m 0600 -o $NAME -g $NAME "${CONFIG:-$HOME_DIR/current/systemd/config.yaml}" "$ETC/config.yaml"
  fi
  if [ ! -s "$key" ] && grep -q '^[^#]*\${GATEWAY_API_KEY}' "$ETC/config.yaml" &&
    ! grep -qs '^GATEWAY_API_KEY=' "$ETC/environment"; then
    info "writing a new key for clients to $key"
    temporary
    "$HOME_DIR/current/venv/bin/python" -c 'import secrets; print(secrets.token_urlsafe(32))' >"$TMP/key"
    install -m 0600 "$TMP/key" "$key"
  fi
  if [ ! -e "$ETC/tls/fullchain.pem" ] && grep -q "^[^#]*$ETC/tls/fullchain.pem" "$ETC/config.yaml"; then
    info "writing a self-signed certificate to $ETC/tls; replace it with one of a CA"
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

# --- instances ------------------------------------------------------------------------------------------------------

wanted_units() { # the services that are to run, one per line: by INSTANCES, else those that are enabled, else one
  local count=${INSTANCES:-} i
  if [ -z "$count" ]; then
    enabled_units | grep @ || echo ai-gateway.service
    return
  fi
  [ "$count" != auto ] || count=$(nproc)
  [[ $count =~ ^[1-9][0-9]?$ ]] || fail "INSTANCES: $count is not a number of processes; write a number from 1 to 99, or auto"
  [ "$count" != 1 ] || { echo ai-gateway.service && return; }
  for ((i = 1; i <= count; i++)); do echo "ai-gateway@$i.service"; done
}

enabled_units() { # the services that a boot starts, one per line
  [ ! -d "$ENABLED" ] ||
    find "$ENABLED" \( -name ai-gateway.service -o -name 'ai-gateway@*.service' \) -printf '%f\n' | sort -V
}

check_instances() { # UNITS: whether the configuration lets so many processes run
  [ "$1" != ai-gateway.service ] || return 0
  ! configured listen ||
    fail "INSTANCES: $ETC/config.yaml has listen, and one process alone can open these listeners; remove listen, or set INSTANCES=1"
  ! { configured admin && admin_of_unit && admin_in_environment; } ||
    fail "INSTANCES: AIGW_ADMIN in $ETC/environment would be the listener of every process, and each needs its own; remove it there. To set another one, run: systemctl edit ai-gateway@.service"
  shares_admin ||
    fail "INSTANCES: $ETC/config.yaml has one listener in admin, and each process needs its own; write admin: \${AIGW_ADMIN}, or set INSTANCES=1"
}

socket_of() { # SERVICE...: their socket units, one per line
  printf '%s\n' "${@/%.service/.socket}"
}

open_socket() { # SERVICE [SECONDS]: tries for so long, while a process that ends still has the port
  local unit i
  unit=$(socket_of "$1")
  if [ "$(state "$unit" LoadState)" = masked ]; then
    info "$unit is masked, so the gateway opens its own listeners"
    return
  fi
  systemctl enable -q "$unit"
  for ((i = ${2:-0} * 5; i >= 0; i--)); do
    systemctl reset-failed "$unit" 2>/dev/null || true
    ! systemctl start "$unit" 2>/dev/null || return 0
    [ "$i" = 0 ] || sleep 0.2
  done
  fail "the port cannot be opened ($(state "$unit" Result)); to use another one, run: PORT=8443 $0 install-service"
}

start_units() { # SERVICE...: all of them, then each is asked: until it runs, an instance keeps the question waiting that comes to its socket
  local unit
  for unit in "$@"; do
    systemctl enable -q "$unit"
    systemctl reset-failed "$unit" 2>/dev/null || true
    timeout 120 systemctl start "$unit" || not_started "$unit"
  done
  for unit in "$@"; do
    stays_up "$unit" || not_started "$unit"
    info "$unit is active: $(state "$unit" StatusText)"
  done
}

not_started() { # SERVICE
  show_journal "$1"
  fail "$1 did not start; correct the error above, then run this again"
}

other_units() { # UNITS OTHERS: those of UNITS that are not in OTHERS, one per line
  grep -vxF -f <(printf '%s\n' "$2") <<<"$1" | grep . || true
}

# Between one unit and several the port is closed for a moment, because ai-gateway.socket shares it with no other socket. Otherwise
# none is refused: an instance that is added opens a socket beside the others, and one that is removed closes its own.
change_instances() { # runs the wanted units instead of the running ones
  local wanted have coming leaving unit patience=0
  wanted=$(wanted_units)
  have=$({ running && enabled_units; } | sort -uV)
  coming=$(other_units "$wanted" "$have")
  leaving=$(other_units "$have" "$wanted")
  [ -n "$coming$leaving" ] || return 0
  info "changing the running units to $(paste -sd' ' <<<"$wanted")"
  check_instances "$wanted"
  temporary
  if ! check_config "$(current)" >"$TMP/check" 2>&1; then
    cat "$TMP/check" >&2
    fail "the running units were not changed: $ETC/config.yaml has mistakes"
  fi
  copy_dropins "$wanted"
  if grep -qxF ai-gateway.service <<<"$coming"$'\n'"$leaving"; then
    leave "$leaving" --no-block # it finishes its requests while the others start
    patience=$READY_SECONDS
  fi
  for unit in $coming; do open_socket "$unit" "$patience"; done
  # shellcheck disable=SC2086 # a list
  start_units $coming
  leave "$leaving"
  write_targets "$wanted"
}

write_targets() { # UNITS: for Prometheus, the addresses of their listeners for administrators; it reads no Unix socket
  local file=$HOME_DIR/prometheus.json unit
  for unit in $1; do state "$unit" Environment; done |
    "$HOME_DIR/current/venv/bin/python" -I - 3<&0 "$ETC/config.yaml" "$ETC/environment" >"$file.new" <<'EOF' || true
import json, os, re, sys, yaml
with open(sys.argv[1]) as config:
    admin = (yaml.safe_load(config) or {}).get("admin")
admin = str(admin.get("endpoint") if isinstance(admin, dict) else admin)
common = os.path.exists(sys.argv[2]) and re.findall(r"(?m)^\s*AIGW_ADMIN=[\"']?([^\"'\s]*)", open(sys.argv[2]).read())
targets = []
for environment in open(3):
    of_unit = re.findall(r"(?:^|[ \"])AIGW_ADMIN=([^ \"]*)", environment)
    variable = [*of_unit, *(common or [])][-1:]
    endpoint = admin.replace("${AIGW_ADMIN}", *variable) if variable else admin
    found = re.fullmatch(r"(?:(tcp6?):(?:port=)?)?(\d+)(?::interface=((?:\\\\*:|[^:])*))?", endpoint.strip())
    if found:
        kind, port, host = found[1], found[2], (found[3] or "").replace("\\", "")
        host = {"": "::1" if kind == "tcp6" else "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        targets.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
if targets:
    print(json.dumps([{"targets": targets}]))
EOF
  if [ -s "$file.new" ]; then
    chmod 0644 "$file.new" && mv "$file.new" "$file"
  else
    rm -f "$file" "$file.new"
  fi
}

leave() { # UNITS [--no-block]: stops them for good, with their sockets, which else would be given clients
  local unit
  for unit in $1; do
    systemctl disable -q "$unit" "$(socket_of "$unit")" 2>/dev/null || true
    # The socket unit first: in one command it would be the last one, and the kernel would give it clients until then.
    systemctl stop "$(socket_of "$unit")" 2>/dev/null || true
    systemctl ${2:+"$2"} stop "$unit" || true
  done
}

copy_dropins() { # UNITS: what was set for the socket unit of one process holds for those of several, and the other way around
  local folder=/etc/systemd/system from=ai-gateway.socket.d to=ai-gateway@.socket.d
  [ "$1" != ai-gateway.service ] || from=ai-gateway@.socket.d to=ai-gateway.socket.d
  [ -d "$folder/$from" ] && [ ! -e "$folder/$to" ] || return 0
  info "copying $folder/$from to $to"
  cp -R "$folder/$from" "$folder/$to"
  systemctl daemon-reload
}

choose_port() { # PORT becomes a drop-in of the socket unit
  local dropin=/etc/systemd/system/ai-gateway.socket.d/port.conf
  [ "$(wanted_units)" = ai-gateway.service ] || dropin=/etc/systemd/system/ai-gateway@.socket.d/port.conf
  [ -n "${PORT:-}" ] || return 0
  [[ $PORT =~ ^[1-9][0-9]{0,4}$ && $PORT -le 65535 ]] || fail "PORT: $PORT is not a port; write a number from 1 to 65535"
  mkdir -p "$(dirname "$dropin")"
  printf '[Socket]\nListenStream=\nListenStream=%s\n' "$PORT" >"$dropin"
  systemctl daemon-reload
  info "the port is $PORT, set in $dropin"
}

start_service() {
  local units unit
  temporary
  if ! check_config "$(current)" >"$TMP/check" 2>&1; then
    cat "$TMP/check" >&2
    fail "the service was not started: $ETC/config.yaml has mistakes. Correct it (keys belong in $ETC/keys/NAME), then run this again"
  fi
  units=$(wanted_units)
  check_instances "$units"
  copy_dropins "$units"
  leave "$(other_units "$(enabled_units)" "$units")"
  for unit in $units; do open_socket "$unit"; done
  # shellcheck disable=SC2086 # a list
  start_units $units
  write_targets "$units"
}

# --- commands -------------------------------------------------------------------------------------------------------

cmd_install() {
  need_root install
  payload "$@"
  install_release
  if [ -d /run/systemd/system ] && [ -n "$(running)" ]; then
    fail "the service is running release $(current); to replace it, run: $0 upgrade"
  fi
  [ -z "$(current)" ] || [ "$(current)" = "$ID" ] || point previous "$(current)"
  activate "$ID"
  prune
  info "installed $WRAPPER; for its options run: $NAME --help"
}

cmd_install_service() {
  need_root install-service
  need_systemd
  wanted_units >/dev/null # which fails on a wrong number
  payload "$@"
  install_release
  if [ -f "$UNITS/ai-gateway.service" ] && [ -n "$(running)" ]; then
    first_files
    [ -z "${PORT:-}" ] || [[ $(state "$(open_sockets | head -n 1)" Listen) == *":$PORT ("* ]] ||
      warn "PORT is ignored, because the service is running; to change its port, run: systemctl edit ai-gateway.socket"
    replace
    [ -z "${INSTANCES:-}" ] || change_instances
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
    info "release $ID is running already; nothing was changed"
    return
  fi
  roll "$ID" || fail "release $ID was not installed; release $(current) is running"
  prune
}

cmd_upgrade() {
  need_root upgrade
  need_systemd
  [ -n "$(current)" ] && [ -f "$UNITS/ai-gateway.service" ] || fail "there is no service to upgrade; run: $0 install-service"
  payload "$@"
  install_release
  if [ -z "$(running)" ]; then
    warn "the service is not running; the new release is installed, but not started"
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
  [ -n "$back" ] && [ -f "$HOME_DIR/releases/$back/.complete" ] || fail "there is no previous release"
  if [ -n "$(running)" ]; then
    roll "$back" || fail "release $back was not installed; release $(current) is running"
  else
    point previous "$(current)"
    activate "$back"
    info "release $back is installed; the service is not running"
  fi
}

each_running() { # COMMAND: sets RUNNING, the units that it is for
  need_root "$1"
  need_systemd
  RUNNING=$(running)
  [ -n "$RUNNING" ] || fail "the service is not running; to start it, run: $0 install-service"
}

cmd_reload() {
  local unit
  each_running reload
  for unit in $RUNNING; do
    systemctl reload "$unit" || fail "$unit did not reload; it and the units after it keep the configuration that they have"
    info "$unit: $(state "$unit" StatusText)"
  done
  write_targets "$RUNNING"
}

cmd_restart() {
  each_running restart
  roll "$(current)" || fail "the units were not restarted; see the errors above"
}

cmd_uninstall() {
  local purge=
  case ${1:-} in "") ;; --purge) purge=yes ;; *) fail "uninstall takes only the option --purge" ;; esac
  need_root uninstall
  if [ -d /run/systemd/system ]; then
    info "stopping the service"
    systemctl stop ai-gateway.socket 'ai-gateway@*.socket' 'ai-gateway@*.service' ai-gateway.service 2>/dev/null || true
    systemctl disable -q ai-gateway.socket ai-gateway.service 2>/dev/null || true
    find /etc/systemd/system -type l \( -name 'ai-gateway@*.service' -o -name 'ai-gateway@*.socket' \) -delete
    systemctl reset-failed 'ai-gateway*' 2>/dev/null || true
  fi
  info "removing $HOME_DIR, $WRAPPER and the units"
  rm -rf "$HOME_DIR" "$WRAPPER" "$UNITS"/ai-gateway{,@}.{service,socket} "$SYSUSERS" "$TMPFILES" /run/aigw
  if [ -n "$purge" ]; then
    info "removing $ETC, the drop-ins and the user"
    rm -rf "$ETC" /etc/systemd/system/ai-gateway{,@}.{service,socket}.d
    ! id $NAME >/dev/null 2>&1 || userdel $NAME
  elif [ -d "$ETC" ]; then
    info "$ETC is kept; to remove it, run: $0 uninstall --purge"
  fi
  [ ! -d /run/systemd/system ] || systemctl daemon-reload
}

remote() { ssh "${SSH[@]}" -p "$SSH_PORT" "$TARGET" "$@"; }

cmd_deploy() {
  local there expected sudo='' tty='' folder python
  [ -n "${SSH_HOST:-}" ] || fail "SSH_HOST is not set; run: SSH_HOST=example.com [SSH_USER=deploy] [SSH_KEY=~/.ssh/id] $0 deploy"
  [ -z "${SSH_KEY:-}" ] || [ -f "$SSH_KEY" ] || fail "SSH_KEY: $SSH_KEY: no such file"
  [ -z "${CONFIG:-}" ] || [ -f "$CONFIG" ] || fail "CONFIG: $CONFIG: no such file"
  [ -z "${1:-}" ] || [ -f "$1" ] || fail "$1: no such file"
  command -v ssh >/dev/null || fail "ssh is not installed; run: apt-get install openssh-client"
  SSH_PORT=${SSH_PORT:-22}
  SSH_HOST=${SSH_HOST#[} SSH_HOST=${SSH_HOST%]}
  TARGET=${SSH_USER:-root}@$SSH_HOST
  COPY_TO=$TARGET
  [[ $SSH_HOST != *:* ]] || COPY_TO=${SSH_USER:-root}@[$SSH_HOST] # scp needs an IPv6 address in brackets, ssh needs it without
  temporary
  # One connection for all commands, so that ssh asks for a password once. ssh's own configuration decides on host keys.
  read -ra SSH <<<"${SSH_OPTS:-}"
  SSH+=(-o ControlMaster=auto -o "ControlPath=$TMP/ssh" -o ControlPersist=120 -o ConnectTimeout=15)
  [ -z "${SSH_KEY:-}" ] || SSH+=(-i "$SSH_KEY" -o IdentitiesOnly=yes)
  info "connecting to $TARGET, port $SSH_PORT"
  there=$(remote 'set -e
    [ -d /run/systemd/system ] || { echo "it does not run systemd"; exit; }
    command -v python3 >/dev/null || { echo "it has no python3"; exit; }
    python3 -c "import ensurepip, venv" 2>/dev/null || { echo "it has no python3-venv"; exit; }
    if [ "$(id -u)" = 0 ]; then how=root; elif ! command -v sudo >/dev/null; then how=none
    elif sudo -n true 2>/dev/null; then how=sudo; else how=ask; fi
    echo "ok $how"; python3 -c "import platform, sys; print(\"%d.%d\" % sys.version_info[:2], platform.machine())"') ||
    fail "ssh cannot log in to $TARGET; for a new host set SSH_OPTS=\"-o StrictHostKeyChecking=accept-new\""
  [[ $there == "ok "* ]] || fail "$SSH_HOST cannot run the gateway: $there"
  expected=${there#*$'\n'}
  case ${there%%$'\n'*} in
    "ok root") ;;
    "ok sudo") sudo="sudo -n" ;;
    "ok ask")
      [ -t 0 ] || fail "${SSH_USER:-root} needs a password for sudo on $SSH_HOST; run this from a terminal"
      sudo=sudo tty=-t
      ;;
    *) fail "${SSH_USER:-root} is not root on $SSH_HOST, and there is no sudo" ;;
  esac
  if [ -n "${1:-}" ]; then
    ARTEFACT=$TMP/$(basename "$1")
    verified "$1" "$ARTEFACT"
  elif [ -f "$HERE/PLATFORM" ]; then
    ARTEFACT=$TMP/$(basename "$HERE").tar.gz
    tar -C "$(dirname "$HERE")" --owner=0 --group=0 -czf "$ARTEFACT" "$(basename "$HERE")"
  else
    for python in ${PYTHON:+"$PYTHON"} python3 "python${expected% *}" ''; do
      [ -n "$python" ] || fail "$SSH_HOST has Python $expected, which this machine does not have; set PYTHON to a Python of that version"
      [ "$(platform_of "$python" 2>/dev/null)" = "$expected" ] && break
    done
    PYTHON=$python build
  fi
  folder=$(remote 'umask 077 && mktemp -d')
  info "copying $(basename "$ARTEFACT") to $SSH_HOST"
  scp -q "${SSH[@]}" -P "$SSH_PORT" "$ARTEFACT" "$COPY_TO:$folder/artefact.tar.gz"
  [ -z "${CONFIG:-}" ] || scp -q "${SSH[@]}" -P "$SSH_PORT" "$CONFIG" "$COPY_TO:$folder/config.yaml"
  info "installing on $SSH_HOST"
  # shellcheck disable=SC2086,SC2029 # -t or nothing; the folder and the variables are to be expanded here
  if remote $tty "cd $folder && echo '$(hash_of "$ARTEFACT")  artefact.tar.gz' | sha256sum --quiet -c - &&
    tar -xzf artefact.tar.gz --strip-components=1 &&
    $sudo env ${CONFIG:+CONFIG=$folder/config.yaml} ${PORT:+PORT=$(printf %q "$PORT")} \
      ${INSTANCES:+INSTANCES=$(printf %q "$INSTANCES")} \
      ${READY_URL:+READY_URL=$(printf %q "$READY_URL")} ./install.sh install-service
    status=\$?; cd / && $sudo rm -rf $folder; exit \$status"; then
    info "deployed to $SSH_HOST"
  else
    fail "the deployment to $SSH_HOST failed; see the errors above"
  fi
}

cmd_test() {
  need_checkout "$1"
  local python=${PYTHON:-python3} venv=$ROOT/.venv
  cd "$ROOT"
  if [ ! -x "$venv/bin/python" ]; then
    need_venv "$python"
    info "making $venv"
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
[ $# -le 1 ] || fail "there are too many arguments; for the commands run: $0 help"
case $command in
  build) build ;;
  install) cmd_install "$@" ;;
  install-service) cmd_install_service "$@" ;;
  upgrade) cmd_upgrade "$@" ;;
  rollback) cmd_rollback ;;
  reload) cmd_reload ;;
  restart) cmd_restart ;;
  deploy) cmd_deploy "$@" ;;
  uninstall) cmd_uninstall "$@" ;;
  test | test-coverage) cmd_test "$command" ;;
  help | -h | --help) help ;;
  *)
    printf 'install.sh: unknown command: %q\n\n' "$command" >&2
    help >&2
    exit 2
    ;;
esac
