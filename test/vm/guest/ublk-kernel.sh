# vm: -m 2048 -t 1200
# internal/device/ublk against the real driver: contract, limits, failures, death.
. ./lib.sh
modprobe ublk_drv
BS3_REQUIRE_UBLK=1 ./ublk.test -test.v -test.run 'Kernel|Ring' -test.timeout 1100s > /tmp/out 2>&1 ||
  { grep -v '=== RUN' /tmp/out | tail -200; fail "ublk.test"; }
grep -E '^(---|ok|PASS)' /tmp/out
! dmesg | grep -E 'WARNING|BUG|hung' || fail "the kernel complains"
