package web

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// put puts a machine into the inventory.
func (s *site) put(name string, in control.VMInput) control.VMID {
	s.t.Helper()
	id := vmID(s.t, name)
	if _, err := s.engine.PutVM(s.t.Context(), s.admin, id, in); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// guard has a machine in the inventory guard ports.
func (s *site) guard(name string, rules ...control.PortRule) control.VMID {
	s.t.Helper()
	id := s.put(name, control.VMInput{Location: "westeurope", OS: "Linux", Address: "10.0.0.4"})
	if _, err := s.engine.EditPorts(s.t.Context(), s.admin, id, rules, ""); err != nil {
		s.t.Fatal(err)
	}
	return id
}

func rule(number uint16, sources, longest string) control.PortRule {
	return control.PortRule{Number: number, Protocol: policy.TCP, Prefixes: control.Prefixes{One: sources}, MaxDuration: longest}
}

var tags = regexp.MustCompile(`(?s)^.*<main|<[^>]*>|\s+`)

// gist is what a page says, for a test that failed.
func gist(page string) string {
	return clip(strings.Join(strings.Fields(tags.ReplaceAllString(page, " ")), " "), 600)
}

// has requires that a page has all of these, and says what it has instead.
func has(t *testing.T, page string, all ...string) {
	t.Helper()
	for _, want := range all {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q: %s", want, gist(page))
		}
	}
}

func lacks(t *testing.T, page string, all ...string) {
	t.Helper()
	for _, no := range all {
		if strings.Contains(page, no) {
			t.Errorf("the page has %q: %s", no, gist(page))
		}
	}
}

// led is where an answer leads.
func led(t *testing.T, w interface{ Result() *http.Response }) string {
	t.Helper()
	r := w.Result()
	if r.StatusCode != http.StatusSeeOther {
		t.Fatalf("the answer is %s", r.Status)
	}
	return r.Header.Get("Location")
}

func TestTabs(t *testing.T) {
	s := newSite(t)
	b := s.signedIn(s.owner)
	has(t, b.page("/ui/vms"), "There is none here.")
	s.guard("web1", rule(22, "*", "PT3H"))
	s.put("db1", control.VMInput{OS: "Windows"})
	s.put("old1", control.VMInput{Unsupported: "no agent for this system"})
	page := b.page("/ui/vms")
	has(t, page, `id="count-Configured">1<`, `id="count-NotConfigured">1<`, `id="count-Unsupported">1<`, ">web1</a>", "10.0.0.4", `<span class="port">22</span>`, "Request access")
	lacks(t, page, "db1", "old1")
	page = b.page("/ui/vms?tab=NotConfigured")
	has(t, page, ">db1</a>", "Windows", "Enable JIT on VMs")
	page = b.page("/ui/vms?tab=Unsupported")
	has(t, page, ">old1</a>", "no agent for this system")
	lacks(t, page, "checkbox")
	has(t, b.page("/ui/vms?q=nothing"), "Nothing here matches.")
	has(t, b.page("/ui/vms?q=WEB"), ">web1</a>")
	has(t, b.page("/ui/vms?scope="+url.QueryEscape(groupPath)), ">web1</a>")
	lacks(t, b.page("/ui/vms?scope=/subscriptions/other"), ">web1</a>")
	if w := b.get("/ui/vms?scope=web"); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "is not a scope") {
		t.Errorf("a scope that is none: %d %s", w.Code, w.Body)
	}
	// Who may see one group sees that and nothing else.
	alice := s.signedIn(s.token("alice", "JITRequester", control.Scope(strings.ToLower(machine("web1")))))
	page = alice.page("/ui/vms")
	has(t, page, `id="count-Configured">1<`, `id="count-NotConfigured">0<`)
	lacks(t, page, ">Edit</a>", ">Log</a>")
	has(t, b.page("/ui/vms"), ">Edit</a>", ">Log</a>")
	if w := alice.get(link("vm", "id", machine("db1"))); w.Code != http.StatusForbidden {
		t.Errorf("another machine: %d", w.Code)
	}
}

// weight is what a browser loads for a page that nothing is known of yet.
func (b *browser) weight(path string) int {
	return len(b.page(path)) + b.get("/ui/page.css").Body.Len() + b.get("/ui/page.js").Body.Len() + b.get("/ui/icon.svg").Body.Len()
}

