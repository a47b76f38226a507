package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/agents"
	"github.com/jitgate/jitgate/control/api"
	"github.com/jitgate/jitgate/control/azure"
	"github.com/jitgate/jitgate/control/identity"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/control/web"
)

// How a server stops.
const (
	// lameDuck is how long a server that is to stop still takes calls after it
	// has said that it is not ready: who balances load looks meanwhile.
	lameDuck = 500 * time.Millisecond
	// callsFinish is how long calls in flight may take; streams have no end of
	// their own and are ended then.
	callsFinish   = 3 * time.Second
	streamsFinish = 5 * time.Second
)

// certificateCheck is how often the server's certificate is looked at: one of
// our own may be due, another may have been replaced.
const certificateCheck = time.Minute

// origin is where settings come from: a file, and flags before it.
type origin struct {
	config, data, listen string
}

// dataFlags are those of every command that needs a data directory.
func (o *origin) dataFlags(c *cobra.Command) {
	c.Flags().StringVar(&o.config, "config", "", "settings file (jitgate-control config prints one)")
	c.Flags().StringVar(&o.data, "data", defaultData, "data directory")
}

// load reads the settings. Flags that were given come first.
func (o *origin) load(c *cobra.Command) (settings, error) {
	s, err := loadSettings(o.config)
	if err != nil {
		return s, err
	}
	if c.Flags().Changed("data") {
		s.data = o.data
	}
	if c.Flags().Changed("listen") {
		if s.listen, err = checkListen(o.listen); err != nil {
			return s, usage.Errorf("--listen: %w", err)
		}
	}
	return s, nil
}

// existing loads the settings, and the data directory they name, which is there.
func (o *origin) existing(c *cobra.Command) (settings, directory, error) {
	s, err := o.load(c)
	if err != nil {
		return s, "", err
	}
	d, err := existing(s.data)
	return s, d, err
}

// words are the flags by which another command finds the same settings.
func (o *origin) words(c *cobra.Command) string {
	all := ""
	for _, f := range []struct{ name, value string }{{"config", o.config}, {"data", o.data}} {
		if c.Flags().Changed(f.name) {
			all += " --" + f.name + " " + f.value
		}
	}
	return all
}

func newServe() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve, and make first what is missing",
		Long: `Serves Azure's JIT API, /api/v1, the page and the agents' line on one TLS port.

On an empty data directory it makes a realm (root, policy and grant keys, and
the trust document hosts follow), a database, a certificate and an admin token,
and says how to go on. A start that was cut off is completed by the next.

SIGTERM and SIGINT let calls in flight finish; a second one ends at once. SIGHUP
reads the certificate and the log level anew.`,
		Example: `  jitgate-control serve
  jitgate-control serve --data ./control --listen 127.0.0.1:8443
  jitgate-control serve --config /etc/jitgate-control/control.toml`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := o.load(c)
			if err != nil {
				return err
			}
			return serve(c, s, o.words(c), func() (settings, error) { return o.load(c) })
		},
	}
	o.dataFlags(c)
	c.Flags().StringVar(&o.listen, "listen", defaultListen, "address and port to listen on")
	return c
}

// serve runs a server until a signal ends it, or something it cannot do
// without fails.
func serve(c *cobra.Command, s settings, words string, again func() (settings, error)) error {
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := hclog.New(&hclog.LoggerOptions{Name: "jitgate-control", Level: s.logLevel, JSONFormat: s.logJSON, Output: c.ErrOrStderr()})
	// Whoever comes before all is open waits for it; and where the port is
	// taken nothing is made.
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return err
	}
	sv, err := open(ctx, s, log)
	if err != nil {
		return err
	}
	defer sv.close()
	if err := sv.build(s, s.public(port)); err != nil {
		return err
	}
	// A second signal has nobody listening, and ends the process.
	context.AfterFunc(ctx, stop)
	return sv.run(ctx, listener, func() { sv.goOn(c.OutOrStdout(), s, port, words) }, again)
}

// server is a control plane that serves.
type server struct {
	dir      directory
	lock     *os.File
	store    *readiness
	realm    realm
	ca       *authority // of the server's certificate; nil: another made it
	agentsCA authority
	cert     certificate
	tickets  *tickets
	metrics  string // the token
	public   string // URL
	admin    bool   // the admin token was made just now
	log      hclog.Logger
	now      func() time.Time

	engine *control.Engine
	line   *agents.Line
	places *agents.Places
	tls    *tls.Config
	http   *http.Server
}

