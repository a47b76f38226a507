package audit

import (
	"net/netip"
	"strconv"
	"time"
)

// ocsfVersion is the schema that OCSF is of.
const ocsfVersion = "1.2.0"

// Classes of OCSF.
const (
	authentication  = 3002
	userAccess      = 3005
	networkActivity = 4001
	configState     = 5019
	lifecycle       = 6002
)

// OCSF is an event of the Open Cybersecurity Schema Framework. What it has no
// place for is in RawData: the line of the record.
type OCSF struct {
	ClassUID     int           `json:"class_uid"`
	CategoryUID  int           `json:"category_uid"`
	ActivityID   int           `json:"activity_id"`
	ActivityName string        `json:"activity_name,omitempty"`
	TypeUID      int           `json:"type_uid"`
	Time         int64         `json:"time"` // milliseconds since 1970
	SeverityID   int           `json:"severity_id"`
	StatusID     int           `json:"status_id"`
	StatusCode   string        `json:"status_code,omitempty"`
	StatusDetail string        `json:"status_detail,omitempty"`
	Message      string        `json:"message,omitempty"`
	Count        uint64        `json:"count,omitzero"`
	StartTime    int64         `json:"start_time,omitzero"`
	EndTime      int64         `json:"end_time,omitzero"`
	Metadata     ocsfMetadata  `json:"metadata"`
	Device       *ocsfDevice   `json:"device,omitempty"`
	User         *ocsfUser     `json:"user,omitempty"`
	Actor        *ocsfActor    `json:"actor,omitempty"`
	Privileges   []string      `json:"privileges,omitempty"`
	Resource     *ocsfResource `json:"resource,omitempty"`
	Source       *ocsfEndpoint `json:"src_endpoint,omitempty"`
	Destination  *ocsfEndpoint `json:"dst_endpoint,omitempty"`
	Connection   *ocsfLink     `json:"connection_info,omitempty"`
	Traffic      *ocsfTraffic  `json:"traffic,omitempty"`
	App          *ocsfProduct  `json:"app,omitempty"`
	AuthProtocol string        `json:"auth_protocol,omitempty"`
	IsRemote     bool          `json:"is_remote,omitempty"`
	Service      *ocsfService  `json:"service,omitempty"`
	RawData      string        `json:"raw_data"`
}

type ocsfMetadata struct {
	Version     string      `json:"version"`
	Product     ocsfProduct `json:"product"`
	UID         string      `json:"uid"` // the line's digest
	Sequence    uint64      `json:"sequence"`
	EventCode   string      `json:"event_code"`
	Correlation string      `json:"correlation_uid,omitempty"` // the grant
	LogName     string      `json:"log_name"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

type ocsfDevice struct {
	TypeID   int    `json:"type_id"`
	Hostname string `json:"hostname"`
}

type ocsfUser struct {
	Name string `json:"name"`
}

type ocsfService struct {
	Name string `json:"name"`
}

type ocsfActor struct {
	User    *ocsfUser    `json:"user,omitempty"`
	Process *ocsfProcess `json:"process,omitempty"`
}

type ocsfProcess struct {
	Name string `json:"name,omitempty"`
	PID  int    `json:"pid"`
}

type ocsfResource struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

type ocsfEndpoint struct {
	IP       string `json:"ip,omitempty"`
	Name     string `json:"name,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	Port     uint16 `json:"port,omitempty"`
}

type ocsfLink struct {
	DirectionID int    `json:"direction_id"`
	Protocol    string `json:"protocol_name,omitempty"`
}

type ocsfTraffic struct {
	BytesIn    uint64 `json:"bytes_in"`
	BytesOut   uint64 `json:"bytes_out"`
	PacketsIn  uint64 `json:"packets_in"`
	PacketsOut uint64 `json:"packets_out"`
}