func TestPaging(t *testing.T) {
	s := newSite(t)
	b := s.signedIn(s.owner)
	const all = 2*pageRows + 7
	var ports []control.PortRule
	for _, n := range []uint16{22, 3389, 5985, 5986} {
		ports = append(ports, rule(n, "*", "PT3H"))
	}
	var vms []control.PolicyVM
	for i := range all {
		id := s.put(fmt.Sprintf("a-machine-with-a-long-name-%03d", i), control.VMInput{Location: "westeurope", PublicIPAddress: "203.0.113.200"})
		vms = append(vms, control.PolicyVM{ID: id, Ports: ports})
	}
	id := control.PolicyID{Subscription: vms[0].ID.Subscription, Group: vms[0].ID.Group, Location: "westeurope", Name: "default"}
	if _, err := s.engine.PutPolicy(t.Context(), s.admin, id, control.PolicyInput{VMs: vms}); err != nil {
		t.Fatal(err)
	}
	if w := b.weight("/ui/vms"); w > 100_000 {
		t.Errorf("a full page weighs %d bytes", w)
	}
	seen := map[string]bool{}
	path := "/ui/vms"
	next := regexp.MustCompile(`rel="next" href="([^"]+)"`)
	for range 4 {
		page := b.page(path)
		for _, m := range regexp.MustCompile(`a-machine-with-a-long-name-\d{3}</a>`).FindAllString(page, -1) {
			if seen[m] {
				t.Errorf("%s is there twice", m)
			}
			seen[m] = true
		}
		m := next.FindStringSubmatch(page)
		if m == nil {
			break
		}
		path = strings.ReplaceAll(m[1], "&amp;", "&")
	}
	if len(seen) != all {
		t.Errorf("%d of %d machines on all pages", len(seen), all)
	}
}

