// Package azure passes requests on to Azure's own just-in-time access, which
// drives the network security group in front of a machine: control.Outer by
// the official SDK.
//
// Azure's API opens and ends by time; it has no call that closes. What was
// opened there stays open until its end, whatever is revoked here.
package azure

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/security/armsecurity"

	"github.com/jitgate/jitgate/control"
)

// Bounds of what is taken from Azure, and how long it is believed.
const (
	tryTimeout = 20 * time.Second
	maxAnswer  = 16 << 20 // bytes of one answer
	maxPages   = 200      // of a list
	listFresh  = 5 * time.Second
	maxReason  = 400 // characters of an error
	maxJustify = 500 // characters of a justification passed on
)

// JIT is Azure's own just-in-time access. It is safe for concurrent use.
type JIT struct {
	subscriptions map[string]*subscription // by id in lower case
	fresh         time.Duration            // for which Look takes a list for what is
}

var _ control.Outer = (*JIT)(nil)

// subscription is one subscription's client, with its list of policies.
type subscription struct {
	client *armsecurity.JitNetworkAccessPoliciesClient

	mu       sync.Mutex
	policies []*armsecurity.JitNetworkAccessPolicy
	begun    time.Time // when the list was asked for
}

// New makes a JIT. It does not speak to Azure yet: an Azure that is away when
// the control plane starts does not keep it from starting.
func New(s Settings) (*JIT, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	credential, err := s.credential()
	if err != nil {
		return nil, err
	}
	transport, err := s.transport()
	if err != nil {
		return nil, err
	}
	options := &arm.ClientOptions{
		// Registering a provider with a subscription is its owner's decision.
		DisableRPRegistration: true,
		ClientOptions: policy.ClientOptions{
			Cloud:     s.cloud(),
			Transport: transport,
			// Who calls tries again, and shows meanwhile why it has to.
			Retry:           policy.RetryOptions{MaxRetries: -1, TryTimeout: tryTimeout},
			Telemetry:       policy.TelemetryOptions{ApplicationID: "jitgate"},
			PerCallPolicies: []policy.Policy{sourceLists{}},
		},
	}
	j := &JIT{subscriptions: map[string]*subscription{}, fresh: listFresh}
	for _, id := range s.Subscriptions {
		client, err := armsecurity.NewJitNetworkAccessPoliciesClient(id, credential, options)
		if err != nil {
			return nil, fmt.Errorf("azure: %w", err)
		}
		j.subscriptions[strings.ToLower(id)] = &subscription{client: client}
	}
	return j, nil
}

// Name is "azure".
func (j *JIT) Name() string { return "azure" }

// Initiate asks Azure for the ports of r that its policies name. The policies
// are those of now: what was just configured there counts.
func (j *JIT) Initiate(ctx context.Context, r control.Request) ([]*control.Layer, error) {
	places, err := j.find(ctx, r, time.Now())
	if err != nil {
		return nil, err
	}
	layers := make([]*control.Layer, len(places))
	var order []string
	groups := map[string][]spot{}
	for i, p := range places {
		if p.policy == nil {
			continue
		}
		key := strings.ToLower(value(p.policy.ID))
		if groups[key] == nil {
			order = append(order, key)
		}
		p.index = i
		groups[key] = append(groups[key], p)
	}
	for _, key := range order {
		group := groups[key]
		err := initiate(ctx, r, group)
		// One port outside Azure's bounds does not keep the others closed.
		if answer, ok := errors.AsType[*azcore.ResponseError](err); ok && answer.StatusCode == http.StatusBadRequest && len(group) > 1 {
			for _, p := range group {
				layers[p.index] = outcome(p, initiate(ctx, r, []spot{p}))
			}
			continue
		}
		for _, p := range group {
			layers[p.index] = outcome(p, err)
		}
	}
	return layers, nil
}

// Look asks where the ports of r stand in the lists of Azure's policies.
func (j *JIT) Look(ctx context.Context, r control.Request) ([]*control.Layer, error) {
	places, err := j.find(ctx, r, time.Now().Add(-j.fresh))
	if err != nil {
		return nil, err
	}
	layers := make([]*control.Layer, len(places))
	for i, p := range places {
		if p.policy == nil {
			continue
		}
		if port := newest(p, r.ID); port != nil {
			layers[i] = &control.Layer{Name: "azure", Status: control.Status(value(port.Status)), Reason: control.StatusReason(value(port.StatusReason))}
		}
	}
	return layers, nil
}

// spot is a port of a request with Azure's policy for it.
type spot struct {
	index  int
	vm     control.VMID
	port   control.RequestPort
	sub    *subscription
	policy *armsecurity.JitNetworkAccessPolicy // nil: none
}

