// Package cloud asks a cloud's metadata service which virtual machine this is.
//
// Every cloud answers at the same address, and so do captive portals and other
// machines of the same network. An answer counts only if it has the shape, the
// headers and the status that the one service is documented to give, so that
// none is taken for another. Nothing here reads a file or decides anything:
// the agent itself never uses the network, and must not import this package.
package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Service is a cloud's metadata service.
type Service string

// The services that are known.
const (
	Azure Service = "azure" // Instance Metadata Service
	EC2   Service = "ec2"   // IMDSv2; version 1 is not asked
	GCE   Service = "gce"   // Compute Engine metadata server
)

// Services lists all that are known.
var Services = []Service{Azure, EC2, GCE}

// Patience is how long all questions together may take.
const Patience = 2 * time.Second

const (
	// address is link-local on all three; metadata.google.internal is another
	// name for it, and a name can be answered by somebody else.
	address = "http://169.254.169.254"

	maxBody   = 64 << 10 // bytes of an answer
	maxHeader = 16 << 10 // bytes of its headers
	maxToken  = 1 << 10  // bytes of EC2's session token
)

// ErrNone says that no service answered as it should.
var ErrNone = errors.New("no metadata service answered")

// Identity is a virtual machine as its cloud names it.
type Identity struct {
	ID   string  // in lower case; a token that documents can name in host.id
	From Service // who said so
}

// Identify asks services, all at once, which machine this is. It returns
// within Patience. If none answers as it should the error wraps ErrNone and
// says of each why; if more than one does, none is believed.
func Identify(ctx context.Context, services ...Service) (Identity, error) {
	return client{address}.identify(ctx, services...)
}

type client struct{ base string }

func (c client) identify(ctx context.Context, services ...Service) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	type answer struct {
		from Service
		id   string
		err  error
	}
	answers := make(chan answer, len(services))
	for _, s := range services {
		go func() {
			id, err := c.ask(ctx, s)
			answers <- answer{s, id, err}
		}()
	}
	var found []Identity
	why := map[Service]error{}
	for range services {
		a := <-answers
		if a.err == nil {
			found = append(found, Identity{a.id, a.from})
		}
		why[a.from] = a.err
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		var all []string
		for _, s := range services {
			all = append(all, fmt.Sprintf("%s: %v", s, why[s]))
		}
		return Identity{}, fmt.Errorf("%w: %s", ErrNone, strings.Join(all, "; "))
	}
	return Identity{}, fmt.Errorf("both %s and %s answer at %s: name the right one with --from", found[0].From, found[1].From, c.base)
}

// ask asks one service, on connections of its own.
func (c client) ask(ctx context.Context, s Service) (id string, err error) {
	transport := &http.Transport{
		Proxy:                  nil, // a proxy would tell of its own machine
		DialContext:            (&net.Dialer{}).DialContext,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}
	defer transport.CloseIdleConnections()
	q := questions{ctx, c.base, &http.Client{Transport: transport,
		// A redirect leads to somebody else: it is an answer like any other, and a wrong one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	switch s {
	case Azure:
		id, err = q.azure()
	case EC2:
		id, err = q.ec2()
	case GCE:
		id, err = q.gce()
	default:
		return "", fmt.Errorf("%q is no service", s)
	}
	if err != nil {
		return "", err
	}
	id = strings.ToLower(id)
	return id, policy.CheckHostID(id)
}

// questions are those to one service.
type questions struct {
	ctx  context.Context
	base string
	http *http.Client
}

// flavor is the header that every answer of Google's service has, also its
// errors, and no other service's.
const flavor = "Metadata-Flavor"

// do asks one question with one header of its own. It returns the body of a
// 200, and its headers.
func (q questions) do(method, path, name, value string) ([]byte, http.Header, error) {
	request, err := http.NewRequestWithContext(q.ctx, method, q.base+path, nil)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set(name, value)
	response, err := q.http.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s %s: %s", method, path, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("%s %s: %w", method, path, err)
	case len(body) > maxBody:
		return nil, nil, fmt.Errorf("%s %s: more than %d bytes", method, path, maxBody)
	}
	return body, response.Header, nil
}

// azure: https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service
func (q questions) azure() (string, error) {
	body, header, err := q.do(http.MethodGet, "/metadata/instance/compute?api-version=2021-02-01", "Metadata", "true")
	if err != nil {
		return "", err
	}
	if err := from("Azure", header); err != nil {
		return "", err
	}
	if kind, _, err := mime.ParseMediaType(header.Get("Content-Type")); err != nil || kind != "application/json" {
		return "", errors.New("the answer is not JSON")
	}
	return parseAzure(body)
}

