package s3

import (
	"crypto/md5"
	"encoding/base64"
	"net/http"
)

// encryption is how the store is told to encrypt objects. The zero value tells it
// nothing.
type encryption struct {
	algorithm string // AES256 or aws:kms
	kmsKeyID  string // empty = the bucket's own
	customer  string // the customer's key, in base64
	sum       string // its MD5, in base64
}

// newEncryption returns the encryption that o asks for.
func newEncryption(o Options) encryption {
	e := encryption{algorithm: o.SSE, kmsKeyID: o.SSEKMSKeyID}
	if len(o.SSECustomerKey) > 0 {
		sum := md5.Sum(o.SSECustomerKey)
		e.customer = base64.StdEncoding.EncodeToString(o.SSECustomerKey)
		e.sum = base64.StdEncoding.EncodeToString(sum[:])
	}
	return e
}

// put sets the headers of a Put. The store's own encryption is asked for if
// encrypt is set and nothing else is configured.
func (e encryption) put(header http.Header, encrypt bool) {
	if encrypt && e == (encryption{}) {
		e.algorithm = "AES256"
	}
	if e.algorithm != "" {
		header["X-Amz-Server-Side-Encryption"] = []string{e.algorithm}
	}
	if e.kmsKeyID != "" {
		header["X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"] = []string{e.kmsKeyID}
	}
	e.customerKey(header)
}

// customerKey sets the headers that every transfer of an object needs that the
// store encrypts with a key which it does not keep.
func (e encryption) customerKey(header http.Header) {
	if e.customer == "" {
		return
	}
	header["X-Amz-Server-Side-Encryption-Customer-Algorithm"] = []string{"AES256"}
	header["X-Amz-Server-Side-Encryption-Customer-Key"] = []string{e.customer}
	header["X-Amz-Server-Side-Encryption-Customer-Key-Md5"] = []string{e.sum}
}
