package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Header is what every document begins with.
type Header struct {
	Realm   string // the installation the document belongs to
	Version uint64 // rises by one with every document of its type (and host)
	Issued  time.Time
	Expires time.Time // exclusive: at this instant the document is over
}

type headerJSON struct {
	Realm   *string `json:"realm"`
	Version *uint64 `json:"version"`
	Issued  *string `json:"issued"`
	Expires *string `json:"expires"`
}

func (raw headerJSON) header() (h Header, err error) {
	if h.Realm, err = need("realm", raw.Realm); err != nil {
		return h, err
	}
	if err = token("realm", h.Realm, 128); err != nil {
		return h, err
	}
	if h.Version, err = need("version", raw.Version); err != nil {
		return h, err
	}
	if h.Version == 0 || h.Version > MaxVersion {
		return h, fmt.Errorf("version %d is outside 1 to 2^53-1", h.Version)
	}
	if h.Issued, err = needTime("issued", raw.Issued); err != nil {
		return h, err
	}
	if h.Expires, err = needTime("expires", raw.Expires); err != nil {
		return h, err
	}
	if !h.Expires.After(h.Issued) {
		return h, fmt.Errorf("expires %s is not after issued %s", *raw.Expires, *raw.Issued)
	}
	return h, nil
}

func (h Header) json() headerJSON {
	issued, expires := FormatTime(h.Issued), FormatTime(h.Expires)
	return headerJSON{&h.Realm, &h.Version, &issued, &expires}
}