// mapping says which class and activity of OCSF an event is. What is not
// listed changes how the host is guarded: a configuration, logged.
var mapping = map[Name]struct {
	class, activity int
	name            string // of an activity that OCSF has no number for
	failed          bool
}{
	AgentStarted:   {lifecycle, 3, "", false},
	AgentStopped:   {lifecycle, 4, "", false},
	GrantOpening:   {userAccess, 99, "Intent", false},
	GrantOpened:    {userAccess, 1, "", false},
	GrantRefused:   {userAccess, 1, "", true},
	GrantExpired:   {userAccess, 2, "", false},
	GrantRevoked:   {userAccess, 2, "", false},
	GrantLogin:     {authentication, 1, "", false},
	GrantUsed:      {networkActivity, 6, "", false},
	ConnectionDeny: {networkActivity, 5, "", false},

	DocumentRefused: {configState, 1, "", true},
}

// ToOCSF maps a line of the record of a host.
func ToOCSF(host string, l Line) OCSF {
	m, ok := mapping[l.Name]
	if !ok {
		m.class, m.activity = configState, 1
	}
	o := OCSF{
		ClassUID: m.class, CategoryUID: m.class / 1000, ActivityID: m.activity, ActivityName: m.name, TypeUID: m.class*100 + m.activity,
		Time: l.Time.UnixMilli(), SeverityID: 1, StatusID: 1, StatusCode: l.Code, Message: l.Message,
		StartTime: milliseconds(l.First), EndTime: milliseconds(l.Last), Count: max(l.Count, l.Connections),
		Metadata: ocsfMetadata{Version: ocsfVersion, Product: ocsfProduct{"jitgate", "jitgate"}, UID: l.Hash, Sequence: l.Seq, EventCode: string(l.Name), Correlation: l.GrantID, LogName: "jitgate audit"},
		Device:   &ocsfDevice{TypeID: 1, Hostname: host}, // a server
		RawData:  string(l.Text),
	}
	if kinds[l.Name].priority == warning {
		o.SeverityID = 3
	}
	if m.failed {
		o.StatusID, o.StatusDetail = 2, l.Message
	}
	port := strconv.Itoa(int(l.Port))
	if l.Protocol != "" {
		port += "/" + l.Protocol
	}
	switch m.class {
	case authentication:
		o.User = &ocsfUser{orUnknown(l.Account)}
		o.AuthProtocol, o.IsRemote, o.Service = l.Method, true, &ocsfService{"sshd"}
		o.Source = endpoint(l.Source)
		o.Source.Port = l.SourcePort
		o.Destination = &ocsfEndpoint{Hostname: host, Port: l.Port}
		if l.Requestor != "" {
			o.Actor = &ocsfActor{User: &ocsfUser{l.Requestor}}
		}
	case userAccess:
		o.User = &ocsfUser{orUnknown(l.Requestor)}
		o.Privileges = []string{"access to port " + port}
		o.Resource = &ocsfResource{port, "port"}
		o.Source = endpoint(l.Source)
	case networkActivity:
		o.Source = endpoint(l.Source)
		o.Destination = &ocsfEndpoint{Hostname: host, Port: l.Port}
		o.Connection = &ocsfLink{1, l.Protocol} // inbound
		if l.Name == GrantUsed {
			o.Traffic = &ocsfTraffic{l.BytesIn, l.BytesOut, l.PacketsIn, l.PacketsOut}
		}
		if l.Requestor != "" {
			o.Actor = &ocsfActor{User: &ocsfUser{l.Requestor}}
		}
	case lifecycle:
		o.App = &ocsfProduct{"jitgate agent", "jitgate"}
	case configState:
		if l.Requestor != "" || l.PID > 0 {
			o.Actor = &ocsfActor{}
		}
		if l.Requestor != "" {
			o.Actor.User = &ocsfUser{l.Requestor}
		}
		if l.PID > 0 {
			o.Actor.Process = &ocsfProcess{l.Process, l.PID}
		}
	}
	return o
}

func milliseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// endpoint is a source: one address, or what the record says of several.
func endpoint(source string) *ocsfEndpoint {
	if p, err := netip.ParsePrefix(source); err == nil && p.IsSingleIP() {
		return &ocsfEndpoint{IP: p.Addr().String()}
	}
	if a, err := netip.ParseAddr(source); err == nil {
		return &ocsfEndpoint{IP: a.String()}
	}
	return &ocsfEndpoint{Name: orUnknown(source)}
}
