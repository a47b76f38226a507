package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// What is wrong with settings is said with the line, where there is one.
func TestWrongSettings(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"listen = \":8443\"\nlisen = \":1\"\n", `2: unknown key "lisen"`},
		{"[log]\nlevle = \"info\"\n", `2: unknown key "log.levle"`},
		{"\n[[oidc]]\nissuer = \"https://a\"\nclient = \"x\"\n", `4: unknown key "oidc.client"`},
		{"[azure]\nsubscription = \"x\"\n", `2: unknown key "azure.subscription"`},
		{"data = 5\n", "1: "},
		{"data = \"a\"\ndata = \"b\"\n", "2: "},
		{"data = \"a\n", "1: "},
		{"data = \"\"", "data is empty"},
		{"listen = \"8443\"", "listen: \"8443\" is not HOST:PORT"},
		{"listen = \":https\"", "is not HOST:PORT"},
		{"listen = \":70000\"", "is not HOST:PORT"},
		{"public_url = \"http://a\"", "public_url: "},
		{"public_url = \"https://a/path\"", "public_url: "},
		{"public_url = \"https://u:p@a\"", "public_url: "},
		{"database = \"mysql://a\"", "database: not an address"},
		{"database = \"file.db\"", "database: not an address"},
		{"trusted_proxies = [\"10.0.0.1/8\"]", "trusted_proxies[0]: "},
		{"trusted_proxies = [\"10.0.0.1\", \"x\"]", "trusted_proxies[1]: "},
		{"trusted_proxies = \"10.0.0.1\"", "1: "},
		{"[log]\nlevel = \"loud\"", "log.level"},
		{"[log]\nformat = \"xml\"", "log.format"},
		{"[tls]\ncert = \"a\"", "tls.cert and tls.key go together"},
		{"[signing]\ngrant = \"none\"", "signing.grant cannot be"},
		{"[signing]\npolicy = \"policy.key\"", "signing.policy: \"policy.key\" does not name a key"},
		{"[limits]\nrate = -1.0", "not negative"},
		{"[[oidc]]\nissuer = \"http://a\"\naudience = [\"b\"]", "oidc[0].issuer"},
		{"[[oidc]]\nissuer = \"https://a\"", "oidc[0].audience is missing"},
		{"[[oidc]]\nissuer = \"https://a\"\naudience = [\"b\"]\nclient_secret_file = \"secret\"", "oidc[0].client_secret_file is of a client"},
		{"[azure]\n", "azure.subscriptions"},
	} {
		_, err := parseSettings([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

// What is printed as settings is what they are, and all there is.
func TestDefaultConfig(t *testing.T) {
	bare, err := parseSettings(nil)
	if err != nil {
		t.Fatal(err)
	}
	commented, err := parseSettings([]byte(defaultConfig))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(bare, commented) {
		t.Errorf("the settings printed are not the defaults: %+v, %+v", commented, bare)
	}
	whole := regexp.MustCompile(`(?m)^#(\[|[a-z_]+ = )`).ReplaceAllString(defaultConfig, "$1")
	s, err := parseSettings([]byte(whole))
	if err != nil {
		t.Fatalf("with every setting set: %v", err)
	}
	if s.listen != bare.listen || s.data != bare.data || s.logLevel != hclog.Info || s.logJSON || s.rate != 20 || s.burst != 60 {
		t.Errorf("a default printed is not the default: %+v", s)
	}
	if len(s.oidc) != 1 || s.azure == nil || s.realm.policy != people || s.proxies[1] != netip.MustParsePrefix("10.1.0.0/24") {
		t.Errorf("not all is there: %+v", s)
	}
	n := 0
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for i := range typ.NumField() {
			name := typ.Field(i).Tag.Get("toml")
			if n++; !regexp.MustCompile(`(?m)^#?(` + name + ` = |\[\[?` + name + `\])`).MatchString(defaultConfig) {
				t.Errorf("%s is not in what config prints", name)
			}
			walk(typ.Field(i).Type)
		}
	}
	walk(reflect.TypeFor[settingsTOML]())
	if n < 30 {
		t.Errorf("%d settings: this test looks at nothing", n)
	}
	if got := does(t, "config"); got != defaultConfig {
		t.Error("config prints something else")
	}
}

// Flags come before the environment, and that before the file.
func TestOrderOfSettings(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "control.toml")
	text := fmt.Sprintf("data = %q\nlisten = \"127.0.0.1:1\"\ndatabase = %q\n", filepath.Join(dir, "of the file"), filepath.Join(dir, "file.db"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(databaseVariable, "")
	s, err := loadSettings(path)
	if err != nil || s.database != filepath.Join(dir, "file.db") {
		t.Fatalf("%+v %v", s, err)
	}
	t.Setenv(databaseVariable, "postgres://db/x")
	if s, err = loadSettings(path); err != nil || s.database != "postgres://db/x" {
		t.Fatalf("%+v %v", s, err)
	}
	t.Setenv(databaseVariable, "secret")
	if _, err = loadSettings(path); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	r := start(t, filepath.Join(dir, "of the flag"), "--config", path)
	if _, err := os.Stat(filepath.Join(dir, "of the flag", trustFile)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "file.db")); err != nil {
		t.Error(err)
	}
	r.stop(t)
	refuses(t, exitFailed, "control.toml:1: unknown key", "serve", "--config", write(t, dir, "control.toml", "nothing = 1"))
	refuses(t, exitFailed, "no such file", "serve", "--config", filepath.Join(dir, "none"))
	refuses(t, exitUsage, "HOST:PORT", "serve", "--data", dir, "--listen", "x")
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The URL that clients are told is the one that is set, or is made of where
// the server listens.
func TestPublicURL(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ listen, public, want string }{
		{":8443", "", "https://" + strings.ToLower(host) + ":8443"},
		{"0.0.0.0:8443", "", "https://" + strings.ToLower(host) + ":8443"},
		{"[::]:8443", "", "https://" + strings.ToLower(host) + ":8443"},
		{"127.0.0.1:0", "", "https://127.0.0.1:8443"},
		{"[::1]:0", "", "https://[::1]:8443"},
		{":8443", "https://jit.example.com/", "https://jit.example.com"},
		{":8443", "https://jit.example.com:444", "https://jit.example.com:444"},
	} {
		s, err := parseSettings([]byte(fmt.Sprintf("listen = %q\npublic_url = %q\n", c.listen, c.public)))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.public("8443"); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte(defaultConfig))
	f.Add([]byte("[[oidc]]\nissuer = \"https://a\"\naudience = [\"b\"]\n"))
	f.Add([]byte("listen = 1\n[azure]\nsubscriptions = [1]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseSettings(text)
		if err == nil && (s.data == "" || s.listen == "" || (s.tlsCert == "") != (s.tlsKey == "")) {
			t.Errorf("%q: %+v", text, s)
		}
	})
}
