package signer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os/exec"
	"strings"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// maxOutput is what a signing command may write; a public key in PEM and any
// signature are far less.
const maxOutput = 16 << 10

// command is a key behind a program.
type command struct {
	argv    []string
	timeout time.Duration
	public  crypto.PublicKey
}

// Command is a key behind an external program: of an HSM, of a token, of a
// service. The program is called in two ways, and never by a shell:
//
//	ARGV… public   writes the public key to standard output, in PEM
//	ARGV…          reads from standard input what to sign and writes the signature
//
// What to sign is the message itself for Ed25519, and its SHA-256, 32 bytes,
// for ECDSA P-256, whose signature may be in ASN.1 or the 64 bytes of r and s.
// The public key is asked for once, here.
func Command(ctx context.Context, argv []string, timeout time.Duration) (crypto.Signer, error) {
	if len(argv) == 0 {
		return nil, errors.New("the signing command has no program")
	}
	c := &command{argv: argv, timeout: timeout}
	text, err := c.run(ctx, nil, "public")
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s public did not write a public key in PEM", argv[0])
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err == nil {
		_, err = policy.NewKey(public)
	}
	if err != nil {
		return nil, fmt.Errorf("%s public: %w", argv[0], err)
	}
	c.public = public
	return c, nil
}

// Public is the key as the program gave it at the start.
func (c *command) Public() crypto.PublicKey { return c.public }

// Sign has the program sign, and believes nothing that does not hold under the
// public key.
func (c *command) Sign(_ io.Reader, signed []byte, o crypto.SignerOpts) ([]byte, error) {
	if err := checkOptions(c.public, signed, o); err != nil {
		return nil, err
	}
	signature, err := c.run(context.Background(), signed)
	if err != nil {
		return nil, err
	}
	if _, ok := c.public.(*ecdsa.PublicKey); ok && len(signature) == 64 && !holds(c.public, signed, signature) {
		if signature, err = asASN1(signature); err != nil {
			return nil, err
		}
	}
	if !holds(c.public, signed, signature) {
		return nil, fmt.Errorf("%s made a signature that does not hold under its public key", c.argv[0])
	}
	return signature, nil
}

// asASN1 writes an ECDSA signature that is r and s, each in half of the bytes,
// as crypto.Signer has it.
func asASN1(raw []byte) ([]byte, error) {
	half := len(raw) / 2
	if half == 0 || len(raw)%2 != 0 {
		return nil, fmt.Errorf("a signature of %d bytes is not r and s", len(raw))
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])})
}

// run calls the program once.
func (c *command) run(ctx context.Context, in []byte, more ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	args := append(append([]string(nil), c.argv[1:]...), more...)
	cmd := exec.CommandContext(ctx, c.argv[0], args...)
	// A child of its own that keeps the pipes must not keep us.
	cmd.WaitDelay = time.Second
	out, said := &limited{left: maxOutput}, &limited{left: maxOutput, quiet: true}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), out, said
	err := cmd.Run()
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("%s did not answer within %s", c.argv[0], c.timeout)
	case out.over:
		return nil, fmt.Errorf("%s wrote more than %d bytes", c.argv[0], maxOutput)
	case err != nil && said.firstLine() != "":
		return nil, fmt.Errorf("%s: %s (%w)", c.argv[0], said.firstLine(), err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", c.argv[0], err)
	}
	return out.text, nil
}

// limited keeps the first bytes of what is written to it. Unless quiet, more
// is an error, which ends the program.
type limited struct {
	text  []byte
	left  int
	quiet bool
	over  bool
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		l.over = true
		if !l.quiet {
			return 0, io.ErrShortBuffer
		}
		l.text = append(l.text, p[:l.left]...)
		l.left = 0
		return len(p), nil
	}
	l.left -= len(p)
	l.text = append(l.text, p...)
	return len(p), nil
}

// firstLine is the first line with something on it, fit for one line of ours.
func (l *limited) firstLine() string {
	for line := range strings.Lines(string(l.text)) {
		clean := strings.TrimSpace(strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r == 0xfffd {
				return ' '
			}
			return r
		}, line))
		if clean != "" {
			return clean[:min(len(clean), 300)]
		}
	}
	return ""
}
