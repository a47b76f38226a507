package web

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func get(path, etag string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("If-None-Match", etag)
	Handler().ServeHTTP(w, r)
	return w
}

func TestPage(t *testing.T) {
	page := get("/", "")
	if page.Code != http.StatusOK || !strings.HasPrefix(page.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("GET / answers %d, %v", page.Code, page.Header())
	}
	policy := page.Header().Get("Content-Security-Policy")
	if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "script-src") {
		t.Errorf("Content-Security-Policy: %s", policy)
	}
	// The page must work under the policy it is served with.
	body := page.Body.String()
	if inline := regexp.MustCompile(`<script|<style|style=|onclick|https?://[a-z]+\.[a-z]`).FindString(body); inline != "" {
		t.Errorf("the page has %q, which its policy does not let through", inline)
	}
	for _, link := range regexp.MustCompile(`<link rel="stylesheet" href="([^"]+)"`).FindAllStringSubmatch(body, -1) {
		if css := get(link[1], ""); css.Code != http.StatusOK || !strings.HasPrefix(css.Header().Get("Content-Type"), "text/css") {
			t.Errorf("%s answers %d", link[1], css.Code)
		}
	}
	etag := page.Header().Get("ETag")
	if again := get("/", etag); etag == "" || again.Code != http.StatusNotModified || again.Body.Len() != 0 {
		t.Errorf("asked again with ETag %q: %d and %d bytes", etag, again.Code, again.Body.Len())
	}
	if other := get("/page.html", ""); other.Code != http.StatusNotFound {
		t.Errorf("/page.html answers %d", other.Code)
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest("POST", "/", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST / answers %d", w.Code)
	}
}