func TestEnable(t *testing.T) {
	s := newSite(t)
	b := s.signedIn(s.owner)
	id := s.put("db1", control.VMInput{OS: "Windows", Location: "westeurope"})
	page := b.page(link("vm", "id", id))
	has(t, page, "Just-in-time access is off", "Enable just-in-time access")
	pane := link("ports", "vm", id)
	page = b.page(pane)
	// Windows: RDP is ticked, the other recommended ports are offered.
	has(t, page, `name="on.0" value="on" checked`, `value="3389"`, `value="22"`, `value="5985"`, `value="5986"`)
	revision := regexp.MustCompile(`name="revision" value="(\d+)"`).FindStringSubmatch(page)[1]
	row := func(i, number, sources, longest string) []string {
		return []string{"on." + i, "on", "number." + i, number, "protocol." + i, "TCP", "sources." + i, sources, "longest." + i, longest, "sessions." + i, "cut"}
	}
	save := func(more ...string) []string {
		return append([]string{"vm", id.String(), "revision", revision, "rows", "3", "do", "save"}, more...)
	}
	// What is wrong is said in its row, and nothing changes.
	for _, c := range []struct{ number, sources, longest, says string }{
		{"0", "*", "PT3H", "write 1 to 65535"},
		{"70000", "*", "PT3H", "write 1 to 65535"},
		{"3389", "10.0.0.5/8", "PT3H", "has host bits set"},
		{"3389", "", "PT3H", "no source"},
		{"3389", "*", "PT1S", "outside PT5M to P1D"},
	} {
		w := b.post("/ui/ports", save(append(row("1", c.number, c.sources, c.longest), row("0", "22", "*", "PT1H")...)...)...)
		text := w.Body.String()
		_, after, _ := strings.Cut(text, `id="error-1"`)
		if w.Code != http.StatusBadRequest || !strings.Contains(strings.SplitN(after, "</p>", 2)[0], c.says) {
			t.Errorf("%v: %d %s", c, w.Code, text)
		}
		if v, err := s.engine.GetVM(t.Context(), s.admin, id); err != nil || len(v.Ports) != 0 {
			t.Errorf("%v changed something: %v %v", c, v.Ports, err)
		}
	}
	if w := b.post("/ui/ports", save()...); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "Tick at least one port") {
		t.Errorf("no port: %d", w.Code)
	}
	w := b.post("/ui/ports", save(append(row("0", "3389", "10.0.0.0/8, 192.0.2.1", "PT2H"), row("2", "8443", "*", "PT1H")...)...)...)
	if to := led(t, w); to != link("vm", "id", id) {
		t.Errorf("saving leads to %s", to)
	}
	v, err := s.engine.GetVM(t.Context(), s.admin, id)
	if err != nil || len(v.Ports) != 2 || v.Ports[0].Number != 3389 || len(v.Ports[0].Many) != 2 || v.Ports[0].MaxDuration != "PT2H" || v.Ports[0].Sessions != policy.Cut || v.Ports[1].Number != 8443 {
		t.Fatalf("the ports are %+v, %v", v.Ports, err)
	}
	// Somebody else's edit is not overwritten.
	if w := b.post("/ui/ports", save(row("0", "22", "*", "PT1H")...)...); w.Code != http.StatusPreconditionFailed {
		t.Errorf("an edit of what is no more: %d %s", w.Code, w.Body)
	}
	has(t, b.page(link("vm", "id", id)), "mstsc /v:db1", "jitgate rdp db1", "10.0.0.0/8", "2 h")
	revision = regexp.MustCompile(`name="revision" value="(\d+)"`).FindStringSubmatch(b.page(pane))[1]
	led(t, b.post("/ui/ports", "vm", id.String(), "revision", revision, "rows", "0", "do", "off"))
	if v, err := s.engine.GetVM(t.Context(), s.admin, id); err != nil || v.Tab != control.NotConfigured {
		t.Errorf("switched off it is %s, %v", v.Tab, err)
	}
	// Several at once, each by its system; one has no location yet.
	linux := s.put("web2", control.VMInput{OS: "Linux"})
	both := []string{"vm", id.String(), "vm", linux.String(), "rows", "0", "do", "defaults"}
	if w := b.post("/ui/ports", both...); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "web2: ") || !strings.Contains(w.Body.String(), `name="location"`) {
		t.Errorf("without a location: %d %s", w.Code, w.Body)
	}
	led(t, b.post("/ui/ports", append(both, "location", "westeurope")...))
	for id, number := range map[control.VMID]uint16{id: 3389, linux: 22} {
		if v, err := s.engine.GetVM(t.Context(), s.admin, id); err != nil || len(v.Ports) != 1 || v.Ports[0].Number != number || v.Ports[0].MaxDuration != "PT3H" || v.Ports[0].One != "*" {
			t.Errorf("%s by default: %+v, %v", id.Name, v.Ports, err)
		}
	}
	// What the form has no word for stays.
	forwarded := rule(22, "*", "PT1H")
	forwarded.MappedPort = 2222
	if _, err := s.engine.EditPorts(t.Context(), s.admin, linux, []control.PortRule{forwarded}, ""); err != nil {
		t.Fatal(err)
	}
	led(t, b.post("/ui/ports", append([]string{"vm", linux.String(), "rows", "1", "do", "save"}, row("0", "22", "*", "PT2H")...)...))
	if v, err := s.engine.GetVM(t.Context(), s.admin, linux); err != nil || v.Ports[0].MappedPort != 2222 || v.Ports[0].MaxDuration != "PT2H" {
		t.Errorf("edited: %+v, %v", v.Ports, err)
	}
	// Who may not is refused, and the page does not offer it.
	if _, err := s.engine.PutRole(t.Context(), s.admin, control.Role{Name: "Stock", Actions: []string{string(control.ActionVMRead), string(control.ActionVMWrite)}}); err != nil {
		t.Fatal(err)
	}
	lacks(t, s.signedIn(s.token("stock", "Stock", control.Everywhere)).page(link("vm", "id", id)), "Edit</a>")
	bob := s.signedIn(s.token("bob", "JITRequester", control.Everywhere))
	lacks(t, bob.page(link("vm", "id", id)), "Edit</a>")
	if w := bob.post("/ui/ports", "vm", id.String(), "rows", "0", "do", "off"); w.Code != http.StatusForbidden {
		t.Errorf("by who may not: %d", w.Code)
	}
}

