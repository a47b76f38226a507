package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/mgr"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
)

// newAgentSetup is what the installer runs once the program and the services
// are there.
func newAgentSetup() *cobra.Command {
	var given installed
	c := &cobra.Command{
		Use:   "setup",
		Short: "Prepare this host: directories, settings and services",
		Long: `Makes the directories with the access lists they need, writes the settings if
there are none, and has the services restart after a failure. The installer runs
it. What is there stays: of settings only what is given here, and was not given
at an earlier time, is changed. The same command again does no harm.`,
		Example: "  jitgate agent setup --host-id win1 --control-url https://control.example.net",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if !agent.Administers() {
				return errNotElevated
			}
			if err := agent.SettleDirs(); err != nil {
				return err
			}
			if err := given.settle(c); err != nil {
				return err
			}
			return configureServices()
		},
	}
	c.Flags().StringVar(&given.hostID, "host-id", "", "as documents name this host; empty: as before, at first auto")
	c.Flags().StringVar(&given.controlURL, "control-url", "", "the control plane: https://NAME[:PORT]")
	c.Flags().StringVar(&given.trustPin, "trust-pin", "", "digest of the realm's first trust document")
	c.Flags().StringVar(&given.realm, "realm", "", "the realm's name, for whoever lists installations")
	return c
}

// settle brings the settings to what was given, and remembers it.
func (i installed) settle(c *cobra.Command) error {
	was, err := remembered()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(agent.DefaultConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next, err := i.settings(string(text), was)
	if err != nil {
		return err
	}
	if next != string(text) {
		if err := writeOutput(c, agent.DefaultConfig, []byte(next), 0o644); err != nil {
			return err
		}
	}
	return i.over(was).remember()
}

// values are the names in the registry of what an installation was given: the
// installer finds them there the next time.
func (i *installed) values() map[string]*string {
	return map[string]*string{"HostID": &i.hostID, "ControlURL": &i.controlURL, "TrustPin": &i.trustPin, "Realm": &i.realm}
}

// remembered is what an earlier installation was given.
func remembered() (was installed, err error) {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, agent.RegistryKey, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if errors.Is(err, fs.ErrNotExist) {
		return installed{}, nil
	}
	if err != nil {
		return installed{}, fmt.Errorf("registry key %s: %w", agent.RegistryKey, err)
	}
	defer k.Close()
	for name, value := range was.values() {
		if *value, _, err = k.GetStringValue(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return installed{}, fmt.Errorf("registry value %s\\%s: %w", agent.RegistryKey, name, err)
		}
	}
	return was, nil
}

func (i installed) remember() error {
	k, _, err := registry.CreateKey(registry.LOCAL_MACHINE, agent.RegistryKey, registry.SET_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return fmt.Errorf("registry key %s: %w", agent.RegistryKey, err)
	}
	defer k.Close()
	for name, value := range i.values() {
		if err := k.SetStringValue(name, *value); err != nil {
			return fmt.Errorf("registry value %s\\%s: %w", agent.RegistryKey, name, err)
		}
	}
	return nil
}

// configureServices has both services restart a second after a failure, and
// gives the fetcher a name of its own in access lists. The rest is the
// installer's.
func configureServices() error {
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	defer m.Disconnect()
	for _, name := range []string{agentService, fetchService} {
		if err := configureService(m, name); err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
	}
	return nil
}

func configureService(m *mgr.Mgr, name string) error {
	s, err := m.OpenService(name)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return nil // the program is from an archive
	}
	if err != nil {
		return err
	}
	defer s.Close()
	again := []mgr.RecoveryAction{{Type: mgr.ServiceRestart, Delay: time.Second}}
	if err := s.SetRecoveryActions(again, uint32((24*time.Hour)/time.Second)); err != nil && !notKnown(err) {
		return fmt.Errorf("recovery actions: %w", err)
	}
	// An end with an error counts as a failure, not only a crash.
	if err := s.SetRecoveryActionsOnNonCrashFailures(true); err != nil && !notKnown(err) {
		return fmt.Errorf("recovery actions: %w", err)
	}
	if name == fetchService {
		kind := uint32(windows.SERVICE_SID_TYPE_UNRESTRICTED)
		err := windows.ChangeServiceConfig2(s.Handle, windows.SERVICE_CONFIG_SERVICE_SID_INFO, (*byte)(unsafe.Pointer(&kind)))
		if err != nil && !notKnown(err) {
			return fmt.Errorf("name in access lists: %w", err)
		}
	}
	return nil
}

// notKnown reports whether a service manager lacks a setting, as Wine's does.
func notKnown(err error) bool {
	return errors.Is(err, windows.ERROR_INVALID_LEVEL) || errors.Is(err, errors.ErrUnsupported)
}

// newAgentRemove is what the installer runs before the program goes.
func newAgentRemove() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "remove",
		Short: "Take the guard and everything of jitgate off this host",
		Long: `Takes the guard away, so that nobody is locked out who has no agent to let him
in, and removes settings, documents, identity and record. The installer runs it
when the program is removed, and not when it is replaced. It fails, and removes
nothing, while the guard cannot be taken away.`,
		Example: "  jitgate agent remove --keep-data",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if !agent.Administers() {
				return errNotElevated
			}
			if err := unguard(c.Context()); err != nil {
				return err
			}
			if keep {
				return nil
			}
			return agent.RemoveAll()
		},
	}
	c.Flags().BoolVar(&keep, "keep-data", false, "leave settings, documents, identity and record")
	return c
}

// unguard takes the guard away. A system that has nothing to guard with has no
// guard.
func unguard(ctx context.Context) error {
	backend, err := agent.OpenBackend(func(error) {})
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the guard is not removed, nor anything else: %w", err)
	}
	return errors.Join(backend.Remove(ctx), backend.Close())
}
