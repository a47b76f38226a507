package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// errSame is returned for a plain file that has not changed.
var errSame = errors.New("not changed")

// plain looks for the signed files at places that know nothing of jitgate: an
// object store, a web server, a directory.
type plain struct {
	client *http.Client
	tags   map[string]string // ETag of what was read last, by URL
	said   map[string]string // what was wrong last, by URL or path
}

func (f *Fetcher) newPlain() *plain {
	proxy := http.ProxyFromEnvironment
	if u, err := url.Parse(f.Proxy); f.Proxy != "" && err == nil {
		proxy = http.ProxyURL(u)
	}
	return &plain{tags: map[string]string{}, said: map[string]string{}, client: &http.Client{Timeout: answerWithin, Transport: &http.Transport{
		Proxy: proxy, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}}}
}

// lookAtPlain looks there whenever no control plane is reached.
func (f *Fetcher) lookAtPlain(ctx context.Context) {
	p := f.newPlain()
	if f.URL != "" {
		select { // the control plane first
		case <-ctx.Done():
			return
		case <-f.lost:
		case <-time.After(dialWithin): // it may take a connection and say nothing
		}
	}
	every := time.NewTicker(f.PollInterval)
	defer every.Stop()
	for {
		if !f.isReached() {
			for _, base := range f.Fallback {
				f.lookAt(ctx, p, base)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// lookAt brings what is new at one place.
func (f *Fetcher) lookAt(ctx context.Context, p *plain, base string) {
	for _, t := range uplink.Documents {
		where := strings.TrimSuffix(base, "/") + "/" + uplink.File(t)
		raw, err := p.read(ctx, where)
		if errors.Is(err, errSame) {
			continue
		}
		if err == nil {
			_, err = parseItem(raw)
		}
		if err != nil {
			if text := err.Error(); p.said[where] != text && ctx.Err() == nil {
				p.said[where] = text
				f.Log.Warn("nothing from here", "place", where, "error", err)
			}
			continue
		}
		delete(p.said, where)
		if now := f.report(); now.Status != nil && inForce(raw, now.Have.Of(t)) {
			continue
		}
		if err := f.deliver(t, raw, where); err != nil {
			delete(p.tags, where) // the next look reads it again
			f.Log.Error("a document cannot be delivered", "document", uplink.File(t), "from", where, "error", err)
		}
	}
}

// inForce reports whether a document has the version that is in force.
func inForce(raw []byte, version uint64) bool {
	i, err := parseItem(raw)
	return err == nil && i.version == version
}

// read reads one file: by its name where it is one, else by HTTP.
func (p *plain) read(ctx context.Context, where string) ([]byte, error) {
	if filepath.IsAbs(where) {
		return readPlainFile(where, policy.MaxEnvelope+1)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	if tag := p.tags[where]; tag != "" {
		request.Header.Set("If-None-Match", tag)
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotModified:
		return nil, errSame
	default:
		return nil, fmt.Errorf("%s", response.Status)
	}
	raw, err := readUpTo(response.Body, policy.MaxEnvelope)
	if err != nil {
		return nil, err
	}
	if _, err := parseItem(raw); err == nil { // a captive portal has tags too
		p.tags[where] = response.Header.Get("ETag")
	}
	return raw, nil
}