func TestRequest(t *testing.T) {
	s := newSite(t)
	web1, web2 := s.guard("web1", rule(22, "*", "PT3H"), rule(5985, "10.0.0.0/8", "PT1H")), s.guard("web2", rule(22, "203.0.113.0/24", "PT3H"))
	alice := s.signedIn(s.token("alice", "JITRequester", control.Everywhere))
	pane := link("request", "vm", web1, "vm", web2)
	page := alice.page(pane)
	has(t, page, "My IP (203.0.113.7)", `name="on.0.22"`, `name="on.0.5985"`, `name="on.1.22"`, "the policy allows 10.0.0.0/8", `<option value="PT3H">3 h</option>`)
	asks := func(more ...string) []string {
		return append([]string{"vm", web1.String(), "vm", web2.String(), "justification", "INC-1"}, more...)
	}
	count := func() int {
		list, _, err := s.engine.ListRequests(t.Context(), s.admin, control.RequestFilter{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	for _, c := range []struct {
		name, at, says string
		status         int
		form           []string
	}{
		{"nothing", `role="alert"`, "Tick at least one port", 400, nil},
		{"a source outside the policy", `id="error-0-5985"`, "10.0.0.0/8 allowed", 400, []string{"on.0.5985", "on", "source.0.5985", "mine", "for.0.5985", "PT1H"}},
		{"another machine's", `id="error-1-22"`, "203.0.113.0/24 allowed", 400, []string{"on.0.22", "on", "for.0.22", "PT1H", "on.1.22", "on", "source.1.22", "range", "range.1.22", "198.51.100.0/24", "for.1.22", "PT1H"}},
		{"too long", `id="error-0-22"`, "PT3H allowed", 400, []string{"on.0.22", "on", "for.0.22", "PT4H"}},
		{"no address", `id="error-0-22"`, "Say which addresses", 400, []string{"on.0.22", "on", "source.0.22", "range", "for.0.22", "PT1H"}},
		{"no such address", `id="error-0-22"`, "is not an address", 400, []string{"on.0.22", "on", "source.0.22", "range", "range.0.22", "there", "for.0.22", "PT1H"}},
		{"no such time", `id="error-0-22"`, "duration", 400, []string{"on.0.22", "on", "for.0.22", "soon"}},
	} {
		w := alice.post("/ui/request", asks(c.form...)...)
		_, after, _ := strings.Cut(w.Body.String(), c.at)
		if w.Code != c.status || !strings.Contains(strings.SplitN(after, "</p>", 2)[0], c.says) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		has(t, w.Body.String(), ">INC-1</textarea>") // nobody types it again
	}
	if n := count(); n != 0 {
		t.Fatalf("%d requests were recorded of what was refused", n)
	}
	to := led(t, alice.post("/ui/request", asks("on.0.22", "on", "for.0.22", "PT1H", "on.1.22", "on", "source.1.22", "range", "range.1.22", "203.0.113.8", "for.1.22", "PT2H")...))
	page = alice.page(to)
	has(t, page, "opening", "203.0.113.7", "203.0.113.8", "INC-1", ">web1</a>", ">web2</a>", "Close now", `data-says="web1 port 22: opening, web2 port 22: opening"`)
	lacks(t, page, "Approve or deny", "What happened")
	has(t, alice.page("/ui/requests"), to, "INC-1")
	has(t, alice.page(link("vm", "id", web1)), to, "opening")
	// The owner sees the record too; another requester sees it and cannot end it.
	has(t, s.signedIn(s.owner).page(to), "What happened", "request.initiated")
	bob := s.signedIn(s.token("bob", "JITRequester", control.Everywhere))
	lacks(t, bob.page(to), "Close now", "Extend")
	if w := bob.post(to + "/revoke"); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), `role="alert"`) {
		t.Errorf("revoked by another: %d %s", w.Code, w.Body)
	}
	// Extended within the policy,
	if w := alice.post(to+"/extend", "by", "P1D"); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "PT3H allowed") {
		t.Errorf("extended beyond the policy: %d %s", w.Code, w.Body)
	}
	led(t, alice.post(to+"/extend", "by", "PT3H", "comment", "not done"))
	r, err := s.engine.GetRequest(t.Context(), s.admin, strings.TrimPrefix(to, "/ui/requests/"))
	if err != nil || !r.VMs[0].Ports[0].End.Equal(s.clock.Now().Add(3*time.Hour)) {
		t.Errorf("extended it ends %v, %v", r.VMs[0].Ports[0].End, err)
	}
	// and revoked.
	led(t, alice.post(to+"/revoke", "comment", "done"))
	has(t, alice.page(to), "closed: revoked")
	lacks(t, alice.page("/ui/requests"), to)
	has(t, alice.page("/ui/requests?show=all"), to)
}

