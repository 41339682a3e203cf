// Package s3server is a small S3 server for measurements: it has objects in memory
// that was touched before, adjustable latencies, independent buckets, and counts of
// requests. It speaks real HTTP/1.1 with path style addresses, and what bs3 uses of
// S3: GetObject with ranges, PutObject with conditions, ListObjectsV2,
// DeleteObjects, CreateBucket, HeadBucket.
//
// It accepts every signature, and an ETag stands for the put, not for the bytes:
// hashing them would be measured too. Do not keep anything in it that matters.
//
// Below /_/, where no bucket can be, it also answers:
//
//	POST /_/latency?get=15ms&put=25ms   how long answers wait from now on
//	GET  /_/counts?bucket=NAME          Counts as JSON
//	POST /_/drop?bucket=NAME            forget the bucket; nobody may use it any more
package s3server