// readiness is a store that stops answering pings when the server is to stop:
// that is what readiness asks.
type readiness struct {
	control.Store
	stopping atomic.Bool
}

// Ping reports whether the server should get calls.
func (r *readiness) Ping(ctx context.Context) error {
	if r.stopping.Load() {
		return control.Refuse(control.Unavailable, "ServiceUnavailable", "The server is stopping.")
	}
	return r.Store.Ping(ctx)
}

// open opens, and makes where it is missing, all that a server has on disk.
func open(ctx context.Context, s settings, log hclog.Logger) (_ *server, err error) {
	sv := &server{log: log, now: time.Now}
	defer func() {
		if err != nil {
			sv.close()
		}
	}()
	if sv.dir, err = openDirectory(s.data); err != nil {
		return nil, err
	}
	if sv.lock, err = sv.dir.lock(); err != nil {
		return nil, err
	}
	kept, err := store.Open(ctx, s.dsn(sv.dir), log.Named("store"))
	if err != nil {
		return nil, err
	}
	sv.store = &readiness{Store: kept}
	if sv.realm, err = sv.dir.realm(ctx, s.realm, kept, openKey(drivers()), sv.now()); err != nil {
		return nil, err
	}
	if sv.agentsCA, err = sv.dir.authority("agents", "jitgate agents", sv.now()); err != nil {
		return nil, err
	}
	if err := sv.openCertificate(s); err != nil {
		return nil, err
	}
	if sv.tickets, err = newTickets(kept, sv.agentsCA.key, sv.now); err != nil {
		return nil, err
	}
	if sv.admin, err = sv.dir.adminToken(ctx, kept, sv.now()); err != nil {
		return nil, err
	}
	sv.metrics, err = sv.dir.tokenOrNew(metricsTokenFile)
	return sv, err
}

// close lets go of everything.
func (sv *server) close() {
	if sv.store != nil {
		if err := sv.store.Close(); err != nil {
			sv.log.Error("the database did not close", "error", err)
		}
	}
	if sv.lock != nil {
		sv.lock.Close()
	}
}

// tokenOrNew reads a token of one line, or makes it.
func (d directory) tokenOrNew(name string) (string, error) {
	there, err := d.has(name)
	if err != nil {
		return "", err
	}
	if !there {
		token, _ := control.NewToken()
		if err := d.create(name, []byte(token+"\n"), 0o600); err != nil {
			return "", err
		}
	}
	text, err := d.readSecret(name)
	token := strings.TrimSpace(string(text))
	if err == nil && (token == "" || strings.ContainsAny(token, " \t\r\n")) {
		err = fmt.Errorf("%s is not one line with a token", d.path(name))
	}
	return token, err
}

// adminToken makes the first Owner and the token that is theirs, where nobody
// is Owner yet. Whoever removes the file later has decided so: it is not made
// again.
func (d directory) adminToken(ctx context.Context, s control.Store, now time.Time) (made bool, err error) {
	there, err := d.has(adminTokenFile)
	if err != nil {
		return false, err
	}
	if !there {
		owned := false
		err := s.View(ctx, func(tx control.Tx) error {
			all, err := tx.Assignments()
			owned = slices.ContainsFunc(all, func(a control.Assignment) bool {
				return a.Scope == control.Everywhere && strings.EqualFold(a.Role, control.RoleOwner)
			})
			return err
		})
		if err != nil || owned {
			return false, err
		}
	}
	token, err := d.tokenOrNew(adminTokenFile)
	if err != nil {
		return false, err
	}
	return control.Bootstrap(ctx, s, control.HashToken(token), now)
}

// certificate is the server's, as it is now.
type certificate struct {
	now  atomic.Pointer[tls.Certificate]
	load func() (c tls.Certificate, renewed bool, err error)
}

// refresh reads the certificate anew, or makes it anew where it is ours and due.
func (c *certificate) refresh() (changed bool, err error) {
	fresh, renewed, err := c.load()
	if err != nil {
		return false, err
	}
	old := c.now.Swap(&fresh)
	return renewed || old != nil && !slices.EqualFunc(old.Certificate, fresh.Certificate, slices.Equal[[]byte]), nil
}

func (sv *server) openCertificate(s settings) error {
	if s.tlsCert != "" {
		sv.cert.load = func() (tls.Certificate, bool, error) {
			c, err := tls.LoadX509KeyPair(s.tlsCert, s.tlsKey)
			return c, false, err
		}
	} else {
		ca, err := sv.dir.authority("tls", "jitgate control plane", sv.now())
		if err != nil {
			return err
		}
		sv.ca = &ca
		names := serverNames(s.listen, s.publicHost())
		sv.cert.load = func() (tls.Certificate, bool, error) { return sv.dir.serverCertificate(ca, names, sv.now()) }
	}
	_, err := sv.cert.refresh()
	return err
}

