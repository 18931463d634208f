#!/bin/sh
# Runs all self-tests beside it, or those named, prints TAP and a summary, and
# fails if a test failed, or if the kernel log shows what it must not.
cd "$(dirname "$0")" || exit 1
mkdir -p /sys/kernel/debug && mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null

[ $# -gt 0 ] || set -- $(ls | grep -v -e '\.' -e '^usr$')
echo "TAP version 13"
echo "1..$(($# + 1))"
n=0
failed=0
result() {
	n=$((n + 1))
	[ "$1" = "ok" ] || failed=$((failed + 1))
	echo "$1 $n $2"
}

dmesg -C 2>/dev/null
for t in "$@"; do
	echo "# $t"
	./"$t" > /tmp/selftest.out 2>&1
	rc=$?
	sed 's/^/    /' /tmp/selftest.out
	case $rc in
	0) result ok "$t" ;;
	4) result ok "$t # SKIP" ;;
	*) result "not ok" "$t # exit status $rc" ;;
	esac
done
if dmesg | grep -E 'WARNING|BUG|KASAN|lockdep|Oops|Bad rss|Bad page|possible (recursive|circular)|hung_task|general protection'; then
	result "not ok" "kernel log"
else
	result ok "kernel log"
fi
echo "# $((n - failed)) of $n passed"
[ $failed = 0 ]
