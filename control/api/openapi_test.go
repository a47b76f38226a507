package api

import (
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// The document is valid, and has the routes that are there: all of them, and
// no other.
func TestOpenAPI(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(openAPI(table()))
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	routes, ids := map[string]string{}, map[string]bool{}
	for _, r := range table() {
		at := r.method + " " + r.pattern.String()
		if routes[at] != "" || ids[r.id] {
			t.Errorf("%s, %s: twice", at, r.id)
		}
		routes[at], ids[r.id] = r.id, true
		if r.summary == "" || len(r.answers) == 0 || r.run == nil {
			t.Errorf("%s says too little", at)
		}
	}
	if len(routes) < 50 {
		t.Errorf("%d routes: this looks at nothing", len(routes))
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			at := method + " " + path
			if routes[at] != op.OperationID {
				t.Errorf("%s is %q in the document, %q in the table", at, op.OperationID, routes[at])
			}
			delete(routes, at)
			for _, name := range parsePattern(path).names() {
				if op.Parameters.GetByInAndName("path", name) == nil {
					t.Errorf("%s does not say what %s is", at, name)
				}
			}
			if strings.HasPrefix(path, "/subscriptions") && op.Parameters.GetByInAndName("query", "api-version") == nil {
				t.Errorf("%s has no api-version", at)
			}
		}
	}
	for at := range routes {
		t.Errorf("the document has no %s", at)
	}
}