// build puts the parts together.
func (sv *server) build(s settings, public string) error {
	sv.public = public
	registry := prometheus.NewRegistry()
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "jitgate_control_build_info", Help: "Always 1; the labels say what runs."}, []string{"version", "commit", "go"})
	info.WithLabelValues(version, commit, runtime.Version()).Set(1)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), info,
		// What ends by itself, for whoever watches that nothing does.
		until("certificate", "The end of the server's certificate", func() time.Time { return sv.cert.now.Load().Leaf.NotAfter }),
		until("agents_ca", "The end of the authority of agents' certificates", func() time.Time { return sv.agentsCA.cert.NotAfter }),
		until("trust", "The end of the trust document, after which hosts open nothing", func() time.Time { return sv.realm.Trust.Expires }))

	config := control.Config{
		Store: sv.store, Realm: sv.realm.Realm, Now: sv.now, Log: sv.log.Named("engine"),
		CA: sv.agentsCA.cert, CAKey: sv.agentsCA.key,
	}
	var serverCA []byte
	if sv.ca != nil {
		config.ServerCA, serverCA = sv.ca.fingerprint(), sv.ca.pem()
	}
	if s.azure != nil {
		outer, err := azure.New(*s.azure)
		if err != nil {
			return err
		}
		config.Outer = outer
	}
	sv.engine = control.New(config)
	who, err := identity.New(identity.Config{Store: sv.store, OIDC: s.oidc, Rate: s.rate, Burst: s.burst, Now: sv.now})
	if err != nil {
		return err
	}
	rest, err := api.New(api.Config{
		Engine: sv.engine, Identity: who, Store: sv.store, PublicURL: public, TrustedProxies: s.proxies, Log: sv.log.Named("api"),
		Registry: registry, MetricsToken: sv.metrics, TenantID: s.tenantID, Now: sv.now,
	})
	if err != nil {
		return err
	}
	sv.line = agents.New(agents.Config{Engine: sv.engine, Store: sv.store, Log: sv.log.Named("agents"), Registry: registry, Now: sv.now, ServerCA: serverCA})
	sv.places = agents.NewPlaces(descriptors(), sv.log, registry)
	page, err := web.New(web.Config{
		Engine: sv.engine, Identity: who, Store: sv.store, PublicURL: public, Log: sv.log.Named("web"), Now: sv.now,
		Address: func(r *http.Request) netip.Addr { return api.ClientAddress(r, s.proxies) },
	})
	if err != nil {
		return err
	}
	sv.http = api.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case path == "/" || strings.HasPrefix(path, web.Prefix):
			page.ServeHTTP(w, r)
		case strings.HasPrefix(path, "/agent/v1/"):
			sv.line.ServeHTTP(w, r)
		default:
			rest.ServeHTTP(w, r)
		}
	}))
	// Every scanner of the internet fails a handshake now and then.
	sv.http.ErrorLog = sv.log.Named("http").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug})
	sv.tls = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return sv.cert.now.Load(), nil },
		// Agents have a certificate, of this authority; the engine judges it.
		// Browsers, which have none of it, do not ask anybody for one.
		ClientAuth:         tls.RequestClientCert,
		ClientCAs:          sv.agentsCA.pool(),
		GetConfigForClient: agents.NewTurns(api.ReadHeaderTimeout).Take,
	}
	sv.line.Resume(sv.tls)
	sv.http.TLSConfig = sv.tls
	return nil
}

// until is a metric: when something ends, in seconds since 1970.
func until(name, help string, end func() time.Time) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "jitgate_control_" + name + "_expiry_timestamp_seconds", Help: help + ", as a Unix time."},
		func() float64 { return float64(end().Unix()) })
}

