package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
)

func newMigrate() *cobra.Command {
	var o origin
	var to string
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up to date, or move to another database",
		Long: `Brings the schema up to date and says which it is. The server does the same when it
starts; this is for doing it before.

With --to it copies everything into another database, which must be empty: from
SQLite to a PostgreSQL where one machine is outgrown, or back. Stop the server
first; the database that was copied is left as it is.`,
		Example: `  jitgate-control migrate
  jitgate-control migrate --to 'postgres://jitgate@db.example.com/jitgate?sslmode=verify-full'`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := o.load(c)
			if err != nil {
				return err
			}
			if to != "" {
				if err := checkDatabase(to); err != nil {
					return usage.Errorf("--to: %w", err)
				}
			}
			d, err := existing(s.data)
			if err != nil {
				return err
			}
			if !s.overNetwork() {
				if _, err := os.Stat(s.dsn(d)); err != nil {
					return fmt.Errorf("there is no database: start the server once, or name its settings with --config: %w", err)
				}
			}
			// A server that runs would go on writing where nobody looks any more.
			lock, err := d.lock()
			if err != nil {
				return err
			}
			defer lock.Close()
			log := hclog.New(&hclog.LoggerOptions{Name: "jitgate-control", Level: hclog.Info, Output: c.ErrOrStderr()})
			from, err := store.Open(c.Context(), s.dsn(d), log)
			if err != nil {
				return err
			}
			defer from.Close()
			n, err := store.Version(c.Context(), from)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "The schema is version %d.\n", n)
			if to == "" {
				return nil
			}
			target, err := store.Open(c.Context(), to, log)
			if err != nil {
				return err
			}
			defer target.Close()
			rows, err := copyStore(c.Context(), from, target)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Copied %d entries. Set database in the settings, or %s, and start the server.\n", rows, databaseVariable)
			return nil
		},
	}
	o.dataFlags(c)
	c.Flags().StringVar(&to, "to", "", "copy everything into this database")
	return c
}

// copyPage is how much is read at once.
const copyPage = 1000

// copyStore copies everything a store keeps into one that is empty, in one
// transaction: it is all there, or nothing. What rises in the order of
// commits is counted anew, in the same order. Answers to calls with an
// idempotency key, which are forgotten after a day, and sessions at the page
// stay behind.
func copyStore(ctx context.Context, from, to control.Store) (n int, err error) {
	err = from.View(ctx, func(r control.Tx) error {
		return to.Update(ctx, func(w control.Tx) error {
			if _, err := w.Meta(metaPin); err == nil {
				return errors.New("the database to copy to has a realm already: name an empty one")
			} else if !errors.Is(err, control.ErrNotFound) {
				return err
			}
			n = 0
			for _, part := range []func(r, w control.Tx) (int, error){copyAccess, copyPolicies, copyRequests, copyDocuments, copyMachines, copyActivity, copyMeta} {
				rows, err := part(r, w)
				if n += rows; err != nil {
					return err
				}
			}
			return nil
		})
	})
	return n, err
}

// each puts every value, and counts them.
func each[T any](values []T, err error, put func(T) error) (int, error) {
	for _, v := range values {
		if err == nil {
			err = put(v)
		}
	}
	return len(values), err
}

// sum adds up parts of a copy.
func sum(parts ...func() (int, error)) (n int, err error) {
	for _, part := range parts {
		rows, err := part()
		if n += rows; err != nil {
			return n, err
		}
	}
	return n, nil
}

func copyAccess(r, w control.Tx) (int, error) {
	return sum(
		func() (int, error) { v, err := r.Roles(); return each(v, err, w.PutRole) },
		func() (int, error) { v, err := r.Assignments(); return each(v, err, w.PutAssignment) },
		func() (int, error) { v, err := r.Tokens(); return each(v, err, w.PutToken) },
		func() (int, error) { v, err := r.Joins(); return each(v, err, w.PutJoin) },
		func() (int, error) { v, err := r.ScopeSettings(); return each(v, err, w.PutScopeSetting) },
	)
}

func copyPolicies(r, w control.Tx) (int, error) {
	return sum(
		func() (int, error) {
			v, err := r.Policies(control.PolicyFilter{}, "", 0)
			return each(v, err, w.PutPolicy)
		},
		func() (int, error) { v, err := r.PendingPolicies(); return each(v, err, w.PutPendingPolicy) },
	)
}

func copyRequests(r, w control.Tx) (n int, err error) {
	for after := ""; ; {
		page, err := r.Requests(control.RequestFilter{After: after, Limit: copyPage})
		rows, err := each(page, err, w.PutRequest)
		if n += rows; err != nil || rows == 0 {
			return n, err
		}
		after = page[rows-1].ID
	}
}

func copyDocuments(r, w control.Tx) (n int, err error) {
	for after := uint64(0); ; {
		page, err := r.DocumentsAfter(after, copyPage)
		rows, err := each(page, err, func(d control.Document) error { return w.PutDocument(d) })
		if n += rows; err != nil || rows == 0 {
			return n, err
		}
		after = page[rows-1].Seq
	}
}

func copyMachines(r, w control.Tx) (n int, err error) {
	for after := ""; ; {
		page, err := r.VMs(control.VMFilter{After: after, Limit: copyPage})
		rows, err := each(page, err, func(vm control.VM) error {
			events, err := copyEvents(r, w, vm)
			n += events
			return errors.Join(err, w.PutVM(vm))
		})
		if n += rows; err != nil || rows == 0 {
			return n, err
		}
		after = page[rows-1].ID.Key()
	}
}

// copyEvents copies what a machine's agent has reported: each of its records.
func copyEvents(r, w control.Tx, vm control.VM) (n int, err error) {
	if vm.Agent == nil {
		return 0, nil
	}
	for epoch := range vm.Agent.Epoch + 1 {
		record := control.Record{VM: vm.ID, Epoch: epoch}
		for after := uint64(0); ; {
			page, err := r.AgentEvents(record, after, copyPage)
			if n += len(page); err != nil {
				return n, err
			}
			if len(page) == 0 {
				break
			}
			if err := w.AppendAgentEvents(record, page); err != nil {
				return n, err
			}
			after = page[len(page)-1].Seq
		}
	}
	return n, nil
}

func copyActivity(r, w control.Tx) (n int, err error) {
	for after := uint64(0); ; {
		page, err := r.Activity(control.ActivityFilter{After: after, Limit: copyPage})
		if n += len(page); err != nil || len(page) == 0 {
			return n, err
		}
		after = page[len(page)-1].Seq
		if err := w.AppendActivity(slices.Clone(page)...); err != nil {
			return n, err
		}
	}
}

func copyMeta(r, w control.Tx) (int, error) {
	names, err := r.MetaNames()
	return each(names, err, func(name string) error {
		value, err := r.Meta(name)
		return errors.Join(err, w.PutMeta(name, value))
	})
}
