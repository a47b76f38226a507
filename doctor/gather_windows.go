package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
)

// Gather reads what Windows says of this host and of its firewall. It changes
// nothing. Host, Mode, Guarded, Agent and what the settings say are the
// caller's to fill in.
func Gather(settings string) Facts {
	v := windows.RtlGetVersion()
	f := Facts{Root: windows.GetCurrentProcessToken().IsElevated(), Now: time.Now(), Settings: Settings{Path: settings}, Windows: &Windows{},
		Kernel: fmt.Sprintf("Windows %d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber)}
	note := func(what string, err error) {
		if err != nil {
			f.Unread = append(f.Unread, fmt.Sprintf("%s: %v", what, err))
		}
	}
	if err := winfw.Probe(); err != nil {
		f.Windows.NoPlatform = err.Error()
	}
	var err error
	if f.Windows.Policy, err = winfw.ReadPolicy(); err != nil {
		f.Windows.NoPolicy = err.Error()
	}
	f.Addresses, err = addresses()
	note("addresses", err)
	f.Listeners, err = listeners()
	note("listeners", err)
	f.Windows.Proxies, err = portProxies()
	note("port proxies", err)
	return f
}

func listeners() (out []Listener, err error) {
	list, err := winfw.Sockets()
	for _, s := range list {
		if s.State == winfw.Listening || s.Protocol == firewall.UDP {
			out = append(out, Listener{Protocol: s.Protocol, Address: s.Local.Addr(), Port: s.Local.Port(), Process: program(s.PID), PID: int(s.PID)})
		}
	}
	return out, err
}

// program is the name of a process's program, as on other platforms; empty
// where it cannot be seen.
func program(pid uint32) string {
	if pid == 4 {
		return "System"
	}
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return ""
	}
	defer windows.CloseHandle(h)
	var path [windows.MAX_LONG_PATH]uint16
	n := uint32(len(path))
	if windows.QueryFullProcessImageName(h, 0, &path[0], &n) != nil {
		return ""
	}
	return strings.TrimSuffix(filepath.Base(windows.UTF16ToString(path[:n])), ".exe")
}

func addresses() (out []netip.Addr, err error) {
	list, err := net.InterfaceAddrs()
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, err
}

// portProxies reads what netsh interface portproxy keeps.
func portProxies() (out []PortProxy, err error) {
	for _, family := range []string{"v4tov4", "v4tov6", "v6tov4", "v6tov6"} {
		k, openErr := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\PortProxy\`+family+`\tcp`, registry.QUERY_VALUE)
		if errors.Is(openErr, registry.ErrNotExist) {
			continue
		}
		if openErr != nil {
			return out, openErr
		}
		names, readErr := k.ReadValueNames(0)
		for _, name := range names {
			data, _, valueErr := k.GetStringValue(name)
			if p, ok := parseProxy(name, data); ok && valueErr == nil {
				out = append(out, p)
			}
		}
		err = errors.Join(err, readErr, k.Close())
	}
	return out, err
}
