//go:build linux

package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// metadata is a cloud: its service as it answers, hop by hop, and the id that
// comes of it.
type metadata struct {
	name, id string
	answer   http.HandlerFunc
	hops     int // the service's packets live for so many; 0: as usual
}

func refuse(w http.ResponseWriter, kind string, code int, text string) {
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(code)
	io.WriteString(w, text)
}

var clouds = []metadata{
	{name: "azure",
		id: "/subscriptions/8d10da13-8125-4ba9-a717-bf7490507b3d/resourcegroups/web/providers/microsoft.compute/virtualmachines/web1",
		answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Server", "IMDS/150.870.65.1854")
			const kind = "application/json; charset=utf-8"
			switch {
			case r.Header.Get("Metadata") != "true":
				refuse(w, kind, http.StatusBadRequest, `{ "error": "Bad request. Required metadata header not specified" }`)
			case r.Header.Get("X-Forwarded-For") != "":
				refuse(w, kind, http.StatusBadRequest, `{ "error": "Bad request. X-Forwarded-For is not allowed" }`)
			case r.Method != http.MethodGet || r.URL.Path != "/metadata/instance/compute":
				refuse(w, kind, http.StatusNotFound, `{ "error": "Not found" }`)
			case r.URL.Query().Get("api-version") == "":
				refuse(w, kind, http.StatusBadRequest, `{ "error": "Bad request. api-version was not specified in the request" }`)
			default:
				w.Header().Set("Content-Type", kind)
				json.NewEncoder(w).Encode(object{
					"azEnvironment": "AzurePublicCloud", "location": "westeurope", "name": "Web1", "osType": "Linux", "resourceGroupName": "Web",
					"resourceId":     "/subscriptions/8D10DA13-8125-4ba9-a717-bf7490507b3d/resourceGroups/Web/providers/Microsoft.Compute/virtualMachines/Web1",
					"subscriptionId": "8d10da13-8125-4ba9-a717-bf7490507b3d", "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
					"plan": object{"name": "", "product": ""}, "tagsList": []object{}, "storageProfile": object{"dataDisks": []object{}}})
			}
		}},
	{name: "ec2", id: "arn:aws:ec2:eu-central-1:123456789012:instance/i-0123456789abcdef0", hops: 1, answer: imdsv2()},
	{name: "gce", id: "//compute.googleapis.com/projects/acme-prod/zones/europe-west3-a/instances/4567890123456789012",
		answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Server", "Metadata Server for VM")
			w.Header().Set("Metadata-Flavor", "Google")
			w.Header().Set("X-XSS-Protection", "0")
			const kind = "text/html; charset=UTF-8"
			answer := map[string]string{"project/project-id": "acme-prod", "instance/zone": "projects/987654321098/zones/europe-west3-a",
				"instance/id": "4567890123456789012"}[strings.TrimPrefix(r.URL.Path, "/computeMetadata/v1/")]
			switch {
			case r.Method != http.MethodGet || answer == "":
				refuse(w, kind, http.StatusNotFound, "<title>Error 404 (Not Found)!!1</title>")
			case r.Header.Get("Metadata-Flavor") != "Google" || r.Header.Get("X-Forwarded-For") != "":
				refuse(w, kind, http.StatusForbidden, "Missing required header \"Metadata-Flavor\": \"Google\"")
			default:
				w.Header().Set("Content-Type", "application/text")
				io.WriteString(w, answer)
			}
		}},
}

// imdsv2 is EC2's service where version 1 is off: each token is another one,
// and none is taken that was not given.
func imdsv2() http.HandlerFunc {
	const lifetime = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	var mu sync.Mutex
	given := map[string]bool{}
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Server", "EC2ws")
		switch {
		case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
			if r.Header.Get("X-Forwarded-For") != "" {
				refuse(w, "text/plain", http.StatusForbidden, "")
				return
			}
			if r.Header.Get(lifetime) == "" {
				refuse(w, "text/plain", http.StatusBadRequest, "")
				return
			}
			token := fmt.Sprintf("AQAEAKxLR8x0T1nVyzI4CJvT4mLRjHmKPRnkPfPLVfvHAGxwqQ%04d==", len(given))
			given[token] = true
			w.Header().Set(lifetime, r.Header.Get(lifetime))
			w.Header().Set("Content-Type", "text/plain")
			io.WriteString(w, token)
		case !given[r.Header.Get("X-Aws-Ec2-Metadata-Token")]:
			refuse(w, "text/html", http.StatusUnauthorized, "<title>401 - Unauthorized</title>")
		case r.Method != http.MethodGet || r.URL.Path != "/latest/dynamic/instance-identity/document":
			refuse(w, "text/html", http.StatusNotFound, "<title>404 - Not Found</title>")
		default:
			w.Header().Set("Content-Type", "text/plain")
			json.NewEncoder(w).Encode(object{"accountId": "123456789012", "architecture": "x86_64", "availabilityZone": "eu-central-1b",
				"imageId": "ami-0123456789abcdef0", "instanceId": "i-0123456789abcdef0", "instanceType": "t3.micro", "kernelId": nil,
				"privateIp": "10.0.0.5", "region": "eu-central-1", "version": "2017-09-30"})
		}
	}
}

