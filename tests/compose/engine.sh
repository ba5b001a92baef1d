#!/usr/bin/env bash
# A Docker engine of its own for the test: `engine.sh start FOLDER`, `engine.sh stop FOLDER`. Data root, socket and everything else lie in FOLDER.
# Needs root and Debian's or Ubuntu's packages; exit 77 with a plain reason where that cannot be. `stop` leaves the machine as it was:
# mounts, bridge and firewall rules are taken back.
set -euo pipefail
readonly folder=$2
readonly rules="$folder/iptables.before"

refuse() { echo "no Docker engine can run here: $*" >&2; exit 77; }

install_engine() {
  command -v dockerd >/dev/null && command -v debootstrap >/dev/null && command -v iptables >/dev/null && return
  command -v apt-get >/dev/null || refuse "there is no dockerd, and no apt-get to install one with"
  apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends \
    docker.io debootstrap iptables >/dev/null || refuse "apt-get could not install docker.io and debootstrap"
}

# Tables without a rule are not listed: here they are, so that they can be put back.
save_rules() {
  iptables-save >"$rules" || refuse "iptables does not work, which containers' networks need"
  grep -q '^\*filter' "$rules" || printf '*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n' >>"$rules"
  grep -q '^\*nat' "$rules" || printf '*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n' >>"$rules"
}

start() {
  [[ $(id -u) == 0 ]] || refuse "starting one needs root; start Docker yourself, or use a machine where you may"
  install_engine
  mkdir -p "$folder"
  [[ -e "$rules" ]] || save_rules
  rm -f "$folder/pid"
  # Containers' packets must fit the machine's own way out.
  local mtu
  mtu=$(cat "/sys/class/net/$(ip route show default | awk '{ print $5; exit }')/mtu")
  # The socket's path stays short: 108 characters is the limit.
  nohup dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" --host "unix://$folder/socket" \
    --mtu "$mtu" --log-level warn >"$folder/dockerd.log" 2>&1 </dev/null &
  for _ in $(seq 100); do
    docker --host "unix://$folder/socket" version >/dev/null 2>&1 && return
    [[ -e /proc/$! ]] || break
    sleep 0.2
  done
  refuse "dockerd did not come up: $(tail -n 3 "$folder/dockerd.log")"
}

stop() {
  export DOCKER_HOST="unix://$folder/socket"
  docker ps --all --quiet 2>/dev/null | xargs -r docker rm --force >/dev/null 2>&1 || true
  docker network prune --force >/dev/null 2>&1 || true
  if [[ -s "$folder/pid" ]] && kill "$(cat "$folder/pid")" 2>/dev/null; then
    for _ in $(seq 150); do [[ -e "/proc/$(cat "$folder/pid" 2>/dev/null || echo none)" ]] || break; sleep 0.2; done
  fi
  awk -v under="$folder/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r -n 1 umount -l
  if [[ -e "$rules" ]]; then iptables-restore <"$rules"; fi
  ip link delete docker0 2>/dev/null || true
  rm -rf "$folder"
}

"$1"