func TestApproval(t *testing.T) {
	s := newSite(t)
	web1 := s.guard("web1", rule(22, "*", "PT3H"))
	id := control.PolicyID{Subscription: web1.Subscription, Group: web1.Group, Location: "westeurope", Name: "default"}
	if _, err := s.engine.SetApproval(t.Context(), s.admin, id, &control.Approval{Approvers: 1, Role: "SecurityAdmin", Justification: true}, ""); err != nil {
		t.Fatal(err)
	}
	alice := s.signedIn(s.token("alice", "JITRequester", control.Everywhere))
	carol := s.signedIn(s.token("carol", "SecurityAdmin", control.Everywhere))
	form := []string{"vm", web1.String(), "on.0.22", "on", "for.0.22", "PT3H"}
	w := alice.post("/ui/request", form...)
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), `id="why-error"`) {
		t.Errorf("without a justification: %d %s", w.Code, w.Body)
	}
	ask := func(why string) string {
		return led(t, alice.post("/ui/request", append(form, "justification", why)...))
	}
	to := ask("first")
	page := alice.page(to)
	has(t, page, "waits for approval", "Somebody else has to approve this.", "Close now")
	lacks(t, page, "Approve or deny")
	own := led(t, carol.post("/ui/request", append(form, "justification", "mine")...))
	lacks(t, carol.page(own), "Approve or deny")
	has(t, carol.page("/ui/requests?show=waiting"), to)
	has(t, carol.page(to), "Approve or deny")
	if w := alice.post(to + "/approve"); w.Code != http.StatusForbidden {
		t.Errorf("approved by who asked: %d", w.Code)
	}
	// Shortened.
	led(t, carol.post(to+"/approve", "atMost", "PT1H", "comment", "be quick"))
	has(t, alice.page(to), "opening", "Approved by carol", "for 1 h at most", "be quick")
	if w := carol.post(to+"/deny", "comment", "too late"); w.Code != http.StatusConflict {
		t.Errorf("denied after it was approved: %d", w.Code)
	}
	led(t, alice.post(to+"/revoke"))
	to = ask("second")
	led(t, carol.post(to+"/deny", "comment", "not today"))
	has(t, alice.page(to), "denied", "Denied by carol", "not today")
}

func TestActivity(t *testing.T) {
	s := newSite(t)
	web1 := s.guard("web1", rule(22, "*", "PT3H"))
	s.guard("web2", rule(22, "*", "PT3H"))
	b := s.signedIn(s.owner)
	led(t, b.post("/ui/request", "vm", web1.String(), "on.0.22", "on", "for.0.22", "PT1H", "justification", "=1+1"))
	of := link("activity", "scope", web1)
	page := b.page(of)
	has(t, page, "request.initiated", "policy.written", "203.0.113.7", "Of <a", "=1&#43;1")
	lacks(t, page, "web2")
	page = b.page(of + "&event=request.initiated")
	has(t, page, "request.initiated")
	lacks(t, page, ">policy.written<")
	has(t, b.page("/ui/activity?actor=nobody"), "Nothing matches.")
	has(t, b.page("/ui/activity?from="+url.QueryEscape(s.clock.Now().Add(time.Minute).Format("2006-01-02T15:04"))+"&to="), "Nothing matches.")
	for _, wrong := range []string{"from=soon", "to=later", "scope=x", "after=x"} {
		if w := b.get("/ui/activity?" + wrong); w.Code != http.StatusBadRequest {
			t.Errorf("%s answers %d", wrong, w.Code)
		}
	}
	w := b.get(strings.Replace(of, "activity?", "activity.csv?", 1))
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/csv") || !strings.HasPrefix(w.Header().Get("Content-Disposition"), "attachment; filename=") {
		t.Errorf("the download is %v", w.Header())
	}
	rows, err := csv.NewReader(w.Body).ReadAll()
	if err != nil || len(rows) < 3 || !slices.Equal(rows[0], control.ActivityColumns()) {
		t.Fatalf("the download has %v, %v", rows, err)
	}
	if i := slices.IndexFunc(rows, func(r []string) bool { return r[2] == "request.initiated" }); i < 0 || rows[i][15] != "'=1+1" {
		t.Errorf("the download has %v", rows)
	}
	// All of it, however much that is.
	if err := s.store.Update(t.Context(), func(tx control.Tx) error {
		return tx.AppendActivity(make([]control.Activity, 2*linesRead)...)
	}); err != nil {
		t.Fatal(err)
	}
	if rows, err := csv.NewReader(b.get("/ui/activity.csv").Body).ReadAll(); err != nil || len(rows) < 2*linesRead {
		t.Errorf("the download of all has %d rows, %v", len(rows), err)
	}
	if w := s.signedIn(s.token("alice", "JITRequester", control.Everywhere)).get("/ui/activity.csv"); w.Code != http.StatusForbidden {
		t.Errorf("by who may not: %d", w.Code)
	}
}

