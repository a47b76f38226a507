package doctor

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// Gather reads what the kernel and /proc say of this host and of the network
// namespace of the calling thread, and who may write the settings file. It
// changes nothing; what it tries out, it tries in a network namespace that it
// makes for that and that is gone when it returns. Host, Mode, Guarded, Agent
// and what the settings say are the caller's to fill in.
func Gather(settings string) Facts {
	f := Facts{Root: os.Geteuid() == 0, Now: time.Now(), Kernel: kernelRelease(), Settings: Settings{Path: settings, Writable: writable(settings)}}
	note := func(what string, err error) {
		if err != nil {
			f.Unread = append(f.Unread, fmt.Sprintf("%s: %v", what, err))
		}
	}
	var err error
	f.Tables, f.Flowtables, err = readTables()
	f.TablesRead = err == nil
	note("nf_tables", err)
	f.Legacy, err = legacyTables()
	note("iptables-legacy", err)
	f.Listeners, err = listeners()
	note("listeners", err)
	f.Addresses, err = addresses()
	note("addresses", err)
	f.Programs, err = programs()
	note("XDP programs", err)
	f.LocalPorts, err = localPorts()
	note("ip_local_port_range", err)
	f.RouteLocalnet, err = routeLocalnet()
	note("route_localnet", err)
	f.Saved, err = savedRulesets("/etc/nftables.conf", "/etc/nftables.d", "/etc/nftables", "/etc/sysconfig/nftables.conf")
	note("saved rulesets", err)
	f.Clock, err = clock()
	note("the clock's state", err)
	f.Features, err = probe()
	note("features of the kernel", err)
	return f
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// writable names the settings file, or a directory on the way to it, if others
// than root and the caller may write it: the agent takes no such settings. In
// a sticky directory of root nobody exchanges what is not his.
func writable(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	for {
		info, err := os.Stat(path)
		if err == nil { // that it is missing is said elsewhere
			stat, ok := info.Sys().(*syscall.Stat_t)
			sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0
			if info.Mode().Perm()&0o022 != 0 && !sticky || ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
				return path
			}
		}
		above := filepath.Dir(path)
		if above == path {
			return ""
		}
		path = above
	}
}

// savedRulesets names the files below paths, where nftables.service finds its
// rules, that hold the guard's table.
func savedRulesets(paths ...string) (found []string, err error) {
	for _, path := range paths {
		err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(name)
			if savedTable.Match(text) {
				found = append(found, name)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return found, err
		}
	}
	return found, nil
}

// savedTable is how a saved ruleset begins our table.
var savedTable = regexp.MustCompile(`(?m)^\s*table\s+inet\s+` + ourTable + `\b`)

// network is the calling thread's network namespace in /proc: a probe leaves
// other threads elsewhere.
const network = "/proc/thread-self/net/"

func legacyTables() ([]Legacy, error) {
	var out []Legacy
	for _, l := range []Legacy{{"ip", "ip_tables_names"}, {"ip6", "ip6_tables_names"}} {
		text, err := os.ReadFile(network + l.Table)
		if errors.Is(err, fs.ErrNotExist) {
			continue // not in this kernel
		}
		if err != nil {
			return out, err
		}
		for _, name := range strings.Fields(string(text)) {
			out = append(out, Legacy{l.Family, name})
		}
	}
	return out, nil
}

// States of sockets in /proc/net.
const (
	tcpListen = "0A"
	udpOpen   = "07" // takes packets from anybody
)

func listeners() ([]Listener, error) {
	var out []Listener
	inodes := map[string][]int{} // indices into out
	for _, k := range []struct {
		file     string
		protocol firewall.Protocol
		state    string
	}{{"tcp", firewall.TCP, tcpListen}, {"tcp6", firewall.TCP, tcpListen}, {"udp", firewall.UDP, udpOpen}, {"udp6", firewall.UDP, udpOpen}} {
		text, err := os.ReadFile(network + k.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return out, err
		}
		for line := range bytes.Lines(text) {
			fields := strings.Fields(string(line))
			if len(fields) < 10 || fields[3] != k.state {
				continue
			}
			address, err := socketAddress(fields[1])
			if err != nil {
				return out, fmt.Errorf("%s: %w", k.file, err)
			}
			inodes[fields[9]] = append(inodes[fields[9]], len(out))
			out = append(out, Listener{Protocol: k.protocol, Address: address.Addr().Unmap(), Port: address.Port()})
		}
	}
	processes(inodes, func(i, pid int, name string) { out[i].PID, out[i].Process = pid, name })
	return out, nil
}

// socketAddress reads an address of /proc/net: words of four bytes in the
// machine's order.
func socketAddress(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || err2 != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", s)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	address, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(address, uint16(n)), nil
}

// processes finds who holds sockets. Those of other users stay unnamed
// without root; a process that ends meanwhile is nobody.
func processes(inodes map[string][]int, found func(i, pid int, name string)) {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is well formed
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(strings.TrimSuffix(target, "]"), "socket:[")
		if !ok || inodes[inode] == nil {
			continue
		}
		process := strings.Split(link, "/")[2]
		pid, err := strconv.Atoi(process)
		name, err2 := os.ReadFile("/proc/" + process + "/comm")
		if err != nil || err2 != nil {
			continue
		}
		for _, i := range inodes[inode] {
			found(i, pid, strings.TrimSuffix(string(name), "\n"))
		}
	}
}

func addresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out, err
}

// programs lists the XDP programs of the devices.
func programs() ([]Program, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, unix.SizeofIfInfomsg),
	})
	if err != nil {
		return nil, err
	}
	var out []Program
	for _, m := range messages {
		if len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		link := parse(m.Data[unix.SizeofIfInfomsg:])
		xdp := parse(link[unix.IFLA_XDP])
		if attached := xdp[unix.IFLA_XDP_ATTACHED]; len(attached) == 1 && attached[0] != 0 {
			id, _ := native(xdp[unix.IFLA_XDP_PROG_ID])
			out = append(out, Program{Device: link.text(unix.IFLA_IFNAME), ID: id})
		}
	}
	return out, nil
}

func localPorts() (r Range, err error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(text), &r.First, &r.Last)
	}
	return r, err
}

// routeLocalnet lists the devices that let packets to 127.0.0.0/8 in.
func routeLocalnet() ([]string, error) {
	const dir = "/proc/sys/net/ipv4/conf/"
	devices, err := os.ReadDir(dir)
	var out []string
	for _, d := range devices {
		// default only says how new devices begin.
		text, err := os.ReadFile(dir + d.Name() + "/route_localnet")
		if err == nil && strings.TrimSpace(string(text)) == "1" && d.Name() != "default" && d.Name() != "lo" {
			out = append(out, d.Name())
		}
	}
	slices.Sort(out)
	return out, err
}

func clock() (Clock, error) {
	var t unix.Timex // mode 0: only asks
	if _, err := unix.Adjtimex(&t); err != nil {
		return Clock{}, err
	}
	return Clock{Known: true, Synchronised: t.Status&unix.STA_UNSYNC == 0}, nil
}
