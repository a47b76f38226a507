package audit

// Events that only the journal has: they are about the record, and no line of
// it.
const (
	auditHead   Name = "audit.head"   // where the record ends
	auditMissed Name = "audit.missed" // the journal did not take entries in time
)

// Priorities of the journal, as of syslog.
const (
	warning = 4
	notice  = 5
	info    = 6
)

// kind is what a system's log knows a kind of event by. Both ids are fixed for
// ever.
type kind struct {
	id       string // MESSAGE_ID of the journal, explained in packaging/journal/jitgate.catalog
	priority int
	event    uint32 // the id in Windows's event log, listed in docs/windows.md
}

// FirstEventID to LastEventID are the ids of the event log that are jitgate's.
const (
	FirstEventID = 1000
	LastEventID  = 1099
	// TextEventID is text for operators, which is no event of the record.
	TextEventID = LastEventID
)

// kinds has every event a host records.
var kinds = map[Name]kind{
	AgentStarted:    {"893994437e18eae4530c5986c422573a", notice, 1000},
	AgentReloaded:   {"dff8ce58c9e14dccb39b1dca8bd9d7b2", notice, 1001},
	AgentStopped:    {"5f16c6e845257e26187f215a2f55c74b", notice, 1002},
	InstallCreated:  {"013ddb2e5a72c89687bda4e0452f87e5", notice, 1003},
	InstallRenewed:  {"1a993222514cbacd2a78f0a9f5be9b38", warning, 1004},
	GuardArmed:      {"5a159c141afab6d6ae7d51f8b55d19c1", notice, 1005},
	GuardConfirmed:  {"252d7814f78d5dbbdbbdf57ca97a8f2a", notice, 1006},
	GuardReverted:   {"66705e7a4c5b646817625b917f2ca426", warning, 1007},
	GuardDisarmed:   {"e21b970a2397b17496dbde6ba96ce2c9", warning, 1008},
	GuardLockdown:   {"fffade52336ca9b52e99647632fe9ac7", warning, 1009},
	GuardDrift:      {"ef8bfe3a4775b5b7c421d643ea27ecf1", warning, 1010},
	GuardRepaired:   {"b495fbfd6a1a3ef2c388d394cbee55c6", notice, 1011},
	DocumentDeliver: {"c60805d89f0022d46c1297f4cad88a74", notice, 1012},
	DocumentAdmit:   {"0245b750d4329510f03764fa6a776bbb", info, 1013},
	DocumentRefused: {"b2f6d5ab196d288c09d6827aa2eeefb0", warning, 1014},
	GrantOpening:    {"2bb18d323d9fdde2f7cb54977f572497", info, 1015},
	GrantOpened:     {"5a28bb93b11cb8f6a7298cb1f4fa2b3a", notice, 1016},
	GrantRefused:    {"a6523b388459812955a4926c4ce80bdf", warning, 1017},
	GrantExpired:    {"a2731425bca65a733dae14d7846ff140", notice, 1018},
	GrantRevoked:    {"17ada32721dc393e5167fcf741724dbd", notice, 1019},
	GrantUsed:       {"eb780169ac9d4aa6f1d3e8e6a41bcb2b", notice, 1020},
	ConnectionDeny:  {"8c62d4e5801021584aef19813bcf36f0", notice, 1021},
	AuditPruned:     {"606e348e2c6716d10c8d1d9cd00c222f", notice, 1022},
	auditHead:       {"521c6c30811b312e21748aeca32033a6", info, 1023},
	auditMissed:     {"e777512bbf671edd12fc12e436ce6aea", warning, 1024},
	GrantLogin:      {"d38e114ef9d24d159a935515973c97d0", notice, 1025},
}
