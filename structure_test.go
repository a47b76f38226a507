package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/jitgate/jitgate/agent"
)

const module = "github.com/jitgate/jitgate"

// mayImport is the design's floors: what each package may import of this
// module, by path below it. A new package is given its place here.
var mayImport = map[string][]string{
	"":                       {"cli"},
	"cli":                    {"acl", "agent", "armor", "audit", "cli/usage", "client", "cloud", "doctor", "fetch", "firewall", "local", "logins", "policy", "signin", "uplink", "watchdog"},
	"cli/usage":              {},
	"agent":                  {"acl", "audit", "firewall", "firewall/nft", "firewall/winfw", "local", "logins", "policy"},
	"logins":                 {},
	"fetch":                  {"local", "policy", "uplink"},
	"client":                 {"policy"},
	"cloud":                  {"policy"},
	"signin":                 {},
	"policy":                 {},
	"armor":                  {"policy"},
	"acl":                    {},
	"local":                  {"acl"},
	"watchdog":               {},
	"audit":                  {"acl"},
	"doctor":                 {"firewall", "firewall/winfw"},
	"firewall":               {},
	"firewall/nft":           {"firewall"},
	"firewall/winfw":         {"firewall"},
	"firewall/fwtest":        {"firewall"},
	"firewall/winfw/wfptest": {"firewall", "firewall/winfw"},
	"uplink":                 {"policy"},
	"control":                {"policy", "uplink"},

	"control/agents":          {"control", "policy", "uplink"},
	"control/api":             {"control", "control/identity", "policy"},
	"control/azure":           {"control"},
	"control/identity":        {"control"},
	"control/signer":          {"policy"},
	"control/signer/keyvault": {},
	"control/store":           {"control", "policy"},
	"control/store/storetest": {"control", "control/store", "policy"},
	"control/web":             {"control", "control/identity", "policy", "signin"},
	"cmd/jitgate-control":     {"cli", "cli/usage", "control", "control/agents", "control/api", "control/azure", "control/identity", "control/signer", "control/signer/keyvault", "control/store", "control/web", "policy"},

	"packaging/manual":           {},
	"packaging/repack":           {},
	"packaging/windows/resource": {"audit"},

	"e2e":         {},
	"bench/fleet": {"audit", "control", "control/signer", "control/store", "control/store/storetest", "fetch", "policy", "uplink"},
	"bench":       {"agent", "audit", "control", "control/store", "control/store/storetest", "firewall", "firewall/nft", "policy"},
}

// listed is what go list says of a package.
type listed struct {
	ImportPath string
	Imports    []string
}

