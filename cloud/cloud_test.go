package cloud

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const (
	subscription = "8D10DA13-8125-4BA9-A717-BF7490507B3D"
	azureVM      = "/subscriptions/" + subscription + "/resourceGroups/Web-RG/providers/Microsoft.Compute/virtualMachines/Web1"
	azureAnswer  = `{"azEnvironment":"AzurePublicCloud","location":"westus","name":"Web1","resourceGroupName":"Web-RG",
 "resourceId":"` + azureVM + `","subscriptionId":"` + subscription + `","tags":"","vmId":"02aab8a4-74ef-476e-8182-f6d2ba4166a6","zone":""}`
	ec2Answer = `{"accountId":"123456789012","architecture":"x86_64","availabilityZone":"eu-central-1b","instanceId":"i-0123456789abcdef0",
 "pendingTime":"2026-11-22T12:00:00Z","privateIp":"10.0.0.5","region":"eu-central-1","version":"2017-09-30"}`

	azureName = "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourcegroups/web-rg/providers/microsoft.compute/virtualmachines/web1"
	ec2Name   = "arn:aws:ec2:eu-central-1:123456789012:instance/i-0123456789abcdef0"
	gceName   = "//compute.googleapis.com/projects/acme-prod/zones/europe-west3-a/instances/4567890123456789012"
)

