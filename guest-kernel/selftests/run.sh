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

# Linux's own also test swap and huge pages, if there are any.
zram=/sys/block/zram0
extras() {
	if [ "$1" = on ]; then
		echo 16 > /proc/sys/vm/nr_hugepages
		echo 1 > $zram/reset && echo 256M > $zram/disksize &&
			mkswap /dev/zram0 && swapon /dev/zram0
	else
		echo 0 > /proc/sys/vm/nr_hugepages
		swapoff /dev/zram0 && echo 1 > $zram/reset
	fi > /dev/null 2>&1
}

for t in "$@"; do
	echo "# $t"
	case $t in cow | pagemap_ioctl) extras on ;; esac
	begun=$(date +%s)
	./"$t" > /tmp/selftest.out 2>&1
	rc=$?
	echo "    # $t took $(($(date +%s) - begun)) s"
	case $t in cow | pagemap_ioctl) extras off ;; esac
	sed 's/^/    /' /tmp/selftest.out
	case $rc in
	0) result ok "$t" ;;
	4) result ok "$t # SKIP" ;;
	*) result "not ok" "$t # exit status $rc" ;;
	esac
done
if dmesg | grep -E 'WARNING|BUG|KASAN|inconsistent lock state|INFO: (lockdep|trying|task)|Oops|Bad rss|Bad page|possible (recursive|circular)|general protection'; then
	result "not ok" "kernel log"
else
	result ok "kernel log"
fi
echo "# $((n - failed)) of $n passed"
[ $failed = 0 ]