const metadataAddress = "169.254.169.254"

// near puts the metadata address one hop away, where nobody answers yet.
func near(h *host) {
	h.t.Helper()
	h.vm.run(h.t, "ip", "route", "add", metadataAddress+"/32", "dev", "v0")
}

// serveMetadata has a cloud answer there.
func serveMetadata(h *host, m metadata) {
	h.t.Helper()
	near(h)
	h.outside.run(h.t, "ip", "addr", "add", metadataAddress+"/32", "dev", "p0")
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) {
			if m.hops > 0 {
				err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_TTL, m.hops)
			}
		})
		return err
	}}
	var l net.Listener
	var err error
	h.outside.do(func() { l, err = config.Listen(h.t.Context(), "tcp4", metadataAddress+":80") })
	if err != nil {
		h.t.Fatal(err)
	}
	server := &http.Server{Handler: m.answer}
	go server.Serve(l)
	h.t.Cleanup(func() { server.Close() })
}

// hostFile is host.json. The names are a contract.
type hostFile struct {
	ID      string            `json:"id"`
	From    string            `json:"from"`
	Machine map[string]string `json:"machine"`
	Written time.Time         `json:"written"`
}

func (h *host) hostFile() (f hostFile) {
	h.t.Helper()
	text, err := os.ReadFile(h.path("host.json"))
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return f
}

const someID, someUUID = "11111111111111111111111111111111", "4C4C4544-0035-4410-8052-B4C04F564433"

// A machine is set up in each cloud: it learns its id once, its agent goes by
// it, and documents for it count.
func TestHostIDFromCloud(t *testing.T) {
	t.Parallel()
	for _, m := range clouds {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.board = newBoard(t, someID, someUUID)
			serveMetadata(h, m)
			h.settings["host_id"] = quote("auto")
			config := h.config()
			if out := h.must("host-id", "--config", config); out != m.id+"\n" {
				t.Fatalf("host-id printed %q, want %q", out, m.id)
			}
			if _, err := os.Stat(h.path("host.json")); err == nil {
				t.Fatal("without --write it wrote host.json")
			}
			for _, other := range clouds {
				stdout, stderr, code := h.command("host-id", "--from", other.name, "--config", config)
				if other.name != m.name && (code != 1 || stdout != "" || !strings.Contains(stderr, "no metadata service answered")) {
					t.Errorf("--from %s: exit code %d, %q, %q", other.name, code, stdout, stderr)
				}
			}
			var said struct{ ID, From, File string }
			if err := json.Unmarshal([]byte(h.must("host-id", "--write", "--json", "--config", config)), &said); err != nil {
				t.Fatal(err)
			}
			if said.ID != m.id || said.From != m.name || said.File != h.path("host.json") {
				t.Errorf("host-id --json says %+v", said)
			}
			info, err := os.Stat(h.path("host.json"))
			if err != nil || info.Mode().Perm() != 0o644 {
				t.Fatalf("%v, %v", info.Mode(), err)
			}
			f := h.hostFile()
			if f.ID != m.id || f.From != m.name || len(f.Machine) != 2 || time.Since(f.Written).Abs() > time.Minute {
				t.Errorf("host.json says %+v", f)
			}
			if text := fmt.Sprint(f.Machine); strings.Contains(text, someID) || strings.Contains(strings.ToUpper(text), someUUID) {
				t.Errorf("host.json tells the machine's secrets: %s", text)
			}

			h.start()
			if s := h.status(); s.Host != m.id || s.HostFrom != m.name {
				t.Errorf("status says %q from %q", s.Host, s.HostFrom)
			}
			if out := h.must("status", "--config", config); !strings.Contains(out, m.id+" (from "+m.name+")") {
				t.Errorf("status prints\n%s", out)
			}
			ours := object{"host": object{"id": strings.ToUpper(m.id)}}
			h.put(1, with(h.realm.rules(1, port(22, "TCP")), ours))
			h.put(1, with(h.realm.list(1, grant("g1", 22, time.Minute, alice4+"/32")), ours))
			h.isOpen(ways("22/tcp", alice4))
			h.put(2, with(h.realm.list(2), ours))

			// An image is made of it. The other machine is not that one.
			h.stop()
			h.board = newBoard(t, someID, "4c4c4544-0035-4410-8052-b4c04f564434")
			h.start()
			if s := h.status(); s.Host != someID || s.HostFrom != "machine-id" {
				t.Errorf("a clone's status says %q from %q", s.Host, s.HostFrom)
			}
			h.finds("warning", "host-file-refused")
			log, err := os.ReadFile(h.path("agent.log"))
			if err != nil || strings.Count(string(log), "jitgate host-id --write") != 1 {
				t.Errorf("the log does not say once what to do: %v\n%s", err, log)
			}
			h.stop()
			h.must("host-id", "--write", "--config", config)
			h.start()
			h.clear("host-file-refused")
			if s := h.status(); s.Host != m.id {
				t.Errorf("set up again, its status says %q", s.Host)
			}
		})
	}
}

