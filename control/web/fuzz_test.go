package web

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// Wherever a link says to go on, the browser stays on this server's pages.
func FuzzOwnPath(f *testing.F) {
	for _, s := range []string{"", "/ui/vms", "//evil.example/ui/", "/ui/../x", "/ui/%2e%2e/x", "/\\evil.example", "https://evil.example/ui/vms", "/ui/vm?id=/a/b", "/ui/ \n", "/ui/a%0d%0ab", "/ui//x"} {
		f.Add(s)
	}
	base, err := url.Parse(here + "/ui/sign-in")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		to := ownPath(s)
		u, err := url.Parse(to)
		if err != nil {
			t.Fatalf("%q leads to %q: %v", s, to, err)
		}
		at := base.ResolveReference(u)
		if at.Scheme != base.Scheme || at.Host != base.Host || !strings.HasPrefix(at.Path, Prefix) || strings.ContainsAny(to, "\\\r\n") || strings.HasPrefix(to, "//") {
			t.Errorf("%q leads to %q", s, to)
		}
	})
}

// No form, whatever is in it, brings the server down, is answered with a fault
// of ours, or gets script into a page.
func FuzzForms(f *testing.F) {
	s := newSite(f)
	web1 := s.guard("web1", rule(22, "203.0.113.0/24", "PT3H"))
	b := s.signedIn(s.owner)
	vm := url.QueryEscape(web1.String())
	for _, path := range []string{"ports", "request", "requests/x/extend", "requests/x/approve", "sign-in", "settings/terms", "settings/scopes", "settings/joining", "settings/roles"} {
		for _, body := range []string{
			"", "vm=" + vm, "vm=" + vm + "&on.0.22=on&for.0.22=PT1H&source.0.22=range&range.0.22=x", "vm=" + vm + "&rows=1&on.0=on&number.0=22&sources.0=*&do=save",
			"vm=" + vm + "&rows=99999999999", "vm=%00&vm=" + vm, "by=P1D&comment=%ff", "do=make&scope=/&uses=1", "do=give&principal=local:a&role=Owner&scope=/x", "do=off&scope=/subscriptions/S", "asks=on&approvers=1&subscription=s&group=g&location=l&name=n&revision=1", "atMost=-PT1H", "token=a.b.c&next=//x", "%zz",
		} {
			f.Add(path, body)
		}
	}
	f.Fuzz(func(t *testing.T, path, body string) {
		target := "/ui/" + url.PathEscape(path)
		if u, err := url.Parse("/ui/" + path); err == nil && u.Path != livePath {
			target = "/ui/" + strings.TrimPrefix(u.EscapedPath(), "/ui/")
		}
		r := httptest.NewRequestWithContext(t.Context(), "POST", here+"/", strings.NewReader(body))
		u, err := url.Parse(here + target)
		if err != nil {
			return
		}
		r.URL = u
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		r.RemoteAddr = "203.0.113.7:40000"
		r.AddCookie(b.cookies[cookieName])
		w := httptest.NewRecorder()
		s.web.ServeHTTP(patient{w}, r)
		if w.Code >= 500 {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
		if strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") && w.Code != 303 && w.Code != 307 && w.Code != 301 && w.Code != 308 {
			harmlessPage(t, target, w.Body.String())
		}
	})
}
