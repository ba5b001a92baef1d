#!/bin/sh
# Runs a service. Each of these secrets may come as a file: NAME is read from the file that NAME_FILE names, unless NAME is set itself.
# A service that gives up (exit 78: a person must change something first), or that is killed for want of memory before it has got going, is not
# started again and again: its message stays the last line of its log, and the container waits, unhealthy, for `docker compose up`.
# With FULGURITE_GIVE_UP=exit it ends with the service's status, for Kubernetes, which starts it again ever later and shows its last lines.
set -u

wait_for_a_person() {
  [ "${FULGURITE_GIVE_UP:-wait}" != exit ] || exit 78
  exec sleep infinity
}

for name in FULGURITE_SIGNING_KEYS FULGURITE_ADMIN_KEY FULGURITE_API_KEYS KAFKA_SASL_PASSWORD REDIS_URL VLLM_API_KEY; do
  eval "given=\${$name:-} file=\${${name}_FILE:-}"
  if [ -z "$given" ] && [ -n "$file" ]; then
    [ -r "$file" ] || { echo "${name}_FILE=$file cannot be read: put the secret there, or set $name" >&2; wait_for_a_person; }
    export "$name=$(cat "$file")"
  fi
done

# At a terminal a person waits already, and types: the command has the terminal and its signals to itself.
[ ! -t 0 ] || exec "$@"

started=$(date +%s)
# A shell gives a command in the background /dev/null to read, so that `docker compose run cli` would lose what is piped into it.
exec 3<&0
"$@" <&3 3<&- &
child=$!
exec 3<&-
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
code=0
while :; do
  wait "$child"
  code=$?
  kill -0 "$child" 2>/dev/null || break
done

trap - TERM INT
[ "${FULGURITE_GIVE_UP:-wait}" != exit ] || exit "$code"

# The kernel may have killed a child of the service: it counts them, in one of two places.
short_of_memory() {
  [ "$code" = 137 ] || grep -qs '^oom_kill [1-9]' /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control
}
if [ "$code" != 0 ] && [ $(($(date +%s) - started)) -lt 300 ] && short_of_memory; then
  echo "gave up: killed while it started, most likely for want of memory. Raise ${MEMORY_SETTING:-its memory limit} in .env (now ${MEMORY_LIMIT:-unknown}), or give the machine more; then: docker compose up --detach" >&2
  code=78
fi
[ "$code" = 78 ] || exit "$code"
rm -f "${FULGURITE_PULSE:-/tmp/pulse}"
echo "gave up: change what the message above names, then: docker compose up --detach --force-recreate" >&2
exec sleep infinity
