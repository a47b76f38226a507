package azure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// Settings is the section [azure] of the control plane's settings. With none
// of it, requests are passed on to nobody.
type Settings struct {
	// Subscriptions are those whose machines may be guarded by Azure's JIT too.
	Subscriptions []string `toml:"subscriptions"`

	// Endpoint is Azure Resource Manager; empty is the public cloud's. Audience
	// is whom tokens are for; empty is Endpoint, and of the public cloud what
	// that cloud asks for.
	Endpoint string `toml:"endpoint"`
	Audience string `toml:"audience"`
	// CAFile has certificates to trust for Endpoint, in place of the system's.
	CAFile string `toml:"ca_file"`

	// Authority is Microsoft Entra ID; empty is the public cloud's.
	Authority string `toml:"authority"`
	TenantID  string `toml:"tenant_id"`
	// TokenFile has a bearer token to use in place of what azidentity finds. It
	// is read anew whenever one is needed.
	TokenFile string `toml:"token_file"`
}

// The public cloud.
const (
	publicEndpoint = "https://management.azure.com"
	publicAudience = "https://management.core.windows.net/"
)

var subscriptionID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z-]{0,63}$`)

// Check refuses settings that could not work, naming the one.
func (s Settings) Check() error {
	if len(s.Subscriptions) == 0 {
		return errors.New("azure.subscriptions is missing: name the subscriptions whose machines are guarded by Azure's JIT too")
	}
	for i, id := range s.Subscriptions {
		if !subscriptionID.MatchString(id) {
			return fmt.Errorf("azure.subscriptions[%d]: %q is not the id of a subscription", i, id)
		}
	}
	for _, u := range []struct{ name, value string }{{"endpoint", s.Endpoint}, {"authority", s.Authority}} {
		if u.value == "" {
			continue
		}
		parsed, err := url.Parse(u.value)
		if err != nil || parsed.Scheme != "https" || parsed.Host == "" || parsed.User != nil || parsed.RawQuery != "" || parsed.Fragment != "" {
			return fmt.Errorf("azure.%s: %q is not an address beginning with https:// (tokens go over nothing else)", u.name, u.value)
		}
	}
	return nil
}

// cloud is which Azure this is.
func (s Settings) cloud() cloud.Configuration {
	endpoint, audience, authority := s.Endpoint, s.Audience, s.Authority
	if endpoint == "" {
		endpoint = publicEndpoint
		if audience == "" {
			audience = publicAudience
		}
	}
	if audience == "" {
		audience = endpoint
	}
	if authority == "" {
		authority = cloud.AzurePublic.ActiveDirectoryAuthorityHost
	}
	return cloud.Configuration{
		ActiveDirectoryAuthorityHost: authority,
		Services:                     map[cloud.ServiceName]cloud.ServiceConfiguration{cloud.ResourceManager: {Endpoint: endpoint, Audience: audience}},
	}
}

// transport is how Resource Manager is reached: by nobody's certificate but
// those meant, on no other host, and with bounded answers.
func (s Settings) transport() (*bounded, error) {
	endpoint, err := url.Parse(s.cloud().Services[cloud.ResourceManager].Endpoint)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        time.Minute,
		TLSHandshakeTimeout:    15 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("azure.ca_file: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("azure.ca_file: %s has no certificate in PEM", s.CAFile)
		}
	}
	return &bounded{host: endpoint.Host, client: &http.Client{
		Transport: t,
		// Resource Manager redirects nobody, and a token is for it alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// credential is who the control plane is to Azure.
func (s Settings) credential() (azcore.TokenCredential, error) {
	if s.TokenFile != "" {
		c := tokenFile(s.TokenFile)
		_, err := c.GetToken(context.Background(), policy.TokenRequestOptions{})
		return c, err
	}
	// Sovereign clouds are known to the library; another authority is private,
	// and Microsoft's public directory of authorities does not know it.
	known := s.Authority == "" || s.Authority == cloud.AzureChina.ActiveDirectoryAuthorityHost || s.Authority == cloud.AzureGovernment.ActiveDirectoryAuthorityHost
	return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
		ClientOptions:            azcore.ClientOptions{Cloud: s.cloud()},
		TenantID:                 s.TenantID,
		DisableInstanceDiscovery: !known,
	})
}

// tokenFile is a credential: a file with a bearer token.
type tokenFile string

const maxToken = 64 << 10

// GetToken reads the file.
func (f tokenFile) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	text, err := os.ReadFile(string(f))
	if err != nil {
		return azcore.AccessToken{}, fmt.Errorf("azure.token_file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return azcore.AccessToken{}, fmt.Errorf("azure.token_file: %s is not one line with a bearer token", string(f))
	}
	// Whoever writes the file renews it; the library asks again by then.
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now().Add(6 * time.Minute)}, nil
}
