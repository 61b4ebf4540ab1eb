#!/bin/sh
# report.sh NAME [CODE]: tell a person how a scheduled run ended, and its last lines, which are the journal's or standard input.
# Of exit code 0 nothing is told. Under systemd MAILTO gets a mail, where there is a sendmail; cron mails what is printed.
set -u
name=$1
code=${2:-${MONITOR_EXIT_STATUS:-unknown}}
case $code in
0) exit 0 ;;
2) level=3 what="was refused before work began, and will be next time: see what it says" ;;
3) level=4 what="some scenes or dates failed on their data; the rest is published, and they are tried again next time" ;;
*) level=3 what="did not end well: see what it says; the next start does what is missing" ;;
esac
subject="$name: exit code $code: $what"

if [ -z "${MONITOR_UNIT:-}" ]; then
    printf '%s\n\n' "$subject"
    cat
    exit 0
fi
echo "<$level>$subject"
if [ -n "${MAILTO:-}" ] && command -v sendmail >/dev/null; then
    {
        printf 'To: %s\nSubject: %s\n\n' "$MAILTO" "$subject"
        journalctl --no-pager --output=cat --lines=30 "_SYSTEMD_INVOCATION_ID=$MONITOR_INVOCATION_ID"
    } | sendmail -t
fi