// pattern compiles an expression when it is first asked for: an agent has this
// package in its program and asks nobody.
func pattern(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// A resource id of a virtual machine, or of one in a scale set. Names of
// resource groups may hold letters beyond ASCII; policy.CheckHostID refuses those.
var azureID = pattern(`(?i)^/subscriptions/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})` +
	`/resourceGroups/[^/\s]+/providers/Microsoft\.Compute/(virtualMachines|virtualMachineScaleSets/[^/\s]+/virtualMachines)/[^/\s]+$`)

func parseAzure(body []byte) (string, error) {
	var compute struct {
		ResourceID     string `json:"resourceId"`
		SubscriptionID string `json:"subscriptionId"`
		VMID           string `json:"vmId"`
	}
	if err := json.Unmarshal(body, &compute); err != nil {
		return "", fmt.Errorf("compute metadata: %w", err)
	}
	found := azureID().FindStringSubmatch(compute.ResourceID)
	switch {
	case found == nil:
		return "", fmt.Errorf("resourceId %q is not a virtual machine's", compute.ResourceID)
	case !strings.EqualFold(found[1], compute.SubscriptionID):
		return "", fmt.Errorf("resourceId is of subscription %s, subscriptionId says %q", found[1], compute.SubscriptionID)
	case compute.VMID == "":
		return "", errors.New("vmId is missing")
	}
	return compute.ResourceID, nil
}

// ec2: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/retrieve-iid.html
func (q questions) ec2() (string, error) {
	const lifetime = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	token, header, err := q.do(http.MethodPut, "/latest/api/token", lifetime, "60")
	if err != nil {
		return "", err
	}
	switch {
	case header.Get(lifetime) == "": // the real one says how long the token lives
		return "", errors.New("the answer to PUT /latest/api/token is not a session token")
	case len(token) == 0, len(token) > maxToken, strings.ContainsFunc(string(token), func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", errors.New("the session token is not one")
	}
	if err := from("EC2", header); err != nil {
		return "", err
	}
	body, header, err := q.do(http.MethodGet, "/latest/dynamic/instance-identity/document", "X-Aws-Ec2-Metadata-Token", string(token))
	if err != nil {
		return "", err
	}
	if err := from("EC2", header); err != nil {
		return "", err
	}
	return parseEC2(body)
}

// from refuses what Google's service says of itself.
func from(name string, header http.Header) error {
	if f := header.Get(flavor); f != "" {
		return fmt.Errorf("this is not %s's service: %s is %q", name, flavor, f)
	}
	return nil
}

var (
	ec2Account  = pattern(`^[0-9]{12}$`)
	ec2Instance = pattern(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)
	ec2Region   = pattern(`^([a-z]{2}|us-gov)-[a-z]+-[0-9]$`)
)

func parseEC2(body []byte) (string, error) {
	var document struct {
		Account  string `json:"accountId"`
		Region   string `json:"region"`
		Instance string `json:"instanceId"`
	}
	if err := json.Unmarshal(body, &document); err != nil {
		return "", fmt.Errorf("instance identity document: %w", err)
	}
	switch {
	case !ec2Account().MatchString(document.Account):
		return "", fmt.Errorf("accountId %q is not twelve digits", document.Account)
	case !ec2Instance().MatchString(document.Instance):
		return "", fmt.Errorf("instanceId %q is not an instance's", document.Instance)
	case !ec2Region().MatchString(document.Region):
		return "", fmt.Errorf("region %q is of no partition that is known here: set host_id", document.Region)
	}
	partition := "aws"
	switch {
	case strings.HasPrefix(document.Region, "cn-"):
		partition = "aws-cn"
	case strings.HasPrefix(document.Region, "us-gov-"):
		partition = "aws-us-gov"
	}
	return fmt.Sprintf("arn:%s:ec2:%s:%s:instance/%s", partition, document.Region, document.Account, document.Instance), nil
}

// gce: https://cloud.google.com/compute/docs/metadata/querying-metadata
func (q questions) gce() (string, error) {
	var values [3]string
	for i, path := range []string{"project/project-id", "instance/zone", "instance/id"} {
		body, header, err := q.do(http.MethodGet, "/computeMetadata/v1/"+path, flavor, "Google")
		if err != nil {
			return "", err
		}
		if f := header.Get(flavor); f != "Google" {
			return "", fmt.Errorf("this is not Google's service: %s is %q", flavor, f)
		}
		values[i] = string(body)
	}
	return parseGCE(values[0], values[1], values[2])
}

var (
	// Old projects have their domain in front: example.com:project.
	gceProject = pattern(`^([a-z0-9.-]{1,255}:)?[a-z][a-z0-9-]{0,61}[a-z0-9]$`)
	gceZone    = pattern(`^projects/[0-9]+/zones/([a-z][a-z0-9-]{0,62})$`)
	gceID      = pattern(`^[1-9][0-9]{0,19}$`)
)

func parseGCE(project, zone, id string) (string, error) {
	where := gceZone().FindStringSubmatch(zone)
	switch {
	case !gceProject().MatchString(project):
		return "", fmt.Errorf("project id %q is not one", project)
	case where == nil:
		return "", fmt.Errorf("zone %q is not one", zone)
	case !gceID().MatchString(id):
		return "", fmt.Errorf("instance id %q is not a number", id)
	}
	return fmt.Sprintf("//compute.googleapis.com/projects/%s/zones/%s/instances/%s", project, where[1], id), nil
}
