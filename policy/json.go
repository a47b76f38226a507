package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// decodeStrict decodes data, one JSON object, into v.
//
// jsontext itself refuses repeated names, invalid UTF-8 and lone surrogates,
// and json matches names exactly, letter case included. Here unknown names,
// null, trailing data and deep nesting are refused as well: two readers of
// one signed document must not be able to read two things in it.
func decodeStrict(data []byte, v any) error {
	if err := scan(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v, json.RejectUnknownMembers(true)); err != nil {
		return plain(err)
	}
	return nil
}

// scan reads every token once, so that depth and null are judged before
// anything is allocated for the values.
func scan(data []byte) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(data)) // of a Buffer it reads the bytes as they lie there
	if d.PeekKind() != '{' {
		return errors.New("not a JSON object")
	}
	for first := true; first || d.StackDepth() > 0; first = false {
		token, err := d.ReadToken()
		if err != nil {
			return plain(err)
		}
		if token.Kind() == 'n' {
			return fmt.Errorf("%s is null: leave the name out instead", d.StackPointer())
		}
		if d.StackDepth() > MaxDepth {
			return fmt.Errorf("nested deeper than %d", MaxDepth)
		}
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return errors.New("data after the end of the object")
	}
	return nil
}

// plain turns the json package's errors, which name Go types, into words for
// the person who wrote the document.
func plain(err error) error {
	if s, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("the JSON text ends too early")
		}
		return fmt.Errorf("at byte %d: %w", s.ByteOffset, s.Err)
	}
	if s, ok := errors.AsType[*json.SemanticError](err); ok {
		switch {
		case errors.Is(err, json.ErrUnknownName):
			return fmt.Errorf("unknown name %q", s.JSONPointer.LastToken())
		case s.Err != nil:
			return fmt.Errorf("%s: %w", s.JSONPointer, s.Err)
		default:
			return fmt.Errorf("%s: a JSON value of the wrong kind", s.JSONPointer)
		}
	}
	return err
}

// encode writes v as the canonical text of a document: two-space indent and a
// final newline, so that people can read what they sign, or without white
// space where only that fits the limit. Text that is not
// UTF-8 comes out with U+FFFD in place of what it was.
func encode(v any) []byte {
	b, err := json.Marshal(v, jsontext.WithIndent("  "), jsontext.AllowInvalidUTF8(true), json.Deterministic(true))
	if err != nil {
		panic("policy: encoding " + fmt.Sprintf("%T", v) + ": " + err.Error()) // our own plain structs
	}
	if len(b) < MaxPayload {
		return append(b, '\n')
	}
	compact := jsontext.Value(b)
	if err := compact.Compact(); err != nil {
		panic("policy: compacting what was just encoded: " + err.Error())
	}
	return append(compact, '\n')
}
