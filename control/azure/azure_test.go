package azure

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	azpolicy "github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/security/armsecurity"

	"github.com/jitgate/jitgate/control"
)

const sub = "20ff7fc3-e762-44dd-bd96-b71116dcdc23"

func vmID(name string) string {
	return "/subscriptions/" + sub + "/resourceGroups/myRg1/providers/Microsoft.Compute/virtualMachines/" + name
}

// resourceManager stands in for Azure Resource Manager: it has policies, takes
// requests for them and says where they stand, on the wire as Azure does.
type resourceManager struct {
	mu       sync.Mutex
	policies []*standPolicy
	bodies   []string
	calls    int
	pageSize int
	instead  http.HandlerFunc // answers in place of everything
}

type standPolicy struct {
	id       string
	vms      map[string][]int // by id in lower case
	longest  time.Duration
	requests []map[string]any
}

func (m *resourceManager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	fail := func(status int, code, message string) {
		w.Header().Set("x-ms-error-code", code)
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": message}})
	}
	switch {
	case m.instead != nil:
		m.instead(w, r)
	case r.Header.Get("Authorization") != "Bearer right-token":
		fail(401, "InvalidAuthenticationToken", "The access token is invalid.")
	case r.URL.Query().Get("api-version") != "2020-01-01":
		fail(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
	case r.Method == "GET" && r.URL.Path == "/subscriptions/"+sub+"/providers/Microsoft.Security/jitNetworkAccessPolicies":
		m.list(w, r)
	case r.Method == "POST" && strings.HasSuffix(r.URL.Path, "/initiate"):
		for _, p := range m.policies {
			if p.id == strings.TrimSuffix(r.URL.Path, "/initiate") {
				m.initiate(p, w, r, fail)
				return
			}
		}
		fail(404, "PolicyNotFound", "No such policy.")
	default:
		fail(404, "NotFound", r.Method+" "+r.URL.Path)
	}
}

func (m *resourceManager) list(w http.ResponseWriter, r *http.Request) {
	start := 0
	fmt.Sscan(r.URL.Query().Get("$skiptoken"), &start)
	end := len(m.policies)
	answer := map[string]any{}
	if m.pageSize > 0 && start+m.pageSize < end {
		end = start + m.pageSize
		answer["nextLink"] = fmt.Sprintf("https://%s%s?api-version=2020-01-01&$skiptoken=%d", r.Host, r.URL.Path, end)
	}
	value := []any{}
	for _, p := range m.policies[start:end] {
		var vms []any
		for id, numbers := range p.vms {
			var ports []any
			for _, n := range numbers {
				ports = append(ports, map[string]any{"number": n, "protocol": "*", "allowedSourceAddressPrefix": "*", "maxRequestAccessDuration": "PT3H"})
			}
			vms = append(vms, map[string]any{"id": id, "ports": ports})
		}
		value = append(value, map[string]any{"id": p.id, "name": "default", "properties": map[string]any{
			"virtualMachines": vms, "requests": p.requests, "provisioningState": "Succeeded"}})
	}
	answer["value"] = value
	json.NewEncoder(w).Encode(answer)
}

func (m *resourceManager) initiate(p *standPolicy, w http.ResponseWriter, r *http.Request, fail func(int, string, string)) {
	var body struct {
		VMs []struct {
			ID    string
			Ports []map[string]any
		} `json:"virtualMachines"`
		Justification string
	}
	raw, err := json.RawMessage{}, error(nil)
	if err = json.NewDecoder(r.Body).Decode(&raw); err == nil {
		err = json.Unmarshal(raw, &body)
	}
	if err != nil {
		fail(400, "InvalidInitiateInput", err.Error())
		return
	}
	m.bodies = append(m.bodies, string(raw))
	answer := map[string]any{"startTimeUtc": time.Now().UTC(), "requestor": "jitgate@contoso.com", "justification": body.Justification}
	var vms []any
	for _, vm := range body.VMs {
		for _, port := range vm.Ports {
			end, err := time.Parse(time.RFC3339Nano, fmt.Sprint(port["endTimeUtc"]))
			if err != nil || time.Until(end) > p.longest || !slices.Contains(p.vms[strings.ToLower(vm.ID)], int(port["number"].(float64))) {
				fail(400, "InvalidInitiateInput", "The given access request is not a subset of policy '"+p.id+"'.\nPlease make sure …")
				return
			}
			port["status"], port["statusReason"] = "Initiating", "UserRequested"
		}
		vms = append(vms, map[string]any{"id": vm.ID, "ports": vm.Ports})
	}
	answer["virtualMachines"] = vms
	p.requests = append(p.requests, answer)
	w.WriteHeader(202)
	json.NewEncoder(w).Encode(answer)
}

// stand sets the status of every port of every request.
func (m *resourceManager) stand(status, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.policies {
		for _, r := range p.requests {
			for _, vm := range r["virtualMachines"].([]any) {
				for _, port := range vm.(map[string]any)["ports"].([]map[string]any) {
					port["status"], port["statusReason"] = status, reason
				}
			}
		}
	}
}

func policyID(group, name string) string {
	return "/subscriptions/" + sub + "/resourceGroups/" + group + "/providers/Microsoft.Security/locations/westeurope/jitNetworkAccessPolicies/" + name
}

// newStandIn starts an Azure with one policy, and a JIT that uses it.
func newStandIn(t *testing.T) (*resourceManager, *JIT, Settings) {
	t.Helper()
	m := &resourceManager{policies: []*standPolicy{{id: policyID("myRg1", "default"), longest: 3*time.Hour + time.Minute,
		vms: map[string][]int{strings.ToLower(vmID("vm1")): {22, 3389}, strings.ToLower(vmID("vm2")): {22}}}}}
	server := httptest.NewTLSServer(m)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s := Settings{
		Subscriptions: []string{sub},
		Endpoint:      server.URL,
		CAFile:        write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
		TokenFile:     write("token", []byte("right-token\n")),
	}
	j, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return m, j, s
}

func ask(t *testing.T, vm string, ports ...control.RequestPort) control.Request {
	t.Helper()
	id, err := control.ParseVMID(vm)
	if err != nil {
		t.Fatal(err)
	}
	return control.Request{ID: "01JDRN0000000000000000000A", Requestor: "barbara@contoso.com", Justification: "patching",
		VMs: []control.RequestVM{{ID: id, Ports: ports}}}
}

func port(number uint16, length time.Duration, sources ...string) control.RequestPort {
	p := control.RequestPort{Number: number, End: time.Now().Add(length), Status: control.Initiating}
	if len(sources) == 1 {
		p.One = sources[0]
	} else {
		p.Many = sources
	}
	return p
}

func TestInitiateAndLook(t *testing.T) {
	m, j, _ := newStandIn(t)
	ctx := context.Background()
	// Azure has the machine's id in another letter case than we do.
	r := ask(t, vmID("VM1"), port(22, time.Hour, "203.0.113.7"), port(5985, time.Hour, "203.0.113.7"), port(3389, time.Hour, "203.0.113.7", "198.51.100.0/24"))
	layers, err := j.Initiate(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 3 || layers[1] != nil {
		t.Fatalf("layers %v, expected three, the second nil: no policy of Azure's has port 5985", layers)
	}
	for _, i := range []int{0, 2} {
		if l := layers[i]; l.Error != "" || l.Status != control.Initiating || !l.Until.Equal(r.VMs[0].Ports[i].End) {
			t.Errorf("layer %d is %+v", i, *l)
		}
	}
	if len(m.bodies) != 1 {
		t.Fatalf("%d requests to Azure, expected one for both ports", len(m.bodies))
	}
	var sent struct {
		Justification   string
		VirtualMachines []struct {
			ID    string
			Ports []struct {
				Number                       int
				AllowedSourceAddressPrefix   string
				AllowedSourceAddressPrefixes []string
				EndTimeUTC                   time.Time `json:"endTimeUtc"`
			}
		}
	}
	if err := json.Unmarshal([]byte(m.bodies[0]), &sent); err != nil {
		t.Fatal(err)
	}
	if sent.Justification != "jitgate 01JDRN0000000000000000000A by barbara@contoso.com: patching" {
		t.Errorf("justification %q", sent.Justification)
	}
	ports := sent.VirtualMachines[0].Ports
	if len(ports) != 2 || ports[0].AllowedSourceAddressPrefix != "203.0.113.7" || ports[0].AllowedSourceAddressPrefixes != nil || !ports[0].EndTimeUTC.Equal(r.VMs[0].Ports[0].End) {
		t.Errorf("first port of %s", m.bodies[0])
	}
	if len(ports) != 2 || ports[1].AllowedSourceAddressPrefix != "" || !slices.Equal(ports[1].AllowedSourceAddressPrefixes, []string{"203.0.113.7", "198.51.100.0/24"}) {
		t.Errorf("second port of %s", m.bodies[0])
	}

	for _, step := range []struct{ status, reason string }{{"Initiating", "UserRequested"}, {"Initiated", "UserRequested"}, {"Revoked", "Expired"}} {
		m.stand(step.status, step.reason)
		j.subscriptions[sub].begun = time.Time{} // a new list
		layers, err := j.Look(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{0, 2} {
			if l := layers[i]; l == nil || string(l.Status) != step.status || string(l.Reason) != step.reason {
				t.Errorf("layer %d is %v, expected %v", i, l, step)
			}
		}
		if layers[1] != nil {
			t.Errorf("port 5985 stands %v", layers[1])
		}
	}
	other := r
	other.ID = r.ID[:len(r.ID)-1]
	if layers, err := j.Look(ctx, other); err != nil || slices.ContainsFunc(layers, func(l *control.Layer) bool { return l != nil }) {
		t.Errorf("a request that was not passed on stands %v, %v", layers, err)
	}
}

func TestNotCovered(t *testing.T) {
	m, j, _ := newStandIn(t)
	for name, vm := range map[string]string{
		"no policy names it":         vmID("vm9"),
		"not one of Azure's":         "/subscriptions/local-sub/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm1",
		"a name that another begins": vmID("vm"),
	} {
		layers, err := j.Initiate(context.Background(), ask(t, vm, port(22, time.Hour, "203.0.113.7")))
		if err != nil || len(layers) != 1 || layers[0] != nil {
			t.Errorf("%s: %v, %v", name, layers, err)
		}
	}
	if len(m.bodies) > 0 {
		t.Errorf("Azure was asked for %v", m.bodies)
	}
}

// A port outside Azure's bounds is refused in Azure's words, alone.
func TestRefusedAlone(t *testing.T) {
	_, j, _ := newStandIn(t)
	r := ask(t, vmID("vm1"), port(22, time.Hour, "203.0.113.7"), port(3389, 5*time.Hour, "203.0.113.7"))
	layers, err := j.Initiate(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	if layers[0].Error != "" || layers[0].Until.IsZero() {
		t.Errorf("the port inside the bounds: %+v", *layers[0])
	}
	if l := layers[1]; l.Error != "azure answered 400 InvalidInitiateInput: The given access request is not a subset of policy '"+policyID("myRg1", "default")+"'. Please make sure …" || !l.Until.IsZero() {
		t.Errorf("the port outside: %+v", *l)
	}
}

func TestPages(t *testing.T) {
	m, j, _ := newStandIn(t)
	m.pageSize = 2
	for i := range 6 {
		m.policies = append(m.policies, &standPolicy{id: policyID("myRg1", fmt.Sprint("p", i)), longest: 4 * time.Hour, vms: map[string][]int{strings.ToLower(vmID(fmt.Sprint("more", i))): {22}}})
	}
	layers, err := j.Initiate(context.Background(), ask(t, vmID("more5"), port(22, time.Hour, "*")))
	if err != nil || layers[0] == nil || layers[0].Error != "" {
		t.Fatalf("%v, %v", layers, err)
	}
}

// A port that names no source is not passed on: Azure would open it for us.
func TestNoSource(t *testing.T) {
	m, j, _ := newStandIn(t)
	layers, err := j.Initiate(context.Background(), ask(t, vmID("vm1"), port(22, time.Hour)))
	if err != nil || layers[0] == nil || !strings.Contains(layers[0].Error, "names no source") || !layers[0].Until.IsZero() || len(m.bodies) > 0 {
		t.Errorf("%+v, %v, %v", layers, err, m.bodies)
	}
}

func TestMarked(t *testing.T) {
	for justification, want := range map[string]bool{
		"jitgate R1": true, "jitgate R1 by ann": true, "jitgate R1: why": true, "jitgate R12": false, "jitgate R": false, "R1": false, "": false, "see jitgate R1": false,
	} {
		if got := marked(justification, "R1"); got != want {
			t.Errorf("%q: %v", justification, got)
		}
	}
	r := control.Request{ID: "R1", Requestor: "ann\r\nx", Justification: strings.Repeat("why ", 1000)}
	if s := justify(r); !marked(s, "R1") || len([]rune(s)) != maxJustify || strings.Contains(s, "\n") {
		t.Errorf("%q", s)
	}
	if s := justify(control.Request{ID: "R1"}); s != "jitgate R1" || !marked(s, "R1") {
		t.Errorf("%q", s)
	}
}

// Of a request that was extended the last asking counts, wherever it stands in
// the list.
func TestNewest(t *testing.T) {
	request := func(minute int, status string) *armsecurity.JitNetworkAccessRequest {
		start, id, number, why, st := time.Unix(int64(60*minute), 0), vmID("VM1"), int32(22), "jitgate R1", armsecurity.Status(status)
		return &armsecurity.JitNetworkAccessRequest{StartTimeUTC: &start, Justification: &why, VirtualMachines: []*armsecurity.JitNetworkAccessRequestVirtualMachine{
			{ID: &id, Ports: []*armsecurity.JitNetworkAccessRequestPort{{Number: &number, Status: &st}}}}}
	}
	for _, list := range [][]*armsecurity.JitNetworkAccessRequest{
		{request(1, "Revoked"), request(2, "Initiated")}, {request(2, "Initiated"), request(1, "Revoked")}, {request(1, "a"), request(2, "Initiated"), request(0, "b")},
	} {
		p := spot{vm: control.VMID{Subscription: sub, Group: "myRg1", Kind: "Microsoft.Compute/virtualMachines", Name: "vm1"}, port: control.RequestPort{Number: 22},
			policy: &armsecurity.JitNetworkAccessPolicy{Properties: &armsecurity.JitNetworkAccessPolicyProperties{Requests: list}}}
		if got := newest(p, "R1"); got == nil || *got.Status != "Initiated" {
			t.Errorf("%+v", got)
		}
	}
}

// Who looks at many requests at once does not list the policies for each.
func TestListIsShared(t *testing.T) {
	m, j, _ := newStandIn(t)
	r := ask(t, vmID("vm1"), port(22, time.Hour, "*"))
	for range 20 {
		if _, err := j.Look(context.Background(), r); err != nil {
			t.Fatal(err)
		}
	}
	if m.calls != 1 {
		t.Errorf("%d lists for 20 looks", m.calls)
	}
}

func TestFailures(t *testing.T) {
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			fmt.Fprint(w, body)
		}
	}
	stranger := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a stranger got %s with %q", r.URL, r.Header.Get("Authorization"))
	}))
	t.Cleanup(stranger.Close)
	for name, test := range map[string]struct {
		instead http.HandlerFunc
		want    string
	}{
		"away":        {status(503, ""), "azure answered 503"},
		"not allowed": {status(403, `{"error":{"code":"AuthorizationFailed","message":"The client may\nnot\u001b[31m."}}`), "azure answered 403 AuthorizationFailed: The client may not [31m."},
		"nonsense":    {status(200, `<html>`), "azure cannot be asked: "},
		"too much": {func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"value":[` + strings.Repeat(" ", maxAnswer) + `]}`))
		}, fmt.Sprintf("the answer has more than %d bytes", maxAnswer)},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, stranger.URL+"/", http.StatusTemporaryRedirect)
		}, "azure answered 307"},
		"a next page elsewhere": {status(200, `{"value":[],"nextLink":"`+stranger.URL+`/?api-version=2020-01-01"}`), "an answer leads to "},
		"a next page in clear": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"value":[],"nextLink":"http://%s/"}`, r.Host)
		}, "not permitted for non-TLS"},
		"pages without end": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"value":[],"nextLink":"https://%s/?api-version=2020-01-01"}`, r.Host)
		}, "more than 200 pages"},
	} {
		t.Run(name, func(t *testing.T) {
			m, j, _ := newStandIn(t)
			m.instead = test.instead
			r := ask(t, vmID("vm1"), port(22, time.Hour, "*"))
			for _, call := range []func(context.Context, control.Request) ([]*control.Layer, error){j.Initiate, j.Look} {
				layers, err := call(context.Background(), r)
				if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 2*maxReason {
					t.Errorf("%v, %v; expected one line with %q", layers, err, test.want)
				}
			}
		})
	}
}

// An answer that does not come leaves open whether Azure did it.
func TestUnsureIsNotClosed(t *testing.T) {
	m, j, _ := newStandIn(t)
	r := ask(t, vmID("vm1"), port(22, time.Hour, "*"))
	for name, test := range map[string]struct {
		status int
		sure   bool
	}{"not found": {404, true}, "too many": {429, true}, "conflict": {409, true}, "time-out": {408, false}, "broken": {500, false}, "gateway": {504, false}} {
		t.Run(name, func(t *testing.T) {
			if _, err := j.Look(context.Background(), r); err != nil { // the list is there
				t.Fatal(err)
			}
			m.mu.Lock()
			m.instead = func(w http.ResponseWriter, q *http.Request) {
				if q.Method == http.MethodGet {
					m.list(w, q)
					return
				}
				w.WriteHeader(test.status)
			}
			m.mu.Unlock()
			layers, err := j.Initiate(context.Background(), r)
			if err != nil {
				t.Fatal(err)
			}
			if l := layers[0]; !strings.Contains(l.Error, fmt.Sprint(test.status)) || l.Until.IsZero() != test.sure {
				t.Errorf("%+v", *l)
			}
			m.mu.Lock()
			m.instead = nil
			m.mu.Unlock()
		})
	}
}

func TestToken(t *testing.T) {
	m, j, s := newStandIn(t)
	r := ask(t, vmID("vm1"), port(22, time.Hour, "*"))
	if err := os.WriteFile(s.TokenFile, []byte("wrong-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Initiate(context.Background(), r); err == nil || err.Error() != "azure answered 401 InvalidAuthenticationToken: The access token is invalid." {
		t.Errorf("with the wrong token: %v", err)
	}
	for _, text := range []string{"", "two words", "two\nlines", strings.Repeat("x", maxToken+1)} {
		if err := os.WriteFile(s.TokenFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(s); err == nil || !strings.Contains(err.Error(), "azure.token_file") {
			t.Errorf("a token of %d bytes: %v", len(text), err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.bodies) > 0 {
		t.Error("a request went through")
	}
}

func TestSettings(t *testing.T) {
	_, _, good := newStandIn(t)
	for want, change := range map[string]func(*Settings){
		"azure.subscriptions is missing": func(s *Settings) { s.Subscriptions = nil },
		"azure.subscriptions[1]":         func(s *Settings) { s.Subscriptions = []string{sub, "../x"} },
		"azure.endpoint":                 func(s *Settings) { s.Endpoint = "http://management.azure.com" },
		"azure.authority":                func(s *Settings) { s.Authority = "login.microsoftonline.com" },
		"azure.ca_file":                  func(s *Settings) { s.CAFile = s.TokenFile },
		"azure.ca_file: open":            func(s *Settings) { s.CAFile += ".gone" },
		"azure.token_file: open":         func(s *Settings) { s.TokenFile += ".gone" },
	} {
		s := good
		change(&s)
		if _, err := New(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
	}
	// What azidentity finds is used where no token is given; nobody is asked yet.
	s := good
	s.TokenFile, s.TenantID = "", "72f988bf-86f1-41af-91ab-2d7cd011db47"
	if _, err := New(s); err != nil {
		t.Error(err)
	}
	c := Settings{}.cloud().Services["resourceManager"]
	if c.Endpoint != "https://management.azure.com" || c.Audience != "https://management.core.windows.net/" {
		t.Errorf("the public cloud is %+v", c)
	}
	if c := (Settings{Endpoint: "https://own"}).cloud().Services["resourceManager"]; c.Audience != "https://own" {
		t.Errorf("another cloud is %+v", c)
	}
}

// What stands in a justification, a name or a reason never breaks a line.
func FuzzClip(f *testing.F) {
	f.Add("a\nb", 10)
	f.Add("\x1b[31mred", 3)
	f.Add(strings.Repeat("é", 30), 20)
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = 1 + max(n, -n)%1000
		got := clip(s, max(n, 1))
		if strings.ContainsAny(got, "\n\r\x1b") || len([]rune(got)) > max(n, 1) {
			t.Errorf("%q", got)
		}
	})
}

// Whatever Azure's lists have in them, it is looked through.
func FuzzPolicies(f *testing.F) {
	id := vmID("vm1")
	f.Add(`{"value":[{"id":"` + policyID("g", "p") + `","properties":{"virtualMachines":[{"id":"` + id + `","ports":[{"number":22}]}],"requests":[{"justification":"jitgate R","startTimeUtc":"2026-11-22T18:50:15Z","virtualMachines":[{"id":"` + id + `","ports":[{"number":22,"status":"Initiated"}]}]}]}}]}`)
	f.Add(`{"value":[null,{"id":"/","properties":{"virtualMachines":[null,{"id":"` + id + `","ports":[null,{"number":22}]}],"requests":[null,{"justification":"jitgate R","virtualMachines":[null,{"id":"` + id + `","ports":[null,{}]}]}]}}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		m := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusAccepted)
			}
			fmt.Fprint(w, body)
		})
		j := offline(t, m)
		r := control.Request{ID: "R", VMs: []control.RequestVM{{ID: control.VMID{Subscription: sub, Group: "myRg1", Kind: "Microsoft.Compute/virtualMachines", Name: "vm1"}, Ports: []control.RequestPort{port(22, time.Hour, "*")}}}}
		for _, call := range []func(context.Context, control.Request) ([]*control.Layer, error){j.Initiate, j.Look} {
			layers, err := call(context.Background(), r)
			if (err == nil) != (len(layers) == 1) {
				t.Errorf("%v, %v", layers, err)
			}
		}
	})
}

// offline is a JIT whose every request a handler answers, without a network.
func offline(t *testing.T, h http.Handler) *JIT {
	client, err := armsecurity.NewJitNetworkAccessPoliciesClient(sub, bearer{}, &arm.ClientOptions{
		DisableRPRegistration: true,
		ClientOptions:         azpolicy.ClientOptions{Transport: direct{h}, Retry: azpolicy.RetryOptions{MaxRetries: -1}, PerCallPolicies: []azpolicy.Policy{sourceLists{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &JIT{subscriptions: map[string]*subscription{sub: {client: client}}}
}

type bearer struct{}

func (bearer) GetToken(context.Context, azpolicy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: "t", ExpiresOn: time.Now().Add(time.Hour)}, nil
}

type direct struct{ http.Handler }

func (d direct) Do(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}
