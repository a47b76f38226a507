// Package main is a FIDO2 token in software, for tests: a provider library
// that OpenSSH's ssh-sk-helper loads in place of the one for USB (sk-api.h,
// versions 9 and 10). It is always touched, unless the key was made with
// no-touch-required. A key handle is the private key itself.
//
//	CGO_ENABLED=1 go build -buildmode=c-shared -o token.so token.go
package main

/*
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef const char *text;
typedef const uint8_t *octets;

struct sk_enroll_response {
	uint8_t flags;
	uint8_t *public_key;
	size_t public_key_len;
	uint8_t *key_handle;
	size_t key_handle_len;
	uint8_t *signature;
	size_t signature_len;
	uint8_t *attestation_cert;
	size_t attestation_cert_len;
	uint8_t *authdata;
	size_t authdata_len;
};

struct sk_sign_response {
	uint8_t flags;
	uint32_t counter;
	uint8_t *sig_r;
	size_t sig_r_len;
	uint8_t *sig_s;
	size_t sig_s_len;
};
*/
import "C"

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"os"
	"slices"
	"strconv"
	"unsafe"
)

// Numbers of sk-api.h.
const (
	algECDSA    = 0
	algEd25519  = 1
	unsupported = -2
	failed      = -1
	present     = 0x01
)

// sk_api_version answers what the test says its OpenSSH asks for: the part of
// the interface below is the same in versions 9 and 10.
//
//export sk_api_version
func sk_api_version() C.uint32_t {
	major, err := strconv.ParseUint(os.Getenv("TOKEN_API_VERSION"), 10, 15)
	if err != nil {
		return 0
	}
	return C.uint32_t(major << 16)
}

// key is the private key of a handle.
func key(alg C.uint32_t, handle []byte) (crypto.Signer, error) {
	if alg == algEd25519 {
		return ed25519.NewKeyFromSeed(handle), nil
	}
	return ecdsa.ParseRawPrivateKey(elliptic.P256(), handle)
}

// give hands a copy to C, which frees it.
func give(b []byte, to **C.uint8_t, length *C.size_t) {
	*to, *length = (*C.uint8_t)(C.CBytes(b)), C.size_t(len(b))
}

//export sk_enroll
func sk_enroll(alg C.uint32_t, challenge C.octets, challengeLen C.size_t, application C.text, flags C.uint8_t, pin C.text, options unsafe.Pointer, response **C.struct_sk_enroll_response) C.int {
	if alg != algECDSA && alg != algEd25519 {
		return unsupported
	}
	handle := make([]byte, 32)
	rand.Read(handle)
	handle[0] &= 0x7f // below the order of P-256
	k, err := key(alg, handle)
	if err != nil {
		return failed
	}
	var public []byte
	switch p := k.Public().(type) {
	case ed25519.PublicKey:
		public = p
	case *ecdsa.PublicKey:
		if public, err = p.Bytes(); err != nil {
			return failed
		}
	}
	r := (*C.struct_sk_enroll_response)(C.calloc(1, C.sizeof_struct_sk_enroll_response))
	r.flags = flags
	give(public, &r.public_key, &r.public_key_len)
	give(handle, &r.key_handle, &r.key_handle_len)
	give([]byte("none"), &r.signature, &r.signature_len)
	*response = r
	return 0
}

//export sk_sign
func sk_sign(alg C.uint32_t, data C.octets, dataLen C.size_t, application C.text, handle C.octets, handleLen C.size_t, flags C.uint8_t, pin C.text, options unsafe.Pointer, response **C.struct_sk_sign_response) C.int {
	k, err := key(alg, C.GoBytes(unsafe.Pointer(handle), C.int(handleLen)))
	if err != nil {
		return failed
	}
	r := (*C.struct_sk_sign_response)(C.calloc(1, C.sizeof_struct_sk_sign_response))
	r.flags, r.counter = flags&present, 1
	site := sha256.Sum256([]byte(C.GoString(application)))
	message := sha256.Sum256(C.GoBytes(unsafe.Pointer(data), C.int(dataLen)))
	signed := slices.Concat(site[:], []byte{byte(r.flags)}, binary.BigEndian.AppendUint32(nil, uint32(r.counter)), message[:])
	if alg == algEd25519 {
		sig, err := k.Sign(nil, signed, crypto.Hash(0))
		if err != nil {
			return failed
		}
		give(sig, &r.sig_r, &r.sig_r_len)
	} else {
		digest := sha256.Sum256(signed)
		der, err := k.Sign(rand.Reader, digest[:], crypto.SHA256)
		var n struct{ R, S *big.Int }
		if err == nil {
			_, err = asn1.Unmarshal(der, &n)
		}
		if err != nil {
			return failed
		}
		give(n.R.Bytes(), &r.sig_r, &r.sig_r_len)
		give(n.S.Bytes(), &r.sig_s, &r.sig_s_len)
	}
	*response = r
	return 0
}

//export sk_load_resident_keys
func sk_load_resident_keys(pin C.text, options unsafe.Pointer, keys unsafe.Pointer, n *C.size_t) C.int {
	return unsupported
}

func main() {}
