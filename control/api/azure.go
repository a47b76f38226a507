package api

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// The bodies of Azure's API. What comes in and what goes out differ: fields
// that the server sets are not read from a PUT, requests least of all.
type (
	azPolicyIn struct {
		Kind       string        `json:"kind,omitzero"`
		Properties *azProperties `json:"properties"`
	}
	azProperties struct {
		VMs        []azPolicyVMIn `json:"virtualMachines"`
		AppendMode bool           `json:"appendMode,omitzero"`
	}
	azPolicyVMIn struct {
		ID              string     `json:"id"`
		Ports           []portRule `json:"ports"`
		PublicIPAddress string     `json:"publicIpAddress,omitzero"`
	}

	azPolicy struct {
		Kind       string          `json:"kind"`
		Properties azPropertiesOut `json:"properties"`
		ID         string          `json:"id"`
		Name       string          `json:"name"`
		Type       string          `json:"type"`
		Location   string          `json:"location"`
		SystemData azSystemData    `json:"systemData"`
	}
	azPropertiesOut struct {
		VMs        []azPolicyVM      `json:"virtualMachines"`
		Requests   []azRequest       `json:"requests"`
		State      control.Provision `json:"provisioningState"`
		AppendMode bool              `json:"appendMode"` // undocumented; the service says false
	}
	azPolicyVM struct {
		ID              string     `json:"id"`
		Ports           []portRule `json:"ports"`
		PublicIPAddress string     `json:"publicIpAddress,omitzero"`
	}
	azSystemData struct {
		CreatedBy      string  `json:"createdBy"`
		CreatedByType  string  `json:"createdByType"`
		CreatedAt      instant `json:"createdAt"`
		ModifiedBy     string  `json:"lastModifiedBy"`
		ModifiedByType string  `json:"lastModifiedByType"`
		ModifiedAt     instant `json:"lastModifiedAt"`
	}
	azList struct {
		Value    []azPolicy `json:"value"`
		NextLink string     `json:"nextLink,omitzero"`
	}

	initiateIn struct {
		VMs           []initiateVM `json:"virtualMachines"`
		Justification string       `json:"justification,omitzero"`
	}
	initiateVM struct {
		ID    string         `json:"id"`
		Ports []initiatePort `json:"ports"`
	}
	initiatePort struct {
		Number   *portNumber `json:"number"`
		One      string      `json:"allowedSourceAddressPrefix,omitzero"`
		Many     []string    `json:"allowedSourceAddressPrefixes,omitzero"`
		End      instant     `json:"endTimeUtc,omitzero"`
		Duration string      `json:"duration,omitzero"`
	}

	azRequest struct {
		VMs           []azRequestVM `json:"virtualMachines"`
		Start         instant       `json:"startTimeUtc"`
		Requestor     string        `json:"requestor"`
		Justification string        `json:"justification,omitzero"`
	}
	azRequestVM struct {
		ID    string          `json:"id"`
		Ports []azRequestPort `json:"ports"`
	}
	azRequestPort struct {
		Number     uint16               `json:"number"`
		One        string               `json:"allowedSourceAddressPrefix,omitzero"`
		Many       []string             `json:"allowedSourceAddressPrefixes,omitempty"`
		End        instant              `json:"endTimeUtc"`
		Status     control.Status       `json:"status"`
		Reason     control.StatusReason `json:"statusReason"`
		MappedPort uint16               `json:"mappedPort,omitzero"`
	}
)

// portRule is a guarded port on both APIs, in and out. mappedPort and
// sessionsAtEnd are not Azure's: its clients pass over what they do not know.
type portRule struct {
	Number      *portNumber     `json:"number"`
	Protocol    policy.Protocol `json:"protocol"`
	One         string          `json:"allowedSourceAddressPrefix,omitzero"`
	Many        []string        `json:"allowedSourceAddressPrefixes,omitempty"`
	MaxDuration string          `json:"maxRequestAccessDuration"`
	MappedPort  portNumber      `json:"mappedPort,omitzero"`
	Sessions    policy.Sessions `json:"sessionsAtEnd,omitzero"`
}

// missing is the refusal of a body without something it needs.
func missing(at string) *refusal {
	r := badBody("%s is missing.", at)
	r.target = at
	return r
}

