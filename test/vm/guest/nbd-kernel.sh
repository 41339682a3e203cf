# vm: -m 2048 -t 900
# internal/device/nbd/kernel against the real client: contract, limits, failures, death.
. ./lib.sh
modprobe nbd
BS3_REQUIRE_KERNEL_NBD=1 ./kernel.test -test.v -test.run Kernel -test.timeout 800s > /tmp/out 2>&1 ||
  { grep -v '=== RUN' /tmp/out | tail -200; fail "kernel.test"; }
grep -E '^(---|ok|PASS)' /tmp/out
! dmesg | grep -E 'WARNING|BUG|hung' || fail "the kernel complains"
