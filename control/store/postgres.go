package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// postgresEngine is a database that several processes may share.
type postgresEngine struct {
	readers *sql.DB
	writers *sql.DB // one connection: Updates that wait hold up no View
	config  *pgx.ConnConfig
	log     hclog.Logger
	wakers  *wakers
	self    string // names this process in what it announces
	end     context.CancelFunc
	ended   sync.WaitGroup
}

const (
	// updateLock is the advisory lock of whoever updates; every replica knows it.
	updateLock = 0x6a697467617465 // "jitgate"
	// channel is where commits are announced.
	channel = "jitgate"
	// startPatience is how long a database may take to come up.
	startPatience = 30 * time.Second
	// attentionSpan is how long the listener hears nothing before it asks
	// whether its connection still lives.
	attentionSpan = 20 * time.Second
	// backoffAtMost bounds the wait before the listener connects again.
	backoffAtMost = 5 * time.Second
)

func openPostgres(ctx context.Context, dsn string, log hclog.Logger, w *wakers) (*postgresEngine, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("the database's address: %w", err) // without its password
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 5 * time.Second
	}
	defaults := map[string]string{
		"application_name": "jitgate-control",
		// A replica that was cut off must not keep the lock all others need.
		"idle_in_transaction_session_timeout": "30s",
		"tcp_keepalives_idle":                 "15",
		"tcp_keepalives_interval":             "5",
		"tcp_keepalives_count":                "3",
	}
	for k, v := range defaults {
		if config.RuntimeParams[k] == "" {
			config.RuntimeParams[k] = v
		}
	}
	e := &postgresEngine{config: config, log: log, wakers: w, self: rand.Text()}
	pool := func(size int) *sql.DB {
		db := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(checked))
		db.SetMaxOpenConns(size)
		db.SetMaxIdleConns(size)
		db.SetConnMaxIdleTime(5 * time.Minute)
		return db
	}
	e.readers, e.writers = pool(connectionsAtMost), pool(1)
	if err := e.connect(ctx); err != nil {
		return nil, errors.Join(err, e.readers.Close(), e.writers.Close())
	}
	listening, end := context.WithCancel(context.Background())
	e.end = end
	e.ended.Go(func() { e.listen(listening) })
	return e, nil
}

// unfit is a server that waiting does not help.
type unfit struct{ why string }

func (u *unfit) Error() string { return "this PostgreSQL cannot be used: " + u.why }

// checked keeps a new connection whose server is fit, and closes any other:
// the server behind an address may become another one.
func checked(ctx context.Context, c *pgx.Conn) error {
	err := checkServer(ctx, c)
	if err != nil {
		c.Close(ctx) // who connects does not, and err is what matters
	}
	return err
}

// checkServer refuses a server that would lose what it acknowledges, or change
// what it is given.
func checkServer(ctx context.Context, c *pgx.Conn) error {
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		var value string
		if err := c.QueryRow(ctx, "SELECT current_setting($1)", setting).Scan(&value); err != nil {
			return err
		}
		if value == "off" {
			return &unfit{setting + " is off, so a crash could lose what was acknowledged: switch it on"}
		}
	}
	if encoding := c.PgConn().ParameterStatus("server_encoding"); encoding != "UTF8" {
		return &unfit{"the database's encoding is " + encoding + ", not UTF8: create it with ENCODING 'UTF8'"}
	}
	return nil
}

// connect waits, for a bounded time, until the database answers.
func (e *postgresEngine) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := e.ping(ctx)
		if err == nil {
			return nil
		}
		if !e.passing(err) {
			return err
		}
		e.log.Warn("the database does not answer yet", "error", err)
		if !pause(ctx, wait) {
			return unavailable(err)
		}
	}
}

// pause waits and reports whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (e *postgresEngine) name() string             { return "postgres" }
func (e *postgresEngine) contains(c string) string { return "strpos(" + c + ", ?) > 0" }

// planned: of a statement that is kept PostgreSQL makes a plan for any value after
// some calls, if it thinks that cheaper. For one of two million lines that is rare
// it read all of them, from the newest on.
func (e *postgresEngine) planned(args []any) []any {
	return slices.Concat([]any{pgx.QueryExecModeCacheDescribe}, args)
}