func needTime(name string, s *string) (time.Time, error) {
	v, err := need(name, s)
	if err != nil {
		return time.Time{}, err
	}
	t, err := parseTime(v)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

// Host names the virtual machine a document is for.
type Host struct {
	ID      string // compared without letter case; in a policy it may end in "/*"
	Install string // if not empty, the one installation of that host
}

type hostJSON struct {
	ID      *string `json:"id"`
	Install *string `json:"install,omitempty"`
}

func (raw *hostJSON) host() (h Host, err error) {
	if raw == nil {
		return h, fmt.Errorf("host %w", errMissing)
	}
	if h.ID, err = need("host.id", raw.ID); err != nil {
		return h, err
	}
	if err = CheckHostID(h.ID); err != nil {
		return h, err
	}
	if raw.Install != nil {
		// Empty is refused: it would read as "any" where somebody meant one.
		h.Install = *raw.Install
		err = CheckInstall(h.Install)
	}
	return h, err
}

func (h Host) json() *hostJSON {
	raw := &hostJSON{ID: &h.ID}
	if h.Install != "" {
		raw.Install = &h.Install
	}
	return raw
}

// CheckHostID reports whether documents can name a host by id: printable ASCII
// without spaces, from 1 to 512 bytes.
func CheckHostID(id string) error { return token("host.id", id, 512) }

// CheckInstall reports whether documents can name an installation by id:
// printable ASCII without spaces, from 1 to 128 bytes.
func CheckInstall(id string) error { return token("host.install", id, 128) }

// names reports whether h names the host id. A scope ("…/*") names every host
// below it.
func (h Host) names(id string) bool {
	own, id := strings.ToLower(h.ID), strings.ToLower(id)
	if scope, ok := strings.CutSuffix(own, "*"); ok && strings.HasSuffix(scope, "/") {
		return strings.HasPrefix(id, scope) && len(id) > len(scope)
	}
	return own == id
}

// Sessions says what happens to an established session when its grant ends.
type Sessions string

// The ways a session may end.
const (
	Keep Sessions = "keep" // it goes on (Azure's behaviour)
	Cut  Sessions = "cut"  // the kernel ends it at the deadline
)

// Port is a guarded port, or range of ports, with the bounds of any grant.
type Port struct {
	Number, EndNumber        uint16 // inclusive; equal for one port
	Protocol                 Protocol
	AllowedSources           []netip.Prefix
	MaxRequestAccessDuration time.Duration
	SessionsAtEnd            Sessions
}

// String is the port as people write it: 22/tcp, 5985-5986/tcp, 3389.
func (p Port) String() string {
	s := fmt.Sprint(p.Number)
	if p.EndNumber != p.Number {
		s += fmt.Sprintf("-%d", p.EndNumber)
	}
	if p.Protocol != Both {
		s += "/" + strings.ToLower(string(p.Protocol))
	}
	return s
}

// Policy says which ports of a host are guarded, and bounds every grant.
type Policy struct {
	Header
	Epoch                              uint64 // of the policy role in the trust document; zero until a policy key is lost
	Host                               Host
	Ports                              []Port
	ExemptSources                      []netip.Prefix // always admitted to guarded ports
	MaxGrantsAge                       time.Duration  // no opening outlives the grants' issued time plus this
	MaxUnattended                      time.Duration  // not zero: openings are leases the living agent renews
	NarrowestPrefix4, NarrowestPrefix6 int            // shortest prefix length a grant's source may have
}

type policyJSON struct {
	headerJSON
	Epoch            *uint64     `json:"epoch,omitempty"`
	Host             *hostJSON   `json:"host"`
	Ports            *[]portJSON `json:"ports"`
	ExemptSources    []string    `json:"exemptSourceAddressPrefixes,omitempty"`
	MaxGrantsAge     *string     `json:"maxGrantsAge,omitempty"`
	MaxUnattended    *string     `json:"maxUnattended,omitempty"`
	NarrowestPrefix4 int         `json:"narrowestPrefix4,omitzero"`
	NarrowestPrefix6 int         `json:"narrowestPrefix6,omitzero"`
}

type portJSON struct {
	Number                   *uint16   `json:"number"`
	EndNumber                *uint16   `json:"endNumber,omitempty"`
	Protocol                 *string   `json:"protocol"`
	AllowedSources           *[]string `json:"allowedSourceAddressPrefixes"`
	MaxRequestAccessDuration *string   `json:"maxRequestAccessDuration"`
	SessionsAtEnd            *string   `json:"sessionsAtEnd,omitempty"`
}

// DefaultMaxGrantsAge applies where a policy does not say maxGrantsAge.
const DefaultMaxGrantsAge = 24 * time.Hour

func parsePolicy(payload []byte) (Policy, error) {
	var raw policyJSON
	err := decodeStrict(payload, &raw)
	var p Policy
	if err == nil {
		p, err = raw.policy()
	}
	if err != nil {
		return Policy{}, Refuse(Malformed, "policy: %v", err)
	}
	return p, nil
}

func (raw policyJSON) policy() (p Policy, err error) {
	if p.Header, err = raw.header(); err != nil {
		return p, err
	}
	if p.Host, err = raw.Host.host(); err != nil {
		return p, err
	}
	if p.Epoch, err = policyEpoch(raw.Epoch); err != nil {
		return p, err
	}
	ports, err := need("ports", raw.Ports)
	if err != nil {
		return p, err
	}
	if len(ports) > MaxPorts {
		return p, fmt.Errorf("%d ports, the limit is %d", len(ports), MaxPorts)
	}
	for i, r := range ports {
		port, err := r.port()
		if err != nil {
			return p, fmt.Errorf("ports[%d]: %w", i, err)
		}
		// A grant names a number and nothing else, so a number must lead to
		// one entry.
		for j, q := range p.Ports {
			if port.Number <= q.EndNumber && q.Number <= port.EndNumber {
				return p, fmt.Errorf("ports[%d] %s overlaps ports[%d] %s: a number belongs to one entry", i, port, j, q)
			}
		}
		p.Ports = append(p.Ports, port)
	}
	if p.ExemptSources, err = parsePrefixes("exemptSourceAddressPrefixes", raw.ExemptSources, MaxPrefixes); err != nil {
		return p, err
	}
	if p.MaxGrantsAge, err = optionalDuration("maxGrantsAge", raw.MaxGrantsAge, DefaultMaxGrantsAge); err != nil {
		return p, err
	}
	if p.MaxGrantsAge <= 0 {
		return p, fmt.Errorf("maxGrantsAge is zero: no grant could ever open a port")
	}
	if p.MaxUnattended, err = optionalDuration("maxUnattended", raw.MaxUnattended, 0); err != nil {
		return p, err
	}
	p.NarrowestPrefix4, p.NarrowestPrefix6 = raw.NarrowestPrefix4, raw.NarrowestPrefix6
	if p.NarrowestPrefix4 < 0 || p.NarrowestPrefix4 > 32 {
		return p, fmt.Errorf("narrowestPrefix4 %d is outside 0 to 32", p.NarrowestPrefix4)
	}
	if p.NarrowestPrefix6 < 0 || p.NarrowestPrefix6 > 128 {
		return p, fmt.Errorf("narrowestPrefix6 %d is outside 0 to 128", p.NarrowestPrefix6)
	}
	return p, nil
}

func (raw portJSON) port() (p Port, err error) {
	if p.Number, err = need("number", raw.Number); err != nil {
		return p, err
	}
	p.EndNumber = p.Number
	if raw.EndNumber != nil {
		p.EndNumber = *raw.EndNumber
	}
	if p.Number == 0 || p.EndNumber < p.Number {
		return p, fmt.Errorf("%d to %d is not a range of ports", p.Number, p.EndNumber)
	}
	protocol, err := need("protocol", raw.Protocol)
	if err != nil {
		return p, err
	}
	if p.Protocol, err = parseProtocol(protocol); err != nil {
		return p, err
	}
	sources, err := need("allowedSourceAddressPrefixes", raw.AllowedSources)
	if err != nil {
		return p, err
	}
	if len(sources) == 0 {
		return p, fmt.Errorf(`allowedSourceAddressPrefixes is empty: write "*" for any source`)
	}
	if p.AllowedSources, err = parsePrefixes("allowedSourceAddressPrefixes", sources, MaxPrefixes); err != nil {
		return p, err
	}
	longest, err := need("maxRequestAccessDuration", raw.MaxRequestAccessDuration)
	if err != nil {
		return p, err
	}
	if p.MaxRequestAccessDuration, err = ParseDuration(longest); err != nil {
		return p, fmt.Errorf("maxRequestAccessDuration: %w", err)
	}
	if p.MaxRequestAccessDuration <= 0 {
		return p, fmt.Errorf("maxRequestAccessDuration is zero")
	}
	p.SessionsAtEnd = Keep
	if raw.SessionsAtEnd != nil {
		p.SessionsAtEnd = Sessions(*raw.SessionsAtEnd)
	}
	if p.SessionsAtEnd != Keep && p.SessionsAtEnd != Cut {
		return p, fmt.Errorf("sessionsAtEnd %q is not keep or cut", p.SessionsAtEnd)
	}
	return p, nil
}

func optionalDuration(name string, s *string, otherwise time.Duration) (time.Duration, error) {
	if s == nil {
		return otherwise, nil
	}
	d, err := ParseDuration(*s)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// Encode writes the policy as a payload to sign.
func (p Policy) Encode() []byte {
	age, unattended := FormatDuration(p.MaxGrantsAge), FormatDuration(p.MaxUnattended)
	ports := make([]portJSON, len(p.Ports))
	for i, q := range p.Ports {
		sources, longest := formatPrefixes(q.AllowedSources), FormatDuration(q.MaxRequestAccessDuration)
		ports[i] = portJSON{&q.Number, &q.EndNumber, (*string)(&q.Protocol), &sources, &longest, (*string)(&q.SessionsAtEnd)}
	}
	raw := policyJSON{headerJSON: p.Header.json(), Host: p.Host.json(), Ports: &ports, ExemptSources: formatPrefixes(p.ExemptSources),
		MaxGrantsAge: &age, MaxUnattended: &unattended, NarrowestPrefix4: p.NarrowestPrefix4, NarrowestPrefix6: p.NarrowestPrefix6}
	if p.Epoch != 0 {
		raw.Epoch = &p.Epoch
	}
	return encode(raw)
}

// port returns the entry that guards number.
func (p Policy) port(number uint16) (Port, bool) {
	for _, q := range p.Ports {
		if q.Number <= number && number <= q.EndNumber {
			return q, true
		}
	}
	return Port{}, false
}

// Grants is the complete list of grants for one host: what is not in it is
// not granted.
type Grants struct {
	Header
	Epoch         uint64 // of the grant role in the trust document
	Host          Host
	PolicyVersion uint64 // the policy the signer saw; 0 means any
	Grants        []Grant
}

// Grant asks to open one port number for some sources in [Start, End).
type Grant struct {
	ID            string
	Number        uint16
	Sources       []netip.Prefix
	Start, End    time.Time
	Requestor     string
	Justification string
}

type grantsJSON struct {
	headerJSON
	Epoch         *uint64      `json:"epoch"`
	Host          *hostJSON    `json:"host"`
	PolicyVersion uint64       `json:"policyVersion,omitzero"`
	Grants        *[]grantJSON `json:"grants"`
}

type grantJSON struct {
	ID            *string   `json:"id"`
	Number        *uint16   `json:"number"`
	Sources       *[]string `json:"sourceAddressPrefixes"`
	Start         *string   `json:"startTimeUtc"`
	End           *string   `json:"endTimeUtc"`
	Requestor     *string   `json:"requestor"`
	Justification string    `json:"justification,omitempty"`
}

func parseGrants(payload []byte) (Grants, error) {
	var raw grantsJSON
	err := decodeStrict(payload, &raw)
	var g Grants
	if err == nil {
		g, err = raw.grants()
	}
	if err != nil {
		return Grants{}, Refuse(Malformed, "grants: %v", err)
	}
	return g, nil
}

func (raw grantsJSON) grants() (g Grants, err error) {
	if g.Header, err = raw.header(); err != nil {
		return g, err
	}
	if g.Epoch, err = grantEpoch(raw.Epoch); err != nil {
		return g, err
	}
	if g.Host, err = raw.Host.host(); err != nil {
		return g, err
	}
	if strings.HasSuffix(g.Host.ID, "*") {
		return g, fmt.Errorf("host.id %q: grants are for one host", g.Host.ID)
	}
	if g.PolicyVersion = raw.PolicyVersion; g.PolicyVersion > MaxVersion {
		return g, fmt.Errorf("policyVersion %d is above 2^53-1", g.PolicyVersion)
	}
	list, err := need("grants", raw.Grants)
	if err != nil {
		return g, err
	}
	if len(list) > MaxGrants {
		return g, fmt.Errorf("%d grants, the limit is %d", len(list), MaxGrants)
	}
	g.Grants = make([]Grant, len(list))
	seen := make(map[string]bool, len(list))
	for i, r := range list {
		if g.Grants[i], err = r.grant(); err != nil {
			return g, fmt.Errorf("grants[%d]: %w", i, err)
		}
		if id := g.Grants[i].ID; seen[id] {
			return g, fmt.Errorf("grants[%d]: id %q is there twice", i, id)
		}
		seen[g.Grants[i].ID] = true
	}
	return g, nil
}

func (raw grantJSON) grant() (g Grant, err error) {
	if g.ID, err = need("id", raw.ID); err != nil {
		return g, err
	}
	if err = token("id", g.ID, 64); err != nil {
		return g, err
	}
	if g.Number, err = need("number", raw.Number); err != nil {
		return g, err
	}
	if g.Number == 0 {
		return g, fmt.Errorf("number is 0")
	}
	sources, err := need("sourceAddressPrefixes", raw.Sources)
	if err != nil {
		return g, err
	}
	if len(sources) == 0 {
		return g, fmt.Errorf(`sourceAddressPrefixes is empty: write "*" for any source`)
	}
	// The payload's size bounds this list.
	if g.Sources, err = parsePrefixes("sourceAddressPrefixes", sources, MaxPayload); err != nil {
		return g, err
	}
	if g.Start, err = needTime("startTimeUtc", raw.Start); err != nil {
		return g, err
	}
	if g.End, err = needTime("endTimeUtc", raw.End); err != nil {
		return g, err
	}
	if !g.End.After(g.Start) {
		return g, fmt.Errorf("endTimeUtc %s is not after startTimeUtc %s", *raw.End, *raw.Start)
	}
	if g.Requestor, err = need("requestor", raw.Requestor); err != nil {
		return g, err
	}
	if g.Requestor == "" {
		return g, fmt.Errorf("requestor is empty")
	}
	if err = text("requestor", g.Requestor, 256); err != nil {
		return g, err
	}
	g.Justification = raw.Justification
	return g, text("justification", g.Justification, 2048)
}

// Encode writes the list as a payload to sign.
func (g Grants) Encode() []byte {
	list := make([]grantJSON, len(g.Grants))
	for i, x := range g.Grants {
		sources, start, end := formatPrefixes(x.Sources), FormatTime(x.Start), FormatTime(x.End)
		list[i] = grantJSON{&x.ID, &x.Number, &sources, &start, &end, &x.Requestor, x.Justification}
	}
	return encode(grantsJSON{g.Header.json(), &g.Epoch, g.Host.json(), g.PolicyVersion, &list})
}
