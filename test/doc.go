// Package test holds the end-to-end tests: they run the real bs3 as a process, on
// a directory and on a real S3 server, with clients that are not ours (libnbd,
// qemu-img, fio, the kernel's file systems through nbdfuse and a loop device).
// docs/TESTING.md says what each of them shows.
package test
