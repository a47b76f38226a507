package api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A pattern is a path in segments: a word that must stand there, "~word" in
// any letter case, or "{name}", which takes one segment. "{name...}" in the
// table of routes stands for a whole resource id and is spelled out by parse.
type pattern []string

// Resource ids inside a path. Their fixed words are those of Azure, which
// takes them in any letter case.
const (
	vmPattern     = "~subscriptions/{subscription}/~resourceGroups/{group}/~providers/{namespace}/{type}/{vm}"
	policyPattern = "~subscriptions/{subscription}/~resourceGroups/{group}/~providers/~Microsoft.Security/~locations/{location}/~jitNetworkAccessPolicies/{policy}"
)

func parsePattern(s string) pattern {
	s = strings.NewReplacer("{vm...}", vmPattern, "{policy...}", policyPattern).Replace(s)
	return strings.Split(strings.TrimPrefix(s, "/"), "/")
}

// String is the pattern as OpenAPI writes paths.
func (p pattern) String() string {
	return "/" + strings.ReplaceAll(strings.Join(p, "/"), "~", "")
}

// names are those of its parameters.
func (p pattern) names() []string {
	var names []string
	for _, s := range p {
		if strings.HasPrefix(s, "{") {
			names = append(names, strings.Trim(s, "{}"))
		}
	}
	return names
}

func (p pattern) match(segments []string) (map[string]string, bool) {
	if len(p) != len(segments) {
		return nil, false
	}
	params := map[string]string{}
	for i, want := range p {
		switch got := segments[i]; {
		case want[0] == '{':
			params[want[1:len(want)-1]] = got
		case want[0] == '~' && strings.EqualFold(want[1:], got):
		case want != got:
			return nil, false
		}
	}
	return params, true
}

const (
	maxPath    = 2048
	maxSegment = 260
)

// segmentsOf splits the path of a URL. Each segment is decoded once, and
// refused if it then holds what a second reader could take for something
// else: a separator, a step up, another encoding, a control character.
func segmentsOf(u *url.URL) ([]string, error) {
	bad := func(why string) error {
		return invalid("InvalidRequestUri", "The request path is not valid: %s.", why)
	}
	path := u.EscapedPath()
	if len(path) > maxPath {
		return nil, refuse(http.StatusRequestURITooLong, "RequestUriTooLong", "The request path is longer than %d bytes.", maxPath)
	}
	return split(path, bad)
}

// splitID splits a resource id like the path of a URL.
func splitID(id string) ([]string, error) {
	return split(id, func(why string) error { return invalid("InvalidResourceId", "The resource id is not valid: %s.", why) })
}

func split(path string, bad func(why string) error) ([]string, error) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, bad("it does not begin with a slash")
	}
	segments := strings.Split(rest, "/")
	for i, s := range segments {
		s, err := url.PathUnescape(s)
		switch {
		case err != nil:
			return nil, bad("its percent encoding")
		case s == "" && len(segments) > 1:
			return nil, bad("it has an empty segment")
		case len(s) > maxSegment:
			return nil, bad("a segment is too long")
		case s == "." || s == "..":
			return nil, bad("it has a segment of dots")
		case strings.ContainsFunc(s, func(r rune) bool {
			return !unicode.IsPrint(r) || r == utf8.RuneError || strings.ContainsRune(`/\%?#`, r)
		}):
			return nil, bad("a segment has a character that no name has")
		}
		segments[i] = s
	}
	return segments, nil
}

// routes finds the handler of a call.
type routes map[int][]*route // by number of segments

func newRoutes(all []*route) routes {
	rs := routes{}
	for _, r := range all {
		rs[len(r.pattern)] = append(rs[len(r.pattern)], r)
	}
	return rs
}

// find returns the route of a call with what its path says. Where only the
// method is wrong, allowed are those that are not.
func (rs routes) find(method string, segments []string) (found *route, params map[string]string, allowed []string) {
	if method == http.MethodHead { // net/http sends the header alone
		method = http.MethodGet
	}
	for _, r := range rs[len(segments)] {
		p, ok := r.pattern.match(segments)
		switch {
		case !ok:
		case r.method == method:
			return r, p, nil
		case !slices.Contains(allowed, r.method):
			allowed = append(allowed, r.method)
		}
	}
	return nil, nil, allowed
}
