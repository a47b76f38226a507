package api

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// object is an object of JSON.
type object = map[string]any

// openAPI writes the OpenAPI document of the routes. Schemas come from the
// types that are decoded and encoded, so that they cannot say anything else.
func openAPI(table []*route) []byte {
	s := schemas{all: object{}}
	paths := object{}
	for _, r := range table {
		at := r.pattern.String()
		item, ok := paths[at].(object)
		if !ok {
			item = object{}
			paths[at] = item
		}
		item[strings.ToLower(r.method)] = s.operation(r)
	}
	s.of(reflect.TypeFor[errorBody](), false)
	document := object{
		"openapi": "3.0.3",
		"info": object{"title": "jitgate control plane", "version": "v1",
			"description": "Azure's REST API of just-in-time VM access, and /api/v1 beside it. Words of resource ids are taken in any letter case."},
		"paths":    paths,
		"security": []object{{"bearer": []string{}}},
		"components": object{
			"securitySchemes": object{"bearer": object{"type": "http", "scheme": "bearer"}},
			"schemas":         s.all,
		},
	}
	b, err := json.Marshal(document, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		panic("api: encoding openapi.json: " + err.Error()) // our own maps
	}
	return b
}

// schemas are those of the types met so far, by name.
type schemas struct{ all object }

func (s schemas) operation(r *route) object {
	op := object{"operationId": r.id, "summary": r.summary, "tags": []string{tag(r)}}
	if r.public {
		op["security"] = []object{}
	}
	if r.id == "Metrics" {
		op["security"] = []object{{"bearer": []string{}}}
	}
	var params []object
	for _, name := range r.pattern.names() {
		params = append(params, object{"name": name, "in": "path", "required": true, "schema": object{"type": "string", "minLength": 1}})
	}
	if r.version {
		params = append(params, object{"name": "api-version", "in": "query", "required": true, "schema": object{"type": "string"},
			"description": strings.Join(versions, " or ") + "."})
	}
	for _, q := range r.query {
		params = append(params, object{"name": q.name, "in": "query", "schema": object{"type": q.kind}, "description": q.description})
	}
	header := func(name, description string) {
		params = append(params, object{"name": name, "in": "header", "schema": object{"type": "string"}, "description": description})
	}
	if r.match {
		header("If-Match", "The ETag of what is edited, or * for whatever is there. Another one since: 412.")
	}
	if r.azure && r.method == "PUT" {
		header("If-None-Match", "* where there must be none yet.")
	}
	if r.once && !r.secret {
		header("Idempotency-Key", "The same key with the same call within a day: one effect, the same answer.")
	}
	if r.stream {
		header("Last-Event-ID", "The id of the last event that was seen.")
	}
	if params != nil {
		op["parameters"] = params
	}
	if r.in != nil {
		op["requestBody"] = object{"required": !r.mayLack, "content": object{"application/json": object{"schema": s.of(reflect.TypeOf(r.in), r.azure)}}}
	}
	answers := object{"default": object{"description": "A refusal, with its code in x-ms-error-code too.",
		"content": object{"application/json": object{"schema": s.of(reflect.TypeFor[errorBody](), false)}}}}
	content := map[int]object{}
	for _, a := range r.answers {
		if content[a.status] == nil {
			content[a.status] = object{}
		}
		switch {
		case a.media != "":
			content[a.status][a.media] = object{"schema": object{"type": "string"}}
		case a.body != nil:
			content[a.status]["application/json"] = object{"schema": s.of(reflect.TypeOf(a.body), false)}
		}
	}
	for status, c := range content {
		a := object{"description": "Done."}
		if len(c) > 0 {
			a["content"] = c
		}
		answers[strconv.Itoa(status)] = a
	}
	op["responses"] = answers
	return op
}

func tag(r *route) string {
	switch {
	case r.azure:
		return "Azure"
	case strings.HasPrefix(r.path, "/api/v1/"):
		return "jitgate"
	}
	return "operation"
}

// open are the enumerations, each with what the server may send.
var open = map[reflect.Type][]string{
	reflect.TypeFor[control.Tab]():          {string(control.Configured), string(control.NotConfigured), string(control.Unsupported)},
	reflect.TypeFor[control.Status]():       {string(control.Pending), string(control.Initiating), string(control.Initiated), string(control.Revoked)},
	reflect.TypeFor[control.StatusReason](): {string(control.UserRequested), string(control.Expired), string(control.NewerRequestInitiated), string(control.Denied)},
	reflect.TypeFor[control.Provision]():    {string(control.Updating), string(control.Succeeded)},
	reflect.TypeFor[policy.Protocol]():      {string(policy.TCP), string(policy.UDP), string(policy.Both)},
	reflect.TypeFor[policy.Sessions]():      {string(policy.Keep), string(policy.Cut)},
}

// of is the schema of a type. tolerant is that of a body in which names that
// are not known are passed over.
func (s schemas) of(t reflect.Type, tolerant bool) object {
	switch t {
	case reflect.TypeFor[instant](), reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[portNumber]():
		return object{"oneOf": []object{{"type": "integer", "minimum": 0, "maximum": 65535}, {"type": "string", "pattern": "^[0-9]+$"}}}
	case reflect.TypeFor[[]byte]():
		return object{"type": "string", "format": "byte"}
	case reflect.TypeFor[jsontext.Value]():
		return object{}
	case reflect.TypeFor[raw]():
		return object{"type": "object", "additionalProperties": true}
	}
	if values := open[t]; values != nil {
		return object{"type": "string", "enum": values}
	}
	switch t.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Uint16:
		return object{"type": "integer", "minimum": 0, "maximum": 65535}
	case reflect.Int, reflect.Uint64:
		return object{"type": "integer"}
	case reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem(), tolerant)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem(), tolerant)}
	case reflect.Pointer:
		return s.of(t.Elem(), tolerant)
	case reflect.Struct:
		return s.named(t, tolerant)
	}
	panic(fmt.Sprintf("api: %s has no schema", t))
}

var (
	typeName = regexp.MustCompile(`[A-Za-z.]*/|[a-z]+\.`) // the packages in the name of a generic type
	notName  = regexp.MustCompile(`[^A-Za-z0-9]+`)
)

// named is a reference to the schema of a struct.
func (s schemas) named(t reflect.Type, tolerant bool) object {
	name := notName.ReplaceAllString(typeName.ReplaceAllString(t.Name(), ""), "_")
	name = strings.Trim(name, "_")
	if tolerant {
		name += "_tolerant"
	}
	ref := object{"$ref": "#/components/schemas/" + name}
	if s.all[name] != nil {
		return ref
	}
	properties, required := object{}, []string{}
	schema := object{"type": "object", "additionalProperties": tolerant}
	s.all[name] = schema // before its fields, which may refer to it
	s.fields(t, tolerant, properties, &required)
	schema["properties"] = properties
	if len(required) > 0 {
		slices.Sort(required)
		schema["required"] = required
	}
	return ref
}

func (s schemas) fields(t reflect.Type, tolerant bool, properties object, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		text := f.Tag.Get("json")
		if f.Anonymous && text == "" {
			s.fields(f.Type, tolerant, properties, required)
			continue
		}
		name, options, _ := strings.Cut(text, ",")
		if name == "" || name == "-" {
			panic(fmt.Sprintf("api: %s.%s has no name on the wire", t, f.Name))
		}
		of := s.of(f.Type, tolerant)
		properties[name] = of
		switch {
		case options == "":
			*required = append(*required, name)
		case tolerant && of["$ref"] == nil:
			of["nullable"] = true // null is as good as nothing
		}
	}
}