func goList(t *testing.T, goos string, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &complaints)
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// below returns a package's path below the module.
func below(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func TestImportsPointDown(t *testing.T) {
	for _, goos := range []string{"linux", "windows"} {
		for _, p := range goList(t, goos, "./...") {
			name, _ := below(p.ImportPath)
			allowed, known := mayImport[name]
			if !known {
				t.Errorf("package %s has no place in mayImport: say there what it may import", name)
			}
			for _, path := range p.Imports {
				if sibling, ours := below(path); ours && !slices.Contains(allowed, sibling) {
					t.Errorf("on %s, %q imports %s: not from this floor", goos, name, sibling)
				}
			}
		}
	}
}

// The agent's program carries neither the control plane nor a database.
func TestProgramStaysSmall(t *testing.T) {
	banned := []string{"database/sql", "modernc.org/sqlite", "github.com/mattn/go-sqlite3", "github.com/jackc/pgx", "go.etcd.io/bbolt",
		"testing", module + "/control", module + "/cmd", module + "/firewall/fwtest", module + "/firewall/winfw/wfptest"}
	for _, goos := range []string{"linux", "windows"} {
		packages := goList(t, goos, "-deps", ".")
		if len(packages) < 50 {
			t.Fatalf("go list -deps found %d packages: this test looks at nothing", len(packages))
		}
		for _, p := range packages {
			for _, b := range banned {
				if p.ImportPath == b || strings.HasPrefix(p.ImportPath, b+"/") {
					t.Errorf("on %s, jitgate contains %s", goos, p.ImportPath)
				}
			}
		}
	}
}

// The agent never uses the network: what asks a cloud is no part of it.
func TestAgentAsksNobody(t *testing.T) {
	for _, goos := range []string{"linux", "windows"} {
		packages := goList(t, goos, "-deps", "./agent")
		if len(packages) < 50 {
			t.Fatalf("go list -deps found %d packages: this test looks at nothing", len(packages))
		}
		for _, p := range packages {
			if p.ImportPath == module+"/cloud" || p.ImportPath == module+"/fetch" {
				t.Errorf("on %s, the agent contains %s", goos, p.ImportPath)
			}
		}
	}
	// It serves HTTP on its socket, and calls nobody by it.
	sources(t, func(path string, text []byte) {
		if filepath.Dir(path) != "agent" || strings.HasSuffix(path, "_test.go") {
			return
		}
		for _, client := range []string{"http.Client", "http.DefaultClient", "http.Transport", "http.Get(", "http.Post", "http.NewRequest", "net.Dial"} {
			if bytes.Contains(text, []byte(client)) {
				t.Errorf("%s uses %s", path, client)
			}
		}
	})
}

// sources calls f for every Go file of the module.
func sources(t *testing.T, f func(path string, text []byte)) {
	t.Helper()
	count := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "dist" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		count++
		f(path, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if count < 30 {
		t.Fatalf("%d Go files found: this test looks at nothing", count)
	}
}

func TestFormat(t *testing.T) {
	sources(t, func(path string, text []byte) {
		if want, err := format.Source(text); err != nil {
			t.Errorf("%s: %v", path, err)
		} else if !bytes.Equal(text, want) {
			t.Errorf("%s is not as gofmt writes it", path)
		}
	})
}

// vague are words that name nothing.
var vague = []string{"util", "utils", "helper", "helpers", "manager", "common"}

// Every package says what it is for, and nothing it exports has a name that
// says nothing.
func TestNamesAndComments(t *testing.T) {
	documented := map[string]bool{}
	sources(t, func(path string, text []byte) {
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ParseComments)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		dir := filepath.Dir(path)
		has := file.Doc.Text() != ""
		documented[dir] = documented[dir] || has
		if slices.Contains(vague, file.Name.Name) {
			t.Errorf("%s: package %s", path, file.Name.Name)
		}
		for _, name := range exported(file) {
			for _, word := range words(name) {
				if slices.Contains(vague, word) {
					t.Errorf("%s: %s: %q says nothing", path, name, word)
				}
			}
		}
	})
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

// exported lists the names a file exports at its top level, methods included.
func exported(file *ast.File) []string {
	var names []string
	add := func(id *ast.Ident) {
		if id.IsExported() {
			names = append(names, id.Name)
		}
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			add(d.Name)
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					add(s.Name)
				case *ast.ValueSpec:
					for _, id := range s.Names {
						add(id)
					}
				}
			}
		}
	}
	return names
}

// words splits a name at its capitals, in lower case.
func words(name string) []string {
	var out []string
	start := 0
	for i, r := range name {
		if i > 0 && unicode.IsUpper(r) {
			out, start = append(out, name[start:i]), i
		}
	}
	out = append(out, name[start:])
	for i := range out {
		out[i] = strings.ToLower(out[i])
	}
	return out
}

// What README.md shows as settings is taken as settings.
func TestReadmeSettings(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllSubmatch(text, -1)
	if len(blocks) == 0 {
		t.Fatal("README.md shows no settings")
	}
	for _, b := range blocks {
		if _, err := agent.ParseSettings(b[1]); err != nil {
			t.Errorf("%v in\n%s", err, b[1])
		}
	}
}

// Each row of the threat table names a test of its own, which is there; each
// such test has a row.
func TestThreatTable(t *testing.T) {
	there := map[string]bool{}
	test := regexp.MustCompile(`(?m)^func (TestThreat\w+)\(`)
	sources(t, func(path string, text []byte) {
		if !strings.HasSuffix(path, "_test.go") || path == "structure_test.go" {
			return
		}
		for _, m := range test.FindAllSubmatch(text, -1) {
			there[string(m[1])] = true
		}
	})
	page, err := os.ReadFile("docs/attack-surface.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "| attacker | tries | stopped by | its test |")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := strings.Split(table, "\n")[2:]
	named := regexp.MustCompile("`(TestThreat\\w+)`")
	had := map[string]bool{}
	for _, row := range rows {
		cells := strings.Split(row, "|")
		if len(cells) != 7 {
			t.Errorf("%d cells in %s", len(cells), row)
			continue
		}
		switch m := named.FindStringSubmatch(cells[4]); {
		case m == nil && strings.TrimSpace(cells[4]) != "not yet" && strings.TrimSpace(cells[4]) != "out of scope":
			t.Errorf("no test of its own: %s", row)
		case m == nil:
		case !there[m[1]]:
			t.Errorf("%s is not there: %s", m[1], row)
		case had[m[1]]:
			t.Errorf("%s stands for two rows", m[1])
		default:
			had[m[1]] = true
		}
	}
	for name := range there {
		if !had[name] {
			t.Errorf("%s has no row in docs/attack-surface.md", name)
		}
	}
	if len(had) < 35 {
		t.Errorf("%d rows with a test: this looks at nothing", len(had))
	}
}