// rules turns the ports of a body into the engine's.
func rules(at string, ports []portRule) ([]control.PortRule, error) {
	out := make([]control.PortRule, 0, len(ports))
	for i, p := range ports {
		if p.Number == nil {
			return nil, missing(at + ".ports[" + strconv.Itoa(i) + "].number")
		}
		out = append(out, control.PortRule{
			Number: uint16(*p.Number), Protocol: p.Protocol, Prefixes: control.Prefixes{One: p.One, Many: p.Many},
			MaxDuration: p.MaxDuration, MappedPort: uint16(p.MappedPort), Sessions: p.Sessions,
		})
	}
	return out, nil
}

func portRules(ports []control.PortRule) []portRule {
	out := make([]portRule, 0, len(ports))
	for _, p := range ports {
		n := portNumber(p.Number)
		out = append(out, portRule{Number: &n, Protocol: p.Protocol, One: p.One, Many: p.Many,
			MaxDuration: p.MaxDuration, MappedPort: portNumber(p.MappedPort), Sessions: p.Sessions})
	}
	return out
}

func decodePolicy(body []byte) (control.PolicyInput, error) {
	var in azPolicyIn
	if err := decodeAzure(body, &in); err != nil {
		return control.PolicyInput{}, err
	}
	if in.Properties == nil {
		return control.PolicyInput{}, missing("properties")
	}
	if in.Properties.VMs == nil {
		return control.PolicyInput{}, missing("properties.virtualMachines")
	}
	if in.Properties.AppendMode {
		// Passing over it would end the protection of the machines left out.
		return control.PolicyInput{}, invalid("AppendModeNotSupported", "A PUT replaces the policy whole. To change one machine and leave the others alone, PATCH /api/v1/vms and its id.")
	}
	out := control.PolicyInput{Kind: in.Kind}
	for i, vm := range in.Properties.VMs {
		at := "properties.virtualMachines[" + strconv.Itoa(i) + "]"
		if vm.Ports == nil {
			return out, missing(at + ".ports")
		}
		id, err := control.ParseVMID(vm.ID)
		if err != nil {
			r := invalid("LinkedInvalidPropertyId", "%s.id: %v.", at, err)
			r.target = at + ".id"
			return out, r
		}
		ports, err := rules(at, vm.Ports)
		if err != nil {
			return out, err
		}
		out.VMs = append(out.VMs, control.PolicyVM{ID: id, Ports: ports, PublicIPAddress: vm.PublicIPAddress})
	}
	return out, nil
}

// input turns the body of a request into the engine's.
func (in initiateIn) input() (control.InitiateInput, error) {
	out := control.InitiateInput{Justification: in.Justification}
	if len(in.VMs) == 0 {
		return out, missing("virtualMachines")
	}
	for i, vm := range in.VMs {
		at := "virtualMachines[" + strconv.Itoa(i) + "]"
		ports, err := initiatePorts(at, vm.Ports)
		if err != nil {
			return out, err
		}
		out.VMs = append(out.VMs, control.InitiateVM{ID: vm.ID, Ports: ports})
	}
	return out, nil
}

func initiatePorts(at string, in []initiatePort) ([]control.InitiatePort, error) {
	if len(in) == 0 {
		return nil, missing(strings.TrimPrefix(at+".ports", "."))
	}
	ports := make([]control.InitiatePort, 0, len(in))
	for i, p := range in {
		if p.Number == nil {
			return nil, missing(strings.TrimPrefix(at+".ports["+strconv.Itoa(i)+"].number", "."))
		}
		ports = append(ports, control.InitiatePort{Number: uint16(*p.Number), Prefixes: control.Prefixes{One: p.One, Many: p.Many},
			End: p.End.time(), Duration: p.Duration})
	}
	return ports, nil
}

func decodeInitiate(body []byte) (control.InitiateInput, error) {
	var in initiateIn
	if err := decodeAzure(body, &in); err != nil {
		return control.InitiateInput{}, err
	}
	return in.input()
}

func azurePolicy(p control.PolicyView) azPolicy {
	out := azPolicy{
		Kind: p.Kind, ID: p.ID.String(), Name: p.ID.Name, Type: control.PolicyType, Location: p.ID.Location,
		Properties: azPropertiesOut{State: p.State, VMs: make([]azPolicyVM, 0, len(p.VMs)), Requests: make([]azRequest, 0, len(p.Requests))},
		SystemData: azSystemData{
			CreatedBy: p.CreatedBy.Name, CreatedByType: p.CreatedBy.Type, CreatedAt: instant(p.Created),
			ModifiedBy: p.ModifiedBy.Name, ModifiedByType: p.ModifiedBy.Type, ModifiedAt: instant(p.Modified),
		},
	}
	for _, vm := range p.VMs {
		out.Properties.VMs = append(out.Properties.VMs, azPolicyVM{ID: vm.ID.String(), Ports: portRules(vm.Ports), PublicIPAddress: vm.PublicIPAddress})
	}
	for _, r := range p.Requests {
		out.Properties.Requests = append(out.Properties.Requests, azureRequest(r))
	}
	return out
}