// query numbers the placeholders. There is no "?" in a query of ours that is
// not one.
func (e *postgresEngine) query(q string) string {
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(q, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString("$" + strconv.Itoa(n))
		q = after
	}
}

// ddl has text compared byte by byte, as SQLite does, whatever the database's
// own language.
func (e *postgresEngine) ddl(q string) string {
	return strings.ReplaceAll(q, " TEXT ", ` TEXT COLLATE "C" `)
}

func (e *postgresEngine) reader(ctx context.Context) (*sql.Conn, *sql.TxOptions, error) {
	c, err := e.readers.Conn(ctx)
	return c, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}, err
}

// writer's transactions see what was committed before each statement: after
// the lock, that is everything.
func (e *postgresEngine) writer(ctx context.Context) (*sql.Conn, *sql.TxOptions, error) {
	c, err := e.writers.Conn(ctx)
	return c, &sql.TxOptions{Isolation: sql.LevelReadCommitted}, err
}

func (e *postgresEngine) begun(ctx context.Context, x *sql.Tx) error {
	_, err := x.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(updateLock))
	return err
}

func (e *postgresEngine) announce(ctx context.Context, x *sql.Tx) error {
	_, err := x.ExecContext(ctx, "SELECT pg_notify($1, $2)", channel, e.self)
	return err
}

func (e *postgresEngine) ping(ctx context.Context) error {
	var n int
	return e.readers.QueryRowContext(ctx, "SELECT 1").Scan(&n)
}

func (e *postgresEngine) committed() {}

// breaksOff: a server that is gone does not say so.
func (e *postgresEngine) breaksOff() bool { return true }

// passing: whatever is not the server's own answer is a lost connection, and
// some of its answers are about itself.
func (e *postgresEngine) passing(err error) bool {
	if _, wrong := errors.AsType[*unfit](err); wrong {
		return false
	}
	answer, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return !errors.Is(err, sql.ErrTxDone) && !errors.Is(err, sql.ErrNoRows)
	}
	switch answer.Code[:min(2, len(answer.Code))] {
	case "08", // the connection
		"40", // a conflict of transactions
		"53", // out of disk, memory, connections
		"57", // shut down, starting, cancelled
		"58": // its system
		return true
	}
	switch answer.Code {
	case "25006", // a standby: it became read-only
		"25P03", // idle in a transaction for too long
		"55P03": // a lock was not to be had
		return true
	}
	return false
}

// listen wakes this process at the commits of others, until ctx ends. It has a
// connection of its own. Whenever it was deaf it wakes once for what it missed.
func (e *postgresEngine) listen(ctx context.Context) {
	wait := time.Duration(0)
	for {
		heard, err := e.hear(ctx)
		if ctx.Err() != nil {
			return
		}
		if wait = min(max(2*wait, 100*time.Millisecond), backoffAtMost); heard {
			wait = 100 * time.Millisecond
		}
		e.log.Warn("commits of other replicas are not heard of for now", "error", err)
		// Full jitter: replicas do not come back in step.
		if !pause(ctx, time.Duration(mathrand.Int64N(int64(wait)))) {
			return
		}
	}
}

// hear listens on one connection until it breaks, and reports whether it was
// ever up.
func (e *postgresEngine) hear(ctx context.Context) (up bool, err error) {
	c, err := pgx.ConnectConfig(ctx, e.config.Copy())
	if err != nil {
		return false, err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		c.Close(end)
	}()
	if _, err := c.Exec(ctx, "LISTEN "+channel); err != nil {
		return false, err
	}
	e.wakers.wake()
	for {
		span, cancel := context.WithTimeout(ctx, attentionSpan)
		n, err := c.WaitForNotification(span)
		cancel()
		switch {
		case err == nil && n.Payload != e.self:
			e.wakers.wake()
		case err == nil:
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) && !c.IsClosed():
			span, cancel := context.WithTimeout(ctx, attentionSpan)
			err := c.Ping(span)
			cancel()
			if err != nil {
				return true, err
			}
		default:
			return true, err
		}
	}
}

func (e *postgresEngine) close() error {
	e.end()
	e.ended.Wait()
	return errors.Join(e.readers.Close(), e.writers.Close())
}
