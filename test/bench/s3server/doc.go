// Package s3server is a small S3 server to measure with: objects in memory
// that was touched before, latencies that can be set, buckets that do not see
// each other, and counts of what was asked. It speaks real HTTP/1.1, path style
// addresses, and what bs3 uses of S3: GetObject with ranges, PutObject with
// conditions, ListObjectsV2, DeleteObjects, CreateBucket, HeadBucket.
//
// It believes every signature, and an ETag says which put it was, not what the
// bytes are: hashing them would be measured too. It is no store for anything
// that matters.
//
// Beside the buckets it answers below /_/, where no bucket can be:
//
//	POST /_/latency?get=15ms&put=25ms   how long answers wait from now on
//	GET  /_/counts?bucket=NAME          Counts as JSON
//	POST /_/drop?bucket=NAME            forget the bucket; nobody may use it any more
package s3server