// serveAzure answers as the Instance Metadata Service does.
func serveAzure(answer string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "IMDS/150.870.65.1854")
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		switch {
		case r.Header.Get("Metadata") != "true":
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{ "error": "Bad request. Required metadata header not specified" }`)
		case r.Method != http.MethodGet:
			w.WriteHeader(http.StatusMethodNotAllowed)
		case r.URL.Path != "/metadata/instance/compute":
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{ "error": "Not found" }`)
		case r.URL.Query().Get("api-version") != "2021-02-01":
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{ "error": "Bad request. api-version was not specified in the request" }`)
		default:
			io.WriteString(w, answer)
		}
	}
}

// serveEC2 answers as IMDSv2 does where version 1 is turned off.
func serveEC2(answer string) http.HandlerFunc {
	const token = "AQAEAKxLR8x0T1nVyzI4CJvT4mLRjHmKPRnkPfPLVfvHAGxwqQZ3Fg=="
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "EC2ws")
		w.Header().Set("Content-Type", "text/plain")
		ttl := r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds")
		switch {
		case r.URL.Path == "/latest/api/token" && r.Method == http.MethodPut && r.Header.Get("X-Forwarded-For") != "":
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path == "/latest/api/token" && r.Method == http.MethodPut && ttl == "":
			w.WriteHeader(http.StatusBadRequest)
		case r.URL.Path == "/latest/api/token" && r.Method == http.MethodPut:
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", ttl)
			io.WriteString(w, token)
		case r.Header.Get("X-aws-ec2-metadata-token") != token:
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/latest/dynamic/instance-identity/document":
			io.WriteString(w, answer)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}
}

var gceAnswers = map[string]string{
	"project/project-id": "acme-prod", "instance/zone": "projects/987654321098/zones/europe-west3-a", "instance/id": "4567890123456789012"}

// serveGCE answers as the metadata server of Compute Engine does.
func serveGCE(answers map[string]string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "Metadata Server for VM")
		w.Header().Set("Metadata-Flavor", "Google")
		path, below := strings.CutPrefix(r.URL.Path, "/computeMetadata/v1/")
		answer, known := answers[path]
		switch {
		case !below || !known || r.Method != http.MethodGet:
			w.Header().Set("Content-Type", "text/html; charset=UTF-8")
			w.WriteHeader(http.StatusNotFound)
		case r.Header.Get("Metadata-Flavor") != "Google" || r.Header.Get("X-Forwarded-For") != "":
			w.Header().Set("Content-Type", "text/html; charset=UTF-8")
			w.WriteHeader(http.StatusForbidden)
		default:
			w.Header().Set("Content-Type", "application/text")
			io.WriteString(w, answer)
		}
	}
}

// identify asks a stand-in.
func identify(t *testing.T, h http.Handler, services ...Service) (Identity, error) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return client{server.URL}.identify(t.Context(), services...)
}

func TestEachServiceIsKnownForItself(t *testing.T) {
	for want, h := range map[Identity]http.Handler{
		{azureName, Azure}: serveAzure(azureAnswer),
		{ec2Name, EC2}:     serveEC2(ec2Answer),
		{gceName, GCE}:     serveGCE(gceAnswers),
	} {
		if got, err := identify(t, h, Services...); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", want.From, got, err, want)
		}
		if got, err := identify(t, h, want.From); err != nil || got != want {
			t.Errorf("%s alone: %+v, %v; want %+v", want.From, got, err, want)
		}
		for _, other := range Services {
			if got, err := identify(t, h, other); other != want.From && (!errors.Is(err, ErrNone) || got != Identity{}) {
				t.Errorf("%s taken for %s: %+v, %v", want.From, other, got, err)
			}
		}
	}
}

func TestTwoThatAnswerAreNotBelieved(t *testing.T) {
	azure, ec2 := serveAzure(azureAnswer), serveEC2(ec2Answer)
	got, err := identify(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/metadata/") {
			azure(w, r)
		} else {
			ec2(w, r)
		}
	}), Services...)
	if err == nil || errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "--from") || got != (Identity{}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// late sets headers as an answer is begun, after the handler set its own.
type late struct {
	http.ResponseWriter
	change func(http.Header)
}

func (l late) WriteHeader(code int) {
	l.change(l.Header())
	l.ResponseWriter.WriteHeader(code)
}

func (l late) Write(b []byte) (int, error) {
	l.change(l.Header())
	return l.ResponseWriter.Write(b)
}

func changed(h http.HandlerFunc, change func(http.Header)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { h(late{w, change}, r) }
}

// Whatever else answers at the address is nobody.
func TestOthersAreNotBelieved(t *testing.T) {
	elsewhere := httptest.NewServer(serveAzure(azureAnswer))
	t.Cleanup(elsewhere.Close)
	retold := func(h http.HandlerFunc, tell func(w http.ResponseWriter, answer *httptest.ResponseRecorder)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			answer := httptest.NewRecorder()
			h(answer, r)
			maps.Copy(w.Header(), answer.Header())
			tell(w, answer)
		}
	}
	squeezed := func(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(answer.Code)
		z := gzip.NewWriter(w)
		z.Write(answer.Body.Bytes())
		z.Close()
	}
	accepted := func(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
		w.WriteHeader(http.StatusAccepted)
		w.Write(answer.Body.Bytes())
	}
	long := strings.Repeat(" ", maxBody)
	redirect := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL+r.URL.String(), code) }
	}
	anyToken := func(token string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60"); r.Method == http.MethodPut {
				io.WriteString(w, token)
			} else {
				io.WriteString(w, ec2Answer)
			}
		}
	}
	if got, err := identify(t, anyToken("x"), EC2); err != nil {
		t.Fatalf("%+v, %v: the stand-in is refused for something else", got, err)
	}
	page := "<html><body>Welcome to the Hotel Wi-Fi</body></html>"
	for name, h := range map[string]http.HandlerFunc{
		"captive portal": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, page)
		},
		"captive portal that says it is JSON": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, page)
		},
		"captive portal that mirrors headers": func(w http.ResponseWriter, r *http.Request) {
			maps.Copy(w.Header(), r.Header)
			io.WriteString(w, page)
		},
		"redirects 302":                 redirect(http.StatusFound),
		"redirects 307":                 redirect(http.StatusTemporaryRedirect),
		"not found":                     http.NotFound,
		"fails":                         func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"azure, with 202":               retold(serveAzure(azureAnswer), accepted),
		"ec2, with 202":                 retold(serveEC2(ec2Answer), accepted),
		"gce, with 202":                 retold(serveGCE(gceAnswers), accepted),
		"azure, not as JSON":            changed(serveAzure(azureAnswer), func(h http.Header) { h.Set("Content-Type", "text/plain") }),
		"azure, by Google":              changed(serveAzure(azureAnswer), func(h http.Header) { h.Set("Metadata-Flavor", "Google") }),
		"azure, huge":                   serveAzure(azureAnswer + long),
		"azure, squeezed":               retold(serveAzure(azureAnswer), squeezed),
		"azure, twice":                  serveAzure(azureAnswer + azureAnswer),
		"azure, cut short":              serveAzure(azureAnswer[:len(azureAnswer)-1]),
		"ec2, huge":                     serveEC2(ec2Answer + long),
		"ec2, by Google":                changed(serveEC2(ec2Answer), func(h http.Header) { h.Set("Metadata-Flavor", "Google") }),
		"ec2, token without a lifetime": changed(serveEC2(ec2Answer), func(h http.Header) { h.Del("X-Aws-Ec2-Metadata-Token-Ttl-Seconds") }),
		"ec2, empty token":              anyToken(""),
		"ec2, a page for a token":       anyToken(page),
		"ec2, a token of 2 KiB":         anyToken(strings.Repeat("x", 2<<10)),
		"ec2, a token of two lines":     anyToken("x\ny"),
		"gce, without its flavor":       changed(serveGCE(gceAnswers), func(h http.Header) { h.Del("Metadata-Flavor") }),
		"gce, of another flavor":        changed(serveGCE(gceAnswers), func(h http.Header) { h.Set("Metadata-Flavor", "Vanilla") }),
		"gce, huge":                     serveGCE(map[string]string{"project/project-id": long + "1", "instance/zone": "z", "instance/id": "1"}),
		"gce, no project":               serveGCE(map[string]string{"instance/zone": gceAnswers["instance/zone"], "instance/id": "1"}),
		"headers without an end": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Filler", strings.Repeat("x", 2*maxHeader))
			serveAzure(azureAnswer)(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := identify(t, h, Services...)
			if !errors.Is(err, ErrNone) || got != (Identity{}) {
				t.Fatalf("%+v, %v", got, err)
			}
			for _, s := range Services {
				if !strings.Contains(err.Error(), string(s)+": ") {
					t.Errorf("%v: does not say why not %s", err, s)
				}
			}
		})
	}
}

// A service that says nothing, or drips, holds nobody up.
func TestSlowServices(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"silent": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drips": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(h)
			// Close would wait for the handlers of connections that are not given up.
			defer server.CloseClientConnections()
			if got, err := (client{server.URL}).identify(t.Context(), Services...); !errors.Is(err, ErrNone) || got != (Identity{}) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// A slow one does not keep the one that answers from being heard.
func TestOneAnswersBesideSilence(t *testing.T) {
	gce := serveGCE(gceAnswers)
	got, err := identify(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/computeMetadata/") {
			gce(w, r)
		} else {
			<-r.Context().Done()
		}
	}), Services...)
	if err != nil || got.ID != gceName {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseAzure(t *testing.T) {
	answer := func(id string) string {
		return fmt.Sprintf(`{"resourceId":%q,"subscriptionId":%q,"vmId":"02aab8a4-74ef-476e-8182-f6d2ba4166a6"}`, id, subscription)
	}
	scale := "/subscriptions/" + subscription + "/resourceGroups/rg/providers/Microsoft.Compute/virtualMachineScaleSets/web/virtualMachines/3"
	for _, id := range []string{azureVM, scale, strings.ToUpper(azureVM)} {
		if got, err := parseAzure([]byte(answer(id))); err != nil || got != id {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
	for name, body := range map[string]string{
		"nothing":               `{}`,
		"a list":                `[` + azureAnswer + `]`,
		"null":                  `null`,
		"empty id":              answer(""),
		"a subscription":        answer("/subscriptions/" + subscription),
		"a disk":                answer("/subscriptions/" + subscription + "/resourceGroups/rg/providers/Microsoft.Compute/disks/d"),
		"something below":       answer(azureVM + "/extensions/x"),
		"something in front":    answer("https://x" + azureVM),
		"of no subscription":    answer(strings.Replace(azureVM, subscription, "mine", 1)),
		"of another":            strings.Replace(answer(azureVM), `"subscriptionId":"8`, `"subscriptionId":"9`, 1),
		"without subscription":  fmt.Sprintf(`{"resourceId":%q,"vmId":"x"}`, azureVM),
		"without vmId":          fmt.Sprintf(`{"resourceId":%q,"subscriptionId":%q}`, azureVM, subscription),
		"id of the wrong kind":  `{"resourceId":5}`,
		"of a group with space": answer(strings.Replace(azureVM, "Web-RG", "Web RG", 1)),
	} {
		if got, err := parseAzure([]byte(body)); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// What documents cannot name is no id.
func TestIDsThatNobodyCanName(t *testing.T) {
	for name, group := range map[string]string{"letters beyond ASCII": "büro", "longer than 512 bytes": strings.Repeat("g", 512)} {
		got, err := identify(t, serveAzure(strings.ReplaceAll(azureAnswer, "Web-RG", group)), Azure)
		if !errors.Is(err, ErrNone) || got != (Identity{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestParseEC2(t *testing.T) {
	answer := func(account, region, instance string) []byte {
		return fmt.Appendf(nil, `{"accountId":%q,"region":%q,"instanceId":%q}`, account, region, instance)
	}
	const account, instance = "123456789012", "i-0123456789abcdef0"
	for region, partition := range map[string]string{"us-east-1": "aws", "ap-southeast-2": "aws", "cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov"} {
		want := "arn:" + partition + ":ec2:" + region + ":123456789012:instance/i-0123abcd"
		if got, err := parseEC2(answer(account, region, "i-0123abcd")); err != nil || got != want {
			t.Errorf("%s: %q, %v", region, got, err)
		}
	}
	for name, body := range map[string][]byte{
		"nothing":             []byte(`{}`),
		"null":                []byte(`null`),
		"eleven digits":       answer("12345678901", "us-east-1", instance),
		"thirteen digits":     answer("1234567890123", "us-east-1", instance),
		"letters":             answer("12345678901a", "us-east-1", instance),
		"no instance":         answer(account, "us-east-1", ""),
		"a managed node":      answer(account, "us-east-1", "mi-0123456789abcdef0"),
		"short instance":      answer(account, "us-east-1", "i-0123456"),
		"odd instance":        answer(account, "us-east-1", "i-0123456789ABCDEF0"),
		"two instances":       answer(account, "us-east-1", instance+"\n"+instance),
		"no region":           answer(account, "", instance),
		"a zone":              answer(account, "us-east-1a", instance),
		"a region of nowhere": answer(account, "us-iso-east-1", instance),
		"a region with colon": answer(account, "us-east-1:x", instance),
		"numbers":             []byte(`{"accountId":123456789012,"region":"us-east-1","instanceId":"` + instance + `"}`),
	} {
		if got, err := parseEC2(body); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestParseGCE(t *testing.T) {
	const zone = "projects/1/zones/us-central1-f"
	for project, want := range map[string]string{
		"acme-prod":        "//compute.googleapis.com/projects/acme-prod/zones/us-central1-f/instances/42",
		"example.com:acme": "//compute.googleapis.com/projects/example.com:acme/zones/us-central1-f/instances/42",
	} {
		if got, err := parseGCE(project, zone, "42"); err != nil || got != want {
			t.Errorf("%s: %q, %v", project, got, err)
		}
	}
	for name, v := range map[string][3]string{
		"no project":        {"", zone, "42"},
		"project as path":   {"a/b", zone, "42"},
		"project in lines":  {"acme\nprod", zone, "42"},
		"trailing newline":  {"acme-prod\n", zone, "42"},
		"no zone":           {"acme-prod", "", "42"},
		"short zone":        {"acme-prod", "us-central1-f", "42"},
		"zone of a name":    {"acme-prod", "projects/acme/zones/us-central1-f", "42"},
		"zone and more":     {"acme-prod", zone + "/x", "42"},
		"no id":             {"acme-prod", zone, ""},
		"id is zero":        {"acme-prod", zone, "0"},
		"id is a name":      {"acme-prod", zone, "web1"},
		"id is negative":    {"acme-prod", zone, "-1"},
		"id has 21 digits":  {"acme-prod", zone, "123456789012345678901"},
		"id has whitespace": {"acme-prod", zone, "42 "},
	} {
		if got, err := parseGCE(v[0], v[1], v[2]); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Whatever the services send, an id is one that documents can name, or none.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(azureAnswer))
	f.Add([]byte(ec2Answer))
	f.Add([]byte("acme-prod\x00projects/1/zones/us-central1-f\x0042"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if id, err := parseAzure(body); err == nil && !strings.HasPrefix(strings.ToLower(id), "/subscriptions/") {
			t.Errorf("azure: %q", id)
		}
		if id, err := parseEC2(body); err == nil && (!strings.HasPrefix(id, "arn:aws") || strings.Count(id, ":") != 5 || strings.ToLower(id) != id) {
			t.Errorf("ec2: %q", id)
		}
		if v := bytes.SplitN(body, []byte{0}, 3); len(v) == 3 {
			if id, err := parseGCE(string(v[0]), string(v[1]), string(v[2])); err == nil && (strings.Count(id, "/") != 8 || strings.ToLower(id) != id) {
				t.Errorf("gce: %q", id)
			}
		}
	})
}