func azureRequest(r control.Request) azRequest {
	out := azRequest{VMs: make([]azRequestVM, 0, len(r.VMs)), Start: instant(r.Start), Requestor: r.Requestor, Justification: r.Justification}
	for _, vm := range r.VMs {
		ports := make([]azRequestPort, 0, len(vm.Ports))
		for _, p := range vm.Ports {
			ports = append(ports, azRequestPort{Number: p.Number, One: p.One, Many: p.Many, End: instant(p.End),
				Status: azureStatus(p.Status), Reason: azureReason(p.Reason), MappedPort: p.MappedPort})
		}
		out.VMs = append(out.VMs, azRequestVM{ID: vm.ID.String(), Ports: ports})
	}
	return out
}

// azureStatus and azureReason say in Azure's words what it has none for.
func azureStatus(s control.Status) control.Status {
	if s == control.Pending {
		return control.Initiating
	}
	return s
}

func azureReason(r control.StatusReason) control.StatusReason {
	if r == control.Denied {
		return control.UserRequested
	}
	return r
}

// azurePage is how long a page of policies is unless the caller says.
const azurePage = 100

// listPolicies answers the four lists: which one is in the path.
func listPolicies(c *call) error {
	top, err := c.top("$top", azurePage)
	if err != nil {
		return err
	}
	token, err := c.one("$skiptoken")
	if err != nil {
		return err
	}
	after, err := readSkipToken(token)
	if err != nil {
		return err
	}
	f := control.PolicyFilter{Subscription: c.params["subscription"], Group: c.params["group"], Location: c.params["location"]}
	page, next, err := c.api.Engine.ListPolicies(c.ctx, c.caller, f, after, top)
	if err != nil {
		return err
	}
	out := azList{Value: make([]azPolicy, 0, len(page))}
	for _, p := range page {
		out.Value = append(out.Value, azurePolicy(p))
	}
	if next != "" {
		version, err := c.one("api-version")
		if err != nil {
			return err
		}
		out.NextLink = c.base() + c.r.URL.EscapedPath() + "?api-version=" + url.QueryEscape(version)
		if s, _ := c.one("$top"); s != "" {
			out.NextLink += "&$top=" + strconv.Itoa(top)
		}
		out.NextLink += "&$skiptoken=" + skipToken(next)
	}
	return c.ok(out)
}

// A skip token is the place of a page in the list, and no more: whoever makes
// one up gets a page of what they may read anyway.
func skipToken(after string) string { return base64.RawURLEncoding.EncodeToString([]byte(after)) }

const maxSkipToken = 1024

func readSkipToken(s string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(s) > maxSkipToken || skipToken(string(b)) != s || strings.ContainsFunc(string(b), func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", invalid("InvalidSkipToken", "The $skiptoken is not one of this server: follow nextLink as it is.")
	}
	return string(b), nil
}

func getPolicy(c *call) error {
	p, err := c.api.Engine.GetPolicy(c.ctx, c.caller, c.policyID())
	if err != nil {
		return err
	}
	c.etag(p.Revision)
	return c.ok(azurePolicy(p))
}

func putPolicy(c *call) error {
	in, err := decodePolicy(c.body)
	if err != nil {
		return err
	}
	if in.IfMatch, err = c.revision(); err != nil {
		return err
	}
	if in.IfNoneMatch, err = c.absent(); err != nil {
		return err
	}
	p, err := c.api.Engine.PutPolicy(c.ctx, c.caller, c.policyID(), in)
	if err != nil {
		return err
	}
	c.etag(p.Revision)
	return c.ok(azurePolicy(p)) // 200 when it was created, too: the SDKs take nothing else
}

func deletePolicy(c *call) error {
	there, err := c.api.Engine.DeletePolicy(c.ctx, c.caller, c.policyID())
	switch {
	case err != nil:
		return err
	case there:
		return c.empty(http.StatusOK)
	}
	return c.empty(http.StatusNoContent)
}

func initiate(c *call) error {
	in, err := decodeInitiate(c.body)
	if err != nil {
		return err
	}
	r, err := c.api.Engine.Initiate(c.ctx, c.caller, c.policyID(), in)
	if err != nil {
		return err
	}
	c.write(http.StatusAccepted, azureRequest(r))
	return nil
}
