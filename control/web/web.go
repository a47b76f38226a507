// Package web serves the control plane's page. It asks for nothing and tells
// nothing that needs a token; everything a page may know it gets from
// control/api like any other client.
package web

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"net/http"
)

//go:embed page.html page.css
var files embed.FS

// Handler answers GET / and GET /page.css, and 404 to everything else.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", file("page.html", "text/html; charset=utf-8"))
	mux.Handle("GET /page.css", file("page.css", "text/css; charset=utf-8"))
	return mux
}

// file serves one embedded file. A page that runs no script is told not to.
func file(name, kind string) http.Handler {
	text, err := files.ReadFile(name)
	if err != nil {
		panic(err) // embedded: the program would not have been built without it
	}
	digest := sha256.Sum256(text)
	etag := `"` + base64.RawURLEncoding.EncodeToString(digest[:12]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", kind)
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Write(text)
	})
}