// run serves until ctx ends, and then stops in order: it says that it is not
// ready, takes no new calls, tells agents, lets calls finish, ends streams.
func (sv *server) run(ctx context.Context, listener net.Listener, ready func(), again func() (settings, error)) error {
	// From the start: whoever sees the server serve may tell it to reload.
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, reloadSignal)
	defer signal.Stop(reload)
	if err := sv.tickets.apply(ctx, sv.tls); err != nil {
		return err
	}
	socket, err := sv.listenCommands()
	if err != nil {
		return err
	}
	defer socket.Close()

	calls, endCalls := context.WithCancel(context.WithoutCancel(ctx))
	defer endCalls()
	sv.http.BaseContext = func(net.Listener) context.Context { return calls }

	g, working := errgroup.WithContext(context.WithoutCancel(ctx))
	behind, endBehind := context.WithCancel(working)
	defer endBehind()
	lines, endLines := context.WithCancel(behind)
	defer endLines()
	task := func(name string, ctx context.Context, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	task("engine", behind, sv.engine.Run)
	task("layers", behind, sv.engine.RunLayers)
	task("agents", lines, sv.line.Run)
	task("certificate", behind, func(ctx context.Context) error { return sv.keepFresh(ctx, reload, again) })
	task("commands", behind, func(ctx context.Context) error { return sv.serveCommands(ctx, socket) })
	g.Go(func() error {
		if err := sv.http.Serve(tls.NewListener(sv.places.Listen(listener), sv.tls)); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-working.Done(): // something failed
		}
		sv.log.Info("stopping")
		notify("STOPPING=1")
		sv.store.stopping.Store(true)
		if ctx.Err() != nil {
			time.Sleep(lameDuck)
		}
		endLines()
		late := time.AfterFunc(callsFinish, endCalls)
		defer late.Stop()
		limit, cancel := context.WithTimeout(context.Background(), callsFinish+streamsFinish)
		defer cancel()
		err := sv.http.Shutdown(limit)
		if err != nil {
			sv.http.Close()
			err = fmt.Errorf("calls did not finish within %s: %w", callsFinish+streamsFinish, err)
		}
		endBehind()
		return err
	})
	ready()
	notify("READY=1")
	sv.log.Info("serving", "address", listener.Addr().String(), "realm", sv.realm.Trust.Realm, "version", version)
	return g.Wait()
}

// keepFresh renews what gets old while the server runs, and takes SIGHUPs.
func (sv *server) keepFresh(ctx context.Context, reload <-chan os.Signal, again func() (settings, error)) error {
	days := time.NewTicker(24 * time.Hour)
	defer days.Stop()
	certificates := time.NewTicker(certificateCheck)
	defer certificates.Stop()
	tickets := time.NewTicker(ticketCheck)
	defer tickets.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-days.C:
			if says := trustEnds(sv.realm.Trust, sv.now()); says != "" {
				sv.log.Warn(says)
			}
			continue
		case <-tickets.C:
			if err := sv.tickets.apply(ctx, sv.tls); err != nil && ctx.Err() == nil {
				sv.log.Warn("the keys of TLS sessions stay as they are", "error", err)
			}
			continue
		case <-reload:
			if s, err := again(); err != nil {
				sv.log.Error("the settings stay as they are", "error", err)
			} else {
				sv.log.SetLevel(s.logLevel)
				sv.log.Info("settings read anew", "level", s.logLevel)
			}
		case <-certificates.C:
		}
		// What was good a moment ago is better than nothing.
		if changed, err := sv.cert.refresh(); err != nil {
			sv.log.Error("the server's certificate stays as it is", "error", err)
		} else if changed {
			sv.log.Info("the server has a new certificate", "until", sv.cert.now.Load().Leaf.NotAfter)
		}
	}
}

// goOn says, once the port is open, where it is and what to do next. words are
// those that other commands need to work on the same directory.
func (sv *server) goOn(w io.Writer, s settings, port, words string) {
	for _, line := range sv.realm.says {
		fmt.Fprintln(w, line)
	}
	public := s.public(port)
	fmt.Fprintf(w, "Serving realm %s at %s from %s.\n", sv.realm.Trust.Realm, public, string(sv.dir))
	if !sv.admin {
		return
	}
	curl, trusting := "", ""
	if sv.ca != nil {
		ca := sv.dir.path("tls/ca.pem")
		curl, trusting = " --cacert "+ca, ", and "+ca+" is to be trusted"
	}
	fmt.Fprintf(w, `
Ask it something:
  curl%s -H "Authorization: Bearer $(cat %s)" %s/api/v1/vms
Open %[3]s/ in a browser, and sign in with the same token.
Azure's SDKs: %[3]s is the endpoint of Resource Manager, the token goes into
  a credential of yours%[4]s.
People:
  jitgate-control user add alice@example.com --role JITRequester --scope /subscriptions/S%[5]s
  jitgate-control token create --for alice@example.com%[5]s
Hosts, as root, with the token that the first prints:
  jitgate-control join create --scope /subscriptions/S%[5]s
  jitgate enroll --control %[3]s --token TOKEN
Later: docs/control-operation.md; every setting: jitgate-control config
`, curl, sv.dir.path(adminTokenFile), public, trusting, words)
}
