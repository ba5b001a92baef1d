#!/bin/bash
# Whether a service without a port can do its work: it touched its pulse within $1 seconds, and one of the brokers accepts connections.
[[ -n $(find "$FULGURITE_PULSE" -newermt "-$1 seconds" 2>/dev/null) ]] || { echo "no pulse within $1 s"; exit 1; }
for broker in ${KAFKA_BOOTSTRAP_SERVERS//,/ }; do
  (exec 3<>"/dev/tcp/${broker%:*}/${broker##*:}") 2>/dev/null && exit 0
done
echo "none of $KAFKA_BOOTSTRAP_SERVERS answers"
exit 1
