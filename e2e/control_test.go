//go:build linux

package e2e_test

import (
	"errors"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newStranger makes a host that follows no realm yet.
func newStranger(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	if err := os.Remove(h.path("inbox", "trust.json")); err != nil {
		t.Fatal(err)
	}
	delete(h.settings, "trust_pin")
	h.settings["host_id"] = quote(vmID)
	return h
}

// enroll makes the host known to the control plane, through a join token, and
// starts its agent and its fetcher. stop kills the fetcher.
func (h *host) enroll(p *plane) (stop func()) {
	h.t.Helper()
	// The fetcher's own directory is one more setting of a host with many on
	// one machine.
	config := h.config()
	text, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, append(text, "\n[control]\nidentity_dir = "+quote(h.path("fetch"))+"\n"...), 0o644)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.edited = true
	h.enrollAgain(p)
	h.start()
	return h.fetch()
}

// enrollAgain makes the host known with a new token, and starts nothing.
func (h *host) enrollAgain(p *plane) {
	h.t.Helper()
	h.must("enroll", "--control", p.url(""), "--token", joinToken(p, "--vm", vmID), "--config", h.config())
}

// joinToken makes a join token; args say for what.
func joinToken(p *plane, args ...string) string {
	p.t.Helper()
	return tokenIn(p.command(append([]string{"join", "create"}, args...)...), "jgj_")
}

// tokenIn is the token in what a command printed, by how it begins.
func tokenIn(out, begins string) string {
	token, _, _ := strings.Cut(out[strings.Index(out, begins):], "\n")
	return token
}