// Without a cloud a machine goes by its own id, and whoever sets it up does
// not wait.
func TestHostIDWithoutCloud(t *testing.T) {
	t.Parallel()
	portal := metadata{answer: func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://portal.example/", http.StatusFound)
	}}
	for name, prepare := range map[string]func(*host){
		"no way there":   func(*host) {},
		"nobody there":   near,
		"nobody listens": func(h *host) { near(h); h.outside.run(t, "ip", "addr", "add", metadataAddress+"/32", "dev", "p0") },
		"a silent machine": func(h *host) {
			serveMetadata(h, metadata{answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }})
		},
		"a captive portal": func(h *host) { serveMetadata(h, portal) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.board = newBoard(t, someID, "")
			prepare(h)
			h.settings["host_id"] = quote("auto")
			config := h.config()
			stdout, stderr, code := h.command("host-id", "--write", "--config", config) // bounded by patience
			if code != 0 || stdout != someID+"\n" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "no metadata service answered") {
				t.Fatalf("exit code %d, %q, %q", code, stdout, stderr)
			}
			if f := h.hostFile(); f.ID != someID || f.From != "machine-id" {
				t.Errorf("host.json says %+v", f)
			}
			for _, m := range clouds {
				if _, _, code := h.command("host-id", "--from", m.name, "--config", config); code != 1 {
					t.Errorf("--from %s: exit code %d", m.name, code)
				}
			}
		})
	}
}

// A service that is away for a while does not undo what it said.
func TestHostIDIsKept(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.board = newBoard(t, someID, someUUID)
	serveMetadata(h, clouds[0])
	config := h.config()
	h.must("host-id", "--write", "--config", config)
	before := h.hostFile()
	away := func() { h.outside.run(t, "ip", "addr", "del", metadataAddress+"/32", "dev", "p0") }
	away()
	if stdout, stderr, code := h.command("host-id", "--write", "--config", config); code != 1 || stdout != "" || !strings.Contains(stderr, "stays as it is") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	if now := h.hostFile(); now.ID != before.ID {
		t.Errorf("host.json says %+v", now)
	}
	if out := h.must("host-id", "--write", "--from", "machine-id", "--config", config); out != someID+"\n" || h.hostFile().ID != someID {
		t.Errorf("%q, %+v", out, h.hostFile())
	}

	// On another machine it is nobody's id, and makes way.
	h.outside.run(t, "ip", "addr", "add", metadataAddress+"/32", "dev", "p0")
	h.must("host-id", "--write", "--config", config)
	if f := h.hostFile(); f.ID != before.ID {
		t.Fatalf("host.json says %+v", f)
	}
	away()
	h.board = newBoard(t, strings.Repeat("2", 32), someUUID)
	h.must("host-id", "--write", "--config", config)
	if f := h.hostFile(); f.ID != strings.Repeat("2", 32) {
		t.Errorf("host.json says %+v", f)
	}
}

// What somebody wrote into the settings is the host's id, whatever else is
// known; and a host.json that others may write is not believed.
func TestHostIDThatCounts(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.board = newBoard(t, someID, "")
	serveMetadata(h, clouds[1])
	config := h.config()
	h.must("host-id", "--write", "--config", config)
	h.start()
	if s := h.status(); s.Host != hostID || s.HostFrom != "settings" {
		t.Errorf("status says %q from %q", s.Host, s.HostFrom)
	}
	h.stop()
	h.settings["host_id"] = quote("auto")
	for name, spoil := range map[string]func(path string) error{
		"writable by all":  func(path string) error { return os.Chmod(path, 0o666) },
		"somebody else's":  func(path string) error { return os.Chown(path, 4711, 0) },
		"a link":           func(path string) error { return os.Symlink(h.path("agent.toml"), path) },
		"not JSON":         func(path string) error { return os.WriteFile(path, []byte("web1"), 0o644) },
		"without an id":    func(path string) error { return os.WriteFile(path, []byte(`{"id":"","from":"ec2"}`), 0o644) },
		"an id with space": func(path string) error { return os.WriteFile(path, []byte(`{"id":"a b","from":"ec2"}`), 0o644) },
	} {
		h.must("host-id", "--write", "--config", config)
		if strings.HasPrefix(name, "a link") {
			os.Remove(h.path("host.json"))
		}
		if err := spoil(h.path("host.json")); err != nil {
			t.Fatal(err)
		}
		h.start()
		if s := h.status(); s.Host != someID || s.HostFrom != "machine-id" {
			t.Errorf("%s: status says %q from %q", name, s.Host, s.HostFrom)
		}
		h.finds("warning", "host-file-refused")
		h.stop()
		os.Remove(h.path("host.json"))
	}
}
