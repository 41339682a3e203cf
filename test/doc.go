// Package test holds the end-to-end tests: the real bs3 as a process, over a
// directory and over a real S3 server, with clients that are not ours (libnbd,
// qemu-img, fio, the kernel's file systems through nbdfuse and a loop device).
// docs/TESTING.md says what each of them shows.
package test