// fetch starts the fetcher. stop kills it.
func (h *host) fetch() (stop func()) {
	h.t.Helper()
	log, err := os.OpenFile(h.path("fetch.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := h.on("fetch", "--config", h.path("agent.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := h.vm.start(cmd); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	stop = func() {
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			h.t.Error(err)
		}
		<-ended
	}
	h.t.Cleanup(func() {
		stop()
		if h.t.Failed() {
			h.t.Logf("the end of the fetcher's log:\n%s", lastLines(h.path("fetch.log")))
		}
	})
	return stop
}

// hasPolicy waits until the policy of the control plane is in force.
func (h *host) hasPolicy(version uint64) {
	h.t.Helper()
	h.until("the policy should be in force", func(s status) bool { return s.document("policy").Version >= version })
}

// vmView is what the inventory shows of the host.
func (p *plane) vmView(token string) object {
	p.t.Helper()
	return p.want(200, token, "GET", "/api/v1/vms"+vmID, nil)
}

// newest is the newest request of the inventory's machine.
func (p *plane) newest(token string) object {
	p.t.Helper()
	list := p.want(200, token, "GET", "/api/v1/requests?vm="+url.QueryEscape(vmID), nil)
	all := list["value"].([]any)
	if len(all) == 0 {
		p.t.Fatal("there is no request")
	}
	return all[0].(object)
}

// The whole way: a call of Azure's own client opens a port of a machine that
// knows nothing of the control plane but a join token, and everything that
// ends an opening ends it.
func TestRequestOpensAPort(t *testing.T) {
	t.Parallel()
	h := newStranger(t)
	p := planeBeside(h)
	admin := p.read("admin.token")
	c := p.sdk(admin, alice4)
	ctx := t.Context()

	if _, err := c.CreateOrUpdate(ctx, group, location, policyName, policyOf(guards(vmID, rule(22, "10.77.0.0/24", "PT3H"), rule(3389, "*", "PT1H"))), nil); err != nil {
		t.Fatal(err)
	}
	if view := p.vmView(admin); view["tab"] != "Configured" || view["agentStatus"] != "no agent yet" {
		t.Errorf("a machine known by its policy only: %v", view)
	}
	// Asked for before there is an agent: it is kept, and opens once there is.
	if _, err := c.Initiate(ctx, group, location, policyName, asks(vmID, 3389, bob4, time.Now().Add(time.Hour)), nil); err != nil {
		t.Fatal(err)
	}
	if state := portState(t, c, 3389); state != "Initiating UserRequested" {
		t.Errorf("with no agent the request is %s", state)
	}

	// The inbox is the fetcher's, which is not root where jitgate is installed:
	// what enrolment puts there is nothing that somebody put there by hand.
	const fetcher = 65534
	if err := errors.Join(os.MkdirAll(h.path("inbox"), 0o755), os.Chown(h.path("inbox"), fetcher, fetcher)); err != nil {
		t.Fatal(err)
	}
	h.enroll(p)
	h.hasPolicy(1)
	for _, e := range h.events("document.admitted") {
		if strings.Contains(e.Message, "by hand") {
			t.Errorf("%+v", e)
		}
	}
	h.opens(patience, ways("3389/tcp", bob4))
	until(t, patience, "the agent's word should arrive", func() bool { return portState(t, c, 3389) == "Initiated UserRequested" })
	h.isClosed(ways("22/tcp", alice4, bob4), ways("3389/tcp", alice4))

	// No source: where the call comes from.
	if _, err := c.Initiate(ctx, group, location, policyName, asks(vmID, 22, "", time.Now().Add(time.Hour)), nil); err != nil {
		t.Fatal(err)
	}
	h.opens(patience, ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	until(t, patience, "the agent's word should arrive", func() bool { return portState(t, c, 22) == "Initiated UserRequested" })
	view := p.vmView(admin)
	if view["agentStatus"] != "connected" || view["lastUser"] == "" || view["lastAccess"] == nil || view["approvedRequests"] != 2.0 {
		t.Errorf("the inventory shows %v", view)
	}

	// Revoked.
	p.want(200, admin, "POST", "/api/v1/requests/"+p.newest(admin)["id"].(string)+"/revoke", object{"reason": "done"})
	h.closes(patience, ways("22/tcp", alice4))
	h.isOpen(ways("3389/tcp", bob4))

	// Expired, with the control plane dead: nobody has to tell the kernel.
	if _, err := c.Initiate(ctx, group, location, policyName, asks(vmID, 22, "", time.Now().Add(4*time.Second)), nil); err != nil {
		t.Fatal(err)
	}
	h.opens(patience, ways("22/tcp", alice4))
	p.kill()
	h.closes(patience, ways("22/tcp", alice4))
	h.isOpen(ways("3389/tcp", bob4))
	p.start()
	until(t, patience, "the end should be recorded", func() bool { return portState(t, c, 22) == "Revoked Expired" })

	// The fetcher comes back by itself, and so does the way in.
	if _, err := c.Initiate(ctx, group, location, policyName, asks(vmID, 22, "", time.Now().Add(time.Hour)), nil); err != nil {
		t.Fatal(err)
	}
	h.opens(3*patience, ways("22/tcp", alice4))

	// What an auditor reads has both halves.
	for _, event := range []string{"request.initiated", "request.revoked", "host.enrolled", "document.admitted", "grant.opened", "grant.expired", "grant.revoked", "grant.used"} {
		until(t, patience, "the activity log should have "+event, func() bool {
			lines := p.want(200, admin, "GET", "/api/v1/activity?event="+event+"&scope="+url.QueryEscape(vmID), nil)["value"].([]any)
			return len(lines) > 0
		})
	}

	// An agent that is told to go is gone.
	p.want(204, admin, "POST", "/api/v1/vms"+vmID+"/agent/revoke", object{"reason": "stolen"})
	until(t, patience, "the agent should be revoked", func() bool { return p.vmView(admin)["agentStatus"] == "revoked" })
	h.isOpen(ways("22/tcp", alice4)) // a signed grant stands until its end

	// Protection ends with the policy, and only then.
	h.isClosed(ways("22/tcp", bob4))
}

// Deleting a policy ends the protection of its machines, and what was open
// under it.
func TestDeletedPolicyEndsProtection(t *testing.T) {
	t.Parallel()
	h := newStranger(t)
	p := planeBeside(h)
	c := p.sdk(p.read("admin.token"), "")
	if _, err := c.CreateOrUpdate(t.Context(), group, location, policyName, policyOf(guards(vmID, rule(22, "*", "PT3H"))), nil); err != nil {
		t.Fatal(err)
	}
	h.enroll(p)
	h.hasPolicy(1)
	h.isClosed(ways("22/tcp", alice4))
	// Another port instead of the first: one is guarded no more, one newly.
	if _, err := c.CreateOrUpdate(t.Context(), group, location, policyName, policyOf(guards(vmID, rule(2222, "*", "PT3H"))), nil); err != nil {
		t.Fatal(err)
	}
	h.closes(patience, ways("2222/tcp", alice4))
	h.isOpen(ways("22/tcp", alice4))
	if _, err := c.Delete(t.Context(), group, location, policyName, nil); err != nil {
		t.Fatal(err)
	}
	h.opens(patience, ways("2222/tcp", alice4))
}