// find pairs the ports of r, in order, with the policies that name them, from
// lists asked for since then.
func (j *JIT) find(ctx context.Context, r control.Request, since time.Time) ([]spot, error) {
	var spots []spot
	lists := map[*subscription][]*armsecurity.JitNetworkAccessPolicy{}
	for _, vm := range r.VMs {
		sub := j.subscriptions[strings.ToLower(vm.ID.Subscription)]
		if sub != nil && lists[sub] == nil {
			list, err := sub.list(ctx, since)
			if err != nil {
				return nil, errors.New(sentence(err))
			}
			lists[sub] = list
		}
		for _, port := range vm.Ports {
			spots = append(spots, spot{vm: vm.ID, port: port, sub: sub, policy: naming(lists[sub], vm.ID, port.Number)})
		}
	}
	return spots, nil
}

// list returns the policies of a subscription in the order of their ids. Those
// who wait share a list that was asked for since they came.
func (s *subscription) list(ctx context.Context, since time.Time) ([]*armsecurity.JitNetworkAccessPolicy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	begun := time.Now()
	if !s.begun.Before(since) {
		return s.policies, nil
	}
	all := []*armsecurity.JitNetworkAccessPolicy{}
	pager := s.client.NewListPager(nil)
	for page := 0; pager.More(); page++ {
		if page == maxPages {
			return nil, fmt.Errorf("the list of policies has more than %d pages", maxPages)
		}
		answer, err := pager.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range answer.Value {
			if p != nil && p.ID != nil && p.Properties != nil {
				all = append(all, p)
			}
		}
	}
	slices.SortFunc(all, func(a, b *armsecurity.JitNetworkAccessPolicy) int {
		return cmp.Compare(strings.ToLower(*a.ID), strings.ToLower(*b.ID))
	})
	s.policies, s.begun = all, begun
	return all, nil
}

// naming is the first of the policies that guards a port of a machine.
func naming(policies []*armsecurity.JitNetworkAccessPolicy, vm control.VMID, number uint16) *armsecurity.JitNetworkAccessPolicy {
	for _, p := range policies {
		for _, m := range p.Properties.VirtualMachines {
			if m == nil || !strings.EqualFold(value(m.ID), vm.String()) {
				continue
			}
			for _, port := range m.Ports {
				if port != nil && value(port.Number) == int32(number) {
					return p
				}
			}
		}
	}
	return nil
}

// initiate makes one request to Azure for ports under one policy.
func initiate(ctx context.Context, r control.Request, group []spot) error {
	id, err := arm.ParseResourceID(*group[0].policy.ID)
	if err != nil || id.Parent == nil || id.ResourceGroupName == "" {
		return refusal("a policy's id is %q", *group[0].policy.ID)
	}
	justification := justify(r)
	body := armsecurity.JitNetworkAccessPolicyInitiateRequest{Justification: &justification}
	lists := sourceList{}
	for _, p := range group {
		if n := len(body.VirtualMachines); n == 0 || !strings.EqualFold(*body.VirtualMachines[n-1].ID, p.vm.String()) {
			name := p.vm.String()
			body.VirtualMachines = append(body.VirtualMachines, &armsecurity.JitNetworkAccessPolicyInitiateVirtualMachine{ID: &name})
		}
		machine := body.VirtualMachines[len(body.VirtualMachines)-1]
		number, end := int32(p.port.Number), p.port.End.UTC()
		port := &armsecurity.JitNetworkAccessPolicyInitiatePort{Number: &number, EndTimeUTC: &end}
		switch sources := p.port.All(); len(sources) {
		case 0:
			// Azure would take our own address for the source.
			return refusal("the request names no source for port %d", number)
		case 1:
			port.AllowedSourceAddressPrefix = &sources[0]
		default:
			lists[[2]int{len(body.VirtualMachines) - 1, len(machine.Ports)}] = sources
		}
		machine.Ports = append(machine.Ports, port)
	}
	if len(lists) > 0 {
		ctx = context.WithValue(ctx, sourceListKey{}, lists)
	}
	_, err = group[0].sub.client.Initiate(ctx, id.ResourceGroupName, id.Parent.Name, id.Name, body, nil)
	return err
}

// justify is what Azure is told of the reason: first our request's id, by
// which Look finds it again, and who asked, since to Azure it is us.
func justify(r control.Request) string {
	s := mark(r.ID)
	if r.Requestor != "" {
		s += " by " + r.Requestor
	}
	if r.Justification != "" {
		s += ": " + r.Justification
	}
	return clip(s, maxJustify)
}

// mark begins the justification of a request that was passed on.
func mark(request string) string { return "jitgate " + request }

// marked reports whether a justification is one of the request's.
func marked(justification, request string) bool {
	rest, ok := strings.CutPrefix(justification, mark(request))
	return ok && (rest == "" || rest[0] == ' ' || rest[0] == ':')
}

