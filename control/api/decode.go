package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// MaxBody is the most bytes the body of a call may have.
	MaxBody = 1 << 20
	// maxDepth is how deep JSON may nest. What the API takes needs seven.
	maxDepth = 32
)

// readBody reads the whole body of a call, which must be JSON unless it is
// empty.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, refuse(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge", "The request body is larger than %d bytes.", MaxBody)
	}
	if err != nil {
		return nil, refuse(http.StatusRequestTimeout, "RequestBodyIncomplete", "The request body did not arrive in time, or not whole.")
	}
	if len(b) > 0 {
		if err := mustBeJSON(r.Header.Get("Content-Type")); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func mustBeJSON(contentType string) error {
	t, params, err := mime.ParseMediaType(contentType)
	charset := params["charset"]
	if err != nil || (t != "application/json" && t != "text/json" && !strings.HasSuffix(t, "+json")) || (charset != "" && !strings.EqualFold(charset, "utf-8")) {
		return refuse(http.StatusUnsupportedMediaType, "UnsupportedMediaType", "The content type %q is not supported: send application/json in UTF-8.", clip(contentType))
	}
	return nil
}

// badBody is the refusal of a body that is not what it should be.
func badBody(format string, args ...any) *refusal {
	return invalid("InvalidRequestContent", "The request content was invalid and could not be deserialized: "+format, args...)
}

// decodeAzure decodes a body as Azure does: names in any letter case, names
// it does not know and null passed over. Repeated names are refused all the
// same, since two readers could take two things from them.
func decodeAzure(body []byte, v any) error {
	return decode(body, v, json.MatchCaseInsensitiveNames(true))
}

// decodeStrict decodes a body of our own API: only names it knows.
func decodeStrict(body []byte, v any) error {
	return decode(body, v, json.RejectUnknownMembers(true))
}

func decode(body []byte, v any, opts ...json.Options) error {
	if err := scan(body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, v, opts...); err != nil {
		return plain(err)
	}
	return nil
}

// scan reads every token once: depth, repeated names and bad text are judged
// before anything is allocated for the values.
func scan(body []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(body))
	switch kind := d.PeekKind(); {
	case len(bytes.TrimSpace(body)) == 0:
		return badBody("there is none.")
	case kind != '{':
		return badBody("it is not a JSON object.")
	}
	for first := true; first || d.StackDepth() > 0; first = false {
		if _, err := d.ReadToken(); err != nil {
			return plain(err)
		}
		if d.StackDepth() > maxDepth {
			return badBody("it is nested deeper than %d.", maxDepth)
		}
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return badBody("there is something after the end of the object.")
	}
	return nil
}

// plain turns the json package's errors, which name Go types, into words for
// the caller.
func plain(err error) error {
	if s, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return badBody("it ends too early.")
		}
		return badBody("at byte %d: %v.", s.ByteOffset, clip(s.Err.Error()))
	}
	if s, ok := errors.AsType[*json.SemanticError](err); ok {
		at := clip(pointerPath(s.JSONPointer))
		var r *refusal
		switch {
		case errors.Is(err, json.ErrUnknownName):
			r = badBody("the name %q is not known.", clip(s.JSONPointer.LastToken()))
		case s.Err != nil:
			r = badBody("%s: %v.", at, s.Err)
		default:
			r = badBody("%s: a value of the wrong kind.", at)
		}
		r.target = at
		return r
	}
	return badBody("%v.", err)
}

// pointerPath writes a JSON pointer as people do: properties.virtualMachines[0].id.
func pointerPath(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		if _, err := strconv.Atoi(token); err == nil {
			b.WriteString("[" + token + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(token)
	}
	return b.String()
}