func TestTimeline(t *testing.T) {
	s := newSite(t)
	web1 := s.guard("web1", rule(22, "*", "PT3H"))
	b := s.signedIn(s.owner)
	has(t, b.page("/ui/timeline"), "Nothing was open.")
	led(t, b.post("/ui/request", "vm", web1.String(), "on.0.22", "on", "for.0.22", "PT1H", "justification", "INC-1"))
	for _, span := range []string{"", "6h", "7d", "30d", "nonsense"} {
		has(t, b.page(link("timeline", "span", span)), "<svg", "<rect", ">web1:22</text>", "<title>admin, web1:22, ", "INC-1")
	}
	lacks(t, b.page(link("timeline", "scope", machine("web2"))), "<rect")
	if w := b.get("/ui/timeline?scope=x"); w.Code != http.StatusBadRequest {
		t.Errorf("a scope that is none: %d", w.Code)
	}
}

func TestDraw(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	id := vmID(t, "web1")
	of := func(status control.Status, grant string, opened, closed, until time.Duration) control.Request {
		p := control.RequestPort{Number: 22, Status: status, GrantID: grant, Until: now.Add(until)}
		if opened != 0 {
			p.Opened = now.Add(opened)
		}
		if closed != 0 {
			p.Closed = now.Add(closed)
		}
		return control.Request{ID: grant, Requestor: "alice", Start: now.Add(opened), VMs: []control.RequestVM{{ID: id, Ports: []control.RequestPort{p}}}}
	}
	list := []control.Request{
		of(control.Pending, "", 0, 0, time.Hour),
		of(control.Revoked, "before", -9*time.Hour, -8*time.Hour, 0),
		of(control.Revoked, "across", -7*time.Hour, -5*time.Hour, 0),
		of(control.Initiated, "open", -time.Hour, 0, time.Hour),
	}
	p, cut := draw(list, control.Everywhere, now.Add(-6*time.Hour), now.Add(2*time.Hour), now, time.Hour)
	if cut || len(p.Rows) != 1 || len(p.Rows[0].Bars) != 2 {
		t.Fatalf("the picture is %+v", p)
	}
	// Eight hours are 810 wide.
	across, open := p.Rows[0].Bars[0], p.Rows[0].Bars[1]
	if across.X != labelWide || across.Wide != 101 || across.Class != "over" {
		t.Errorf("what began before: %+v", across)
	}
	if open.X != labelWide+506 || open.Wide != 203-1 && open.Wide != 203 || open.Class != "good" || p.Now != labelWide+607 {
		t.Errorf("what is open: %+v, now at %d", open, p.Now)
	}
	if len(p.Lines) != 7 || p.Lines[0].Label != "07:00" {
		t.Errorf("the lines are %+v", p.Lines)
	}
	if p, _ := draw(list, control.Scope("/subscriptions/other"), now.Add(-6*time.Hour), now, now, time.Hour); len(p.Rows) != 0 {
		t.Errorf("of another scope: %+v", p)
	}
}
