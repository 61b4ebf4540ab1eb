#!/bin/sh
# cron.sh COMMAND...: run a command for cron as the systemd unit does: with its environment, one at a time, its output in a log.
# It prints, and so cron mails to MAILTO, only what a person must see.
set -u
environment=${TILEWRIGHT_ENVIRONMENT:-/etc/tilewright/environment}
log=${TILEWRIGHT_LOG:-/var/log/tilewright/monitor.log}

if [ ! -r "$environment" ]; then
    echo "error: $environment: cannot be read: copy cluster/schedule/environment.example there"
    exit 2
fi
if [ -n "$(find "$environment" -perm /077)" ]; then
    echo "error: $environment: others can read the token in it: chmod 600 $environment"
    exit 2
fi
set -a
. "$environment" || exit 2
set +a
cd "$(dirname "$0")/../.." || exit 2

exec 9>>"$log.lock" || exit 1
if ! flock --nonblock 9; then
    echo "$(date -u +%FT%TZ) left out: the run before is not done" >>"$log"
    exit 0
fi
touch "$log"
before=$(wc -c <"$log")
echo "$(date -u +%FT%TZ) $*" >>"$log"
"$@" >>"$log" 2>&1 9>&-
code=$?
echo "$(date -u +%FT%TZ) exit code $code" >>"$log"
tail --bytes="+$((before + 1))" "$log" | tail --lines=30 | cluster/schedule/report.sh tilewright-monitor "$code"
exit "$code"
