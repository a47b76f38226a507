package identity

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/jitgate/jitgate/control"
)

// compact is the form of a signed token: header, claims and signature.
var compact = regexp.MustCompile(`^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

const notAToken = "The access token is neither a local token nor a signed one of an issuer."

// issuerOf reads which issuer a token says it is of. Nothing else of it is
// looked at, or believed, before that issuer's key has verified it.
func issuerOf(bearer string) (string, error) {
	if !compact.MatchString(bearer) {
		return "", refused(notAToken)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(bearer, ".")[1])
	if err != nil {
		return "", refused(notAToken)
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Issuer == "" {
		return "", refused(notAToken)
	}
	return claims.Issuer, nil
}

// claims are those of a verified token.
type claims map[string]json.RawMessage

// text is a claim that is a string; empty where it is none.
func (c claims) text(name string) string {
	var s string
	if json.Unmarshal(c[name], &s) != nil {
		return ""
	}
	return s
}

// list is a claim that is a list of strings, or one string.
func (c claims) list(name string) []string {
	if one := c.text(name); one != "" {
		return []string{one}
	}
	var many []string
	if json.Unmarshal(c[name], &many) != nil {
		return nil
	}
	return many
}

// no reports a claim that says false, as a boolean or, as some issuers write
// it, as a string.
func (c claims) no(name string) bool {
	return string(c[name]) == "false" || c.text(name) == "false"
}

// person is who a token is of.
type person struct {
	id, name, kind string
	groups         []string // principals: "group:" and "role:"
}

// microsoft are the hosts of Entra ID in Azure's clouds.
var microsoft = []string{"login.microsoftonline.com", "sts.windows.net", "login.microsoftonline.us", "login.partner.microsoftonline.cn", "login.chinacloudapi.cn"}

// isMicrosoft reports whether an issuer is Entra ID.
func isMicrosoft(issuer string) bool {
	u, err := url.Parse(issuer)
	return err == nil && slices.Contains(microsoft, u.Host)
}

// person maps the claims of a verified token.
func (i Issuer) person(c claims) (person, error) {
	subject := c.text("sub")
	if i.Entra {
		// The subject of Entra ID is another for every application; the object
		// in its tenant is who it is.
		if c.text("oid") == "" || c.text("tid") == "" {
			return person{}, refused("The access token has no 'oid' and 'tid'.")
		}
		subject = strings.ToLower(c.text("tid") + "/" + c.text("oid"))
	}
	if subject == "" || len(subject) > 200 || strings.ContainsFunc(subject, unfit) {
		return person{}, refused("The access token has no 'sub' that names anybody.")
	}
	if len(i.AllowedTenants) > 0 && !slices.ContainsFunc(i.AllowedTenants, func(t string) bool { return strings.EqualFold(t, c.text("tid")) }) {
		return person{}, refused("The access token is of a tenant that is not allowed here.")
	}
	p := person{id: i.URL + "#" + subject, name: i.name(c, subject), kind: i.kind(c)}
	add := func(prefix string, names []string) {
		for _, n := range names {
			if n != "" && len(n) <= 200 {
				p.groups = append(p.groups, prefix+n)
			}
		}
	}
	add("group:"+i.GroupPrefix, c.list(cmp.Or(i.GroupsClaim, "groups")))
	add("role:"+i.GroupPrefix, c.list("roles"))
	slices.Sort(p.groups)
	p.groups = slices.Compact(p.groups)
	return p, nil
}

// unfit reports what has no place in a principal's name.
func unfit(r rune) bool { return r <= ' ' || r > '~' }

// name is what people know the caller by. It decides nothing.
func (i Issuer) name(c claims, subject string) string {
	for _, claim := range []string{i.NameClaim, "preferred_username", "upn", "unique_name", "email", "name", "app_displayname"} {
		if claim == "email" && c.no("email_verified") {
			continue
		}
		name := strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return -1
			}
			return r
		}, c.text(claim))
		if name != "" && len(name) <= 256 {
			return name
		}
	}
	return subject
}

// kind tells a person from a program.
func (i Issuer) kind(c claims) string {
	program := false
	switch {
	case c.text("idtyp") != "":
		program = c.text("idtyp") == "app"
	case i.Entra: // a token that acts for a person has a scope
		program = c.text("scp") == ""
	default: // RFC 9068: a client that acts for itself is its own subject
		program = c.text("sub") == c.text("client_id") || c.text("gty") == "client-credentials"
	}
	if program {
		return control.TypeApplication
	}
	return control.TypeUser
}