// newest is the port of a request where the policy lists it, as it was passed
// on last.
func newest(p spot, request string) (port *armsecurity.JitNetworkAccessRequestPort) {
	var start time.Time
	for _, r := range p.policy.Properties.Requests {
		if r == nil || !marked(value(r.Justification), request) || (port != nil && value(r.StartTimeUTC).Before(start)) {
			continue
		}
		for _, m := range r.VirtualMachines {
			if m == nil || !strings.EqualFold(value(m.ID), p.vm.String()) {
				continue
			}
			for _, at := range m.Ports {
				if at != nil && value(at.Number) == int32(p.port.Number) {
					port, start = at, value(r.StartTimeUTC)
				}
			}
		}
	}
	return port
}

// outcome is the layer of a port after asking for it.
func outcome(p spot, err error) *control.Layer {
	l := &control.Layer{Name: "azure", Status: control.Initiating, Until: p.port.End}
	if err != nil {
		l.Error = sentence(err)
		if refused(err) {
			l.Until = time.Time{}
		}
	}
	return l
}

// refused reports whether err says that Azure did nothing for sure. After
// anything else it may have done what it was asked for.
func refused(err error) bool {
	if _, ours := errors.AsType[refusalError](err); ours {
		return true
	}
	answer, ok := errors.AsType[*azcore.ResponseError](err)
	return ok && answer.StatusCode >= 400 && answer.StatusCode < 500 && answer.StatusCode != http.StatusRequestTimeout
}

// refusalError is a request we do not send.
type refusalError struct{ error }

func refusal(format string, args ...any) error { return refusalError{fmt.Errorf(format, args...)} }

// sentence is err as one line for people: Azure's own words where it has any,
// without the addresses and headers that the SDK adds.
func sentence(err error) string {
	s := err.Error()
	if answer, ok := errors.AsType[*azcore.ResponseError](err); ok {
		s = fmt.Sprintf("azure answered %d", answer.StatusCode)
		if answer.ErrorCode != "" {
			s += " " + answer.ErrorCode
		}
		if m := message(answer); m != "" {
			s += ": " + m
		}
	} else if !strings.HasPrefix(s, "azure") {
		s = "azure cannot be asked: " + s
	}
	return clip(s, maxReason)
}

// message is what an error of Resource Manager says to people.
func message(e *azcore.ResponseError) string {
	if e.RawResponse == nil {
		return ""
	}
	body, err := runtime.Payload(e.RawResponse)
	if err != nil {
		return ""
	}
	var said struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &said) != nil {
		return ""
	}
	return said.Error.Message
}

// clip makes one line of at most n characters of s.
func clip(s string, n int) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if runes := []rune(s); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return s
}

// value is what p points to, or the zero value.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// sourceLists puts the lists of sources into an initiate that has any. The
// service takes a list, as its portal sends it, but the SDK's type has one
// prefix only; and several requests for one port would each end the one
// before.
type sourceLists struct{}

type sourceListKey struct{}

// sourceList has sources by the places of machine and port in the body.
type sourceList map[[2]int][]string

// Do is of the SDK's pipeline.
func (sourceLists) Do(req *policy.Request) (*http.Response, error) {
	lists, ok := req.Raw().Context().Value(sourceListKey{}).(sourceList)
	if !ok {
		return req.Next()
	}
	body, err := io.ReadAll(req.Body())
	if err != nil {
		return nil, err
	}
	if body, err = lists.into(body); err != nil {
		return nil, err
	}
	if err := req.SetBody(streaming.NopCloser(bytes.NewReader(body)), "application/json"); err != nil {
		return nil, err
	}
	return req.Next()
}

// into adds the lists to the body of an initiate.
func (l sourceList) into(body []byte) ([]byte, error) {
	type port = map[string]json.RawMessage
	type machine struct {
		ID    string `json:"id"`
		Ports []port `json:"ports"`
	}
	var all struct {
		VMs           []machine `json:"virtualMachines"`
		Justification string    `json:"justification,omitempty"`
	}
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, err
	}
	for at, sources := range l {
		list, err := json.Marshal(sources)
		if err != nil {
			return nil, err
		}
		all.VMs[at[0]].Ports[at[1]]["allowedSourceAddressPrefixes"] = list
	}
	return json.Marshal(all)
}

// bounded sends requests to one host, and takes no more than it should of the
// answers. A link to the next page that leads elsewhere would take the token
// with it.
type bounded struct {
	host   string
	client *http.Client
}

// Do is of the SDK's transport.
func (b *bounded) Do(req *http.Request) (*http.Response, error) {
	if req.URL.Host != b.host || req.URL.Scheme != "https" {
		return nil, fmt.Errorf("an answer leads to %s://%s in place of https://%s", req.URL.Scheme, req.URL.Host, b.host)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, err
	}
	resp.Body = limited{io.LimitReader(resp.Body, maxAnswer+1), resp.Body, new(int)}
	return resp, nil
}

// limited is a body that fails where it is longer than it may be.
type limited struct {
	io.Reader
	io.Closer
	read *int
}

// Read is io.Reader's.
func (l limited) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if *l.read += n; *l.read > maxAnswer {
		return n, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	return n, err
}
