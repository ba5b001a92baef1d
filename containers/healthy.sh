#!/bin/bash
# Whether a service without a port can do its work: it touched its pulse within $1 seconds, and a broker accepts connections.
[[ -n $(find "$FULGURITE_PULSE" -newermt "-$1 seconds" 2>/dev/null) ]] || { echo "no pulse within $1 s"; exit 1; }
broker=${KAFKA_BOOTSTRAP_SERVERS%%,*}
exec 3<>"/dev/tcp/${broker%:*}/${broker##*:}" || { echo "$broker does not answer"; exit 1; }
