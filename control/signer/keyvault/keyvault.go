// Package keyvault signs with a key that Azure Key Vault or a Managed HSM
// holds and never gives away: ECDSA P-256, since neither has Ed25519.
package keyvault

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
)

// deadline bounds one signature with all its tries: a grant waits for it, and
// with the grant a person.
const deadline = 10 * time.Second

// retries are short: what a vault cannot answer now, the caller is told.
var retries = policy.RetryOptions{MaxRetries: 3, TryTimeout: 4 * time.Second, RetryDelay: 200 * time.Millisecond, MaxRetryDelay: 3 * time.Second}

// key is one version of one key of a vault.
type key struct {
	client        *azkeys.Client
	name, version string
	public        *ecdsa.PublicKey
}

// Open opens https://VAULT/keys/NAME/VERSION with the credentials that Azure's
// tools find: a managed identity, a workload's, environment variables, or
// whoever is signed in to the Azure CLI.
func Open(ctx context.Context, id string) (crypto.Signer, error) {
	credential, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return nil, fmt.Errorf("key vault: %s", line(err))
	}
	return New(ctx, id, credential, nil)
}

// New opens a key with a credential. transport, if not nil, carries the calls.
//
// The version is part of the name: a key that is rotated in the vault does not
// change who signs here before the trust document says so.
func New(ctx context.Context, id string, credential azcore.TokenCredential, transport policy.Transporter) (crypto.Signer, error) {
	vault, name, version, err := parse(id)
	if err != nil {
		return nil, err
	}
	client, err := azkeys.NewClient(vault, credential, &azkeys.ClientOptions{ClientOptions: azcore.ClientOptions{Retry: retries, Transport: transport}})
	if err != nil {
		return nil, fmt.Errorf("key vault: %s", line(err))
	}
	k := &key{client: client, name: name, version: version}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	got, err := client.GetKey(ctx, name, version, nil)
	if err != nil {
		return nil, k.explain("be read", "keys/get", err)
	}
	if k.public, err = publicKey(got.Key); err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	return k, nil
}

// parse takes a key's identifier apart.
func parse(id string) (vault, name, version string, err error) {
	wrong := fmt.Errorf("%q is not a key's identifier: https://VAULT.vault.azure.net/keys/NAME/VERSION", id)
	u, err := url.Parse(id)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", "", wrong
	}
	p := strings.Split(u.Path, "/")
	if len(p) == 3 && p[0] == "" && p[1] == "keys" && p[2] != "" {
		return "", "", "", fmt.Errorf("%q names no version: add it, so that a rotation in the vault does not change who signs", id)
	}
	if len(p) != 4 || p[0] != "" || p[1] != "keys" || !plain(p[2]) || !plain(p[3]) {
		return "", "", "", wrong
	}
	return "https://" + u.Host, p[2], p[3], nil
}

// plain reports whether s is made of the letters of names and versions.
func plain(s string) bool {
	return s != "" && len(s) <= 127 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}

// publicKey reads a P-256 key as the vault writes it.
func publicKey(k *azkeys.JSONWebKey) (*ecdsa.PublicKey, error) {
	if k == nil || k.Kty == nil || !slices.Contains([]azkeys.KeyType{azkeys.KeyTypeEC, azkeys.KeyTypeECHSM}, *k.Kty) ||
		k.Crv == nil || *k.Crv != azkeys.CurveNameP256 {
		return nil, errors.New("the vault's key is not an elliptic curve key on P-256: make one with az keyvault key create --kty EC --curve P-256")
	}
	const half = 32
	if len(k.X) > half || len(k.Y) > half {
		return nil, errors.New("the vault's key is not on P-256")
	}
	point := make([]byte, 1+2*half) // leading zeros may be left out
	point[0] = 4
	copy(point[1+half-len(k.X):], k.X)
	copy(point[1+2*half-len(k.Y):], k.Y)
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, errors.New("the vault's key is not on P-256")
	}
	return public, nil
}

// Public is the key as the vault gave it when it was opened.
func (k *key) Public() crypto.PublicKey { return k.public }

// Sign has the vault sign a SHA-256 digest, and believes nothing that does not
// hold under the public key. The signature is in ASN.1.
func (k *key) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if o.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("key vault: an ECDSA key on P-256 signs SHA-256 digests")
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	algorithm := azkeys.SignatureAlgorithmES256
	answer, err := k.client.Sign(ctx, k.name, k.version, azkeys.SignParameters{Algorithm: &algorithm, Value: digest}, nil)
	if err != nil {
		return nil, k.explain("sign", "keys/sign", err)
	}
	if len(answer.Result) != 64 {
		return nil, fmt.Errorf("key vault: a signature of %d bytes is not one of ES256", len(answer.Result))
	}
	signature, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(answer.Result[:32]), new(big.Int).SetBytes(answer.Result[32:])})
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(k.public, digest, signature) {
		return nil, fmt.Errorf("key vault: the signature of key %s does not hold under the key's public half", k.name)
	}
	return signature, nil
}

// explain says in one line why the key cannot do what it should.
func (k *key) explain(what, permission string, err error) error {
	why := line(err)
	if answer, ok := errors.AsType[*azcore.ResponseError](err); ok {
		why = fmt.Sprintf("the vault answered %d %s", answer.StatusCode, answer.ErrorCode)
		switch answer.StatusCode {
		case 401, 403:
			why += ": this server's identity needs the permission " + permission
		case 404:
			why += ": there is no such key, or not this version"
		case 429:
			why += ": too many calls, try again"
		}
	} else if errors.Is(err, context.DeadlineExceeded) {
		why = fmt.Sprintf("the vault did not answer within %s", deadline)
	} else if network, ok := errors.AsType[*net.OpError](err); ok {
		why = "the vault cannot be reached: " + line(network)
	}
	return fmt.Errorf("key vault: key %s cannot %s: %s", k.name, what, why)
}

// line makes one short line of an error of Azure's SDK, which may have many.
func line(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 300 {
		return text[:300] + "…"
	}
	return text
}
