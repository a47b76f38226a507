package api

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// maxBatch is how many calls one batch may hold, as in Azure's portal.
const maxBatch = 20

// The wrapper that Azure's portal puts around its calls.
type (
	batchIn struct {
		Requests []batchRequest `json:"requests"`
	}
	batchRequest struct {
		Name        string         `json:"name,omitzero"`
		Method      string         `json:"httpMethod"`
		URL         string         `json:"url,omitzero"`
		RelativeURL string         `json:"relativeUrl,omitzero"`
		Content     jsontext.Value `json:"content,omitzero"`
	}
	batchOut struct {
		Responses []batchResponse `json:"responses"`
	}
	batchResponse struct {
		Name    string            `json:"name,omitzero"`
		Status  int               `json:"httpStatusCode"`
		Headers map[string]string `json:"headers"`
		Content jsontext.Value    `json:"content,omitzero"`
		Length  int               `json:"contentLength"`
	}
)

func decodeBatch(body []byte) ([]batchRequest, error) {
	var in batchIn
	if err := decodeAzure(body, &in); err != nil {
		return nil, err
	}
	switch {
	case len(in.Requests) == 0:
		return nil, missing("requests")
	case len(in.Requests) > maxBatch:
		return nil, invalid("InvalidBatch", "A batch holds at most %d requests.", maxBatch)
	}
	return in.Requests, nil
}

// batch carries out the calls it is given, one after the other, each as if it
// had come by itself: by the same handler, with the same token and rights,
// counted by the same limits.
func batch(c *call) error {
	in, err := decodeBatch(c.body)
	if err != nil {
		return err
	}
	out := batchOut{Responses: make([]batchResponse, 0, len(in))}
	for _, q := range in {
		w := &memory{header: http.Header{}}
		if r, err := c.inner(q); err != nil {
			inner := &call{api: c.api, w: w, r: c.r, id: newID()}
			inner.headers()
			inner.fail(err)
		} else {
			c.api.ServeHTTP(w, r)
		}
		out.Responses = append(out.Responses, w.response(q.Name))
	}
	return c.ok(out)
}

// inner makes the call that a request of a batch stands for.
func (c *call) inner(q batchRequest) (*http.Request, error) {
	method, text := strings.ToUpper(q.Method), q.URL
	if text == "" {
		text = q.RelativeURL
	}
	u, err := url.Parse(text)
	if err != nil || text == "" || (q.URL != "" && q.RelativeURL != "") || (u.Host == "" && !strings.HasPrefix(text, "/")) {
		return nil, invalid("InvalidBatch", "A request of a batch needs one of url and relativeUrl.")
	}
	if u.Host != "" && !strings.EqualFold(u.Scheme+"://"+u.Host, c.base()) {
		return nil, invalid("InvalidBatch", "A request of a batch is for this server: leave the host out, or say %s.", c.base())
	}
	if segments, err := segmentsOf(u); err != nil {
		return nil, err
	} else if route, _, _ := c.api.routes.find(method, segments); route != nil && !route.azure || route != nil && route.id == batchID {
		return nil, invalid("InvalidBatch", "A batch holds calls of the Azure API alone.")
	}
	r := c.r.Clone(c.ctx)
	r.Method = method
	r.URL = &url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}
	r.Body, r.ContentLength = http.NoBody, 0
	if len(q.Content) > 0 && q.Content.Kind() != 'n' {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(q.Content)), int64(len(q.Content))
	}
	r.Header = http.Header{"Content-Type": {"application/json"}}
	for _, name := range []string{"Authorization", "Forwarded", "X-Forwarded-For", "X-Ms-Correlation-Request-Id"} {
		if values := c.r.Header.Values(name); values != nil {
			r.Header[name] = values
		}
	}
	return r, nil
}

// memory keeps the answer to a call of a batch.
type memory struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (m *memory) Header() http.Header { return m.header }

func (m *memory) WriteHeader(status int) {
	if m.status == 0 {
		m.status = status
	}
}

func (m *memory) Write(b []byte) (int, error) {
	m.WriteHeader(http.StatusOK)
	return m.body.Write(b)
}

func (m *memory) response(name string) batchResponse {
	out := batchResponse{Name: name, Status: m.status, Headers: map[string]string{}, Length: m.body.Len()}
	for key := range m.header {
		out.Headers[key] = m.header.Get(key)
	}
	if m.body.Len() > 0 {
		out.Content = bytes.Clone(m.body.Bytes())
	}
	return out
}
