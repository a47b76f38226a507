package store

import (
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// --- policies ---

func (t *tx) Policy(id control.PolicyID) (control.Policy, error) {
	list, err := t.policies("SELECT doc FROM policy WHERE id = ?", id.Key())
	if err == nil && len(list) == 0 {
		err = control.ErrNotFound
	}
	if err != nil {
		return control.Policy{}, err
	}
	return list[0], nil
}

// policies are those of a query whose one column is doc.
func (t *tx) policies(query string, args ...any) ([]control.Policy, error) {
	return documentsOf(t, t.store.policies.decode, query, args...)
}

func (t *tx) Policies(f control.PolicyFilter, after string, limit int) ([]control.Policy, error) {
	query, args := policyQuery(f, after, limit)
	return t.policies(query, args...)
}

// policyQuery is the query of a filter. A subscription and a group are a range of
// ids, which is in their order.
func policyQuery(f control.PolicyFilter, after string, limit int) (string, []any) {
	var q selection
	switch {
	case f.Subscription != "" && f.Group != "":
		q.within("id", control.GroupScope(f.Subscription, f.Group))
	case f.Subscription != "":
		q.within("id", control.SubscriptionScope(f.Subscription))
	case f.Group != "":
		q.and("grp = ?", fold(f.Group))
	}
	if f.Location != "" {
		q.and("location = ?", fold(f.Location))
	}
	if after != "" {
		q.and("id > ?", fold(after))
	}
	if f.Reader != nil {
		var any selection
		any.and("1 = 0")
		for _, s := range f.Reader {
			var policy, vm selection
			policy.below("id", s)
			vm.and("policy_vm.policy = policy.id")
			vm.below("policy_vm.vm", s)
			if s == control.Everywhere {
				policy.and("1 = 1")
			}
			any.and("("+strings.Join(policy.where, " AND ")+") OR EXISTS (SELECT 1 FROM policy_vm"+vm.conditions()+")", append(policy.args, vm.args...)...)
		}
		q.and("("+strings.Join(any.where, " OR ")+")", any.args...)
	}
	return q.text("policy", "id", limit), q.args
}

func (t *tx) PoliciesOf(vms ...control.VMID) ([]control.Policy, error) {
	naming := map[string]control.Policy{}
	for some := range chunked(vms) {
		found, err := t.policies("SELECT doc FROM policy WHERE id IN (SELECT policy FROM policy_vm WHERE vm IN ("+tuples(len(some), "?")+"))", some...)
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			naming[p.ID.Key()] = p
		}
	}
	var list []control.Policy
	for _, id := range slices.Sorted(maps.Keys(naming)) {
		list = append(list, naming[id])
	}
	return list, nil
}

func (t *tx) PutPolicy(p control.Policy) error {
	id := p.ID.Key()
	err := t.put(`INSERT INTO policy (id, sub, grp, location, doc) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET doc = excluded.doc`,
		p, id, fold(p.ID.Subscription), fold(p.ID.Group), fold(p.ID.Location))
	if err != nil {
		return err
	}
	was, err := t.namedBy(id)
	if err != nil {
		return err
	}
	is := map[string]bool{}
	for _, vm := range p.VMs {
		is[vm.ID.Key()] = true
	}
	var changed []string
	for _, vm := range was {
		if is[vm] {
			delete(is, vm)
			continue
		}
		if _, err := t.exec("DELETE FROM policy_vm WHERE vm = ? AND policy = ?", vm, id); err != nil {
			return err
		}
		changed = append(changed, vm)
	}
	for some := range slices.Chunk(slices.Sorted(maps.Keys(is)), chunk) {
		var args []any
		for _, vm := range some {
			args = append(args, vm, id)
		}
		if _, err := t.exec("INSERT INTO policy_vm (vm, policy) VALUES "+tuples(len(some), "(?, ?)"), args...); err != nil {
			return err
		}
		changed = append(changed, some...)
	}
	return t.sort(changed...)
}

// namedBy are the machines that a policy names.
func (t *tx) namedBy(policy string) (vms []string, err error) {
	err = t.read(func(rows *sql.Rows) error {
		var vm string
		err := rows.Scan(&vm)
		vms = append(vms, vm)
		return err
	}, "SELECT vm FROM policy_vm WHERE policy = ?", policy)
	return vms, err
}

func (t *tx) DeletePolicy(id control.PolicyID) error {
	was, err := t.namedBy(id.Key())
	if err != nil {
		return err
	}
	if err := t.drop("DELETE FROM policy WHERE id = ?", id.Key()); err != nil {
		return err
	}
	return t.sort(was...)
}

// drop deletes what has to be there.
func (t *tx) drop(query string, args ...any) error {
	n, err := t.exec(query, args...)
	if err == nil && n == 0 {
		err = control.ErrNotFound
	}
	return err
}

// --- requests ---

func (t *tx) Request(id string) (control.Request, error) {
	list, err := t.requestsOf("SELECT doc FROM request WHERE id = ?", fold(id))
	if err == nil && len(list) == 0 {
		err = control.ErrNotFound
	}
	if err != nil {
		return control.Request{}, err
	}
	return list[0], nil
}

// requestsOf are those of a query whose one column is doc. An Update keeps
// their documents.
func (t *tx) requestsOf(query string, args ...any) ([]control.Request, error) {
	return documentsOf(t, func(doc string) (control.Request, error) {
		r, err := t.store.requests.decode(doc)
		if err == nil && !t.readOnly {
			t.kept(r, doc)
		}
		return r, err
	}, query, args...)
}

func (t *tx) kept(r control.Request, doc string) {
	if t.requests == nil {
		t.requests = map[string]string{}
	}
	t.requests[fold(r.ID)] = doc
}

func (t *tx) Requests(f control.RequestFilter) (list []control.Request, err error) {
	if f.Reader == nil {
		query, args := requests(f, nil)
		return t.requestsOf(query, args...)
	}
	byID := func(a, b control.Request) int {
		if f.Newest {
			a, b = b, a
		}
		return strings.Compare(fold(a.ID), fold(b.ID))
	}
	// A statement has no more parts than engines let it have. What each of
	// several finds has the page in it.
	for some := range slices.Chunk(streams(f.Reader), chunk/5) {
		query, args := requests(f, some)
		found, err := t.requestsOf(query, args...)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
		slices.SortFunc(list, byID)
		list = slices.CompactFunc(list, func(a, b control.Request) bool { return byID(a, b) == 0 })
		if f.Limit > 0 {
			list = list[:min(len(list), f.Limit)]
		}
	}
	return list, nil
}

// stream is where requests are found in the order of their ids: the table that
// stands beside r, and what is asked of it.
type stream struct {
	table, where string
	arg          string
}

// ofScope is the stream of a scope.
func ofScope(s control.Scope, machine bool) stream {
	scope := fold(string(s))
	if depth := strings.Count(scope, "/"); depth != subscriptionDepth && depth != groupDepth {
		return stream{"request_vm", "s.vm = ?", scope}
	}
	if machine {
		return stream{"request_place", "s.machine = 1 AND s.scope = ?", scope}
	}
	return stream{"request_place", "s.scope = ?", scope}
}

// streams are where everything is that a reader may read.
func streams(reader *control.RequestReader) []stream {
	all := []stream{{"", "r.principal = ?", reader.Principal}}
	for _, s := range reader.Scopes {
		all = append(all, ofScope(s, false))
	}
	return all
}

// requests is the query of a filter, of what is in any of the streams, or of
// everything.
func requests(f control.RequestFilter, from []stream) (string, []any) {
	var q selection
	if f.Policy != nil {
		q.and("r.policy = ?", f.Policy.Key())
	}
	if f.Principal != "" {
		q.and("r.principal = ?", f.Principal)
	}
	if f.Open {
		q.and("r.open = 1")
	}
	if !f.Since.IsZero() {
		q.and("r.created >= ?", nanos(f.Since))
	}
	if f.Status != "" {
		q.and("r.id IN (SELECT request FROM request_status WHERE status = ?)", string(f.Status))
	}
	if f.VM != nil { // its own index has what else is known of the request
		var vms selection
		vms.and("vm = ?", f.VM.Key())
		if f.Open {
			vms.and("open = 1")
		}
		if !f.Since.IsZero() {
			vms.and("created >= ?", nanos(f.Since))
		}
		q.and("r.id IN (SELECT request FROM request_vm"+vms.conditions()+")", vms.args...)
	}
	if s := f.Scope; s != "" && s != control.Everywhere {
		switch in := ofScope(s, true); {
		case len(from) == 0 && f.VM == nil:
			from = []stream{in}
		default:
			// Counted, so that PostgreSQL asks of each and does not join them all.
			q.and("(SELECT count(*) FROM "+in.table+" s WHERE s.request = r.id AND "+in.where+") > 0", in.arg)
		}
	}
	order := "id"
	if f.Newest {
		order = "id DESC"
	}
	if f.After != "" && f.Newest {
		q.and("r.id < ?", fold(f.After))
	} else if f.After != "" {
		q.and("r.id > ?", fold(f.After))
	}
	if len(from) == 0 {
		return "SELECT r.doc FROM request r" + q.conditions() + " ORDER BY r." + order + limited(f.Limit), q.args
	}
	var parts []string
	var args []any
	for n, in := range from {
		part, id := q, "r.id"
		table := "request r"
		if in.table != "" {
			table, id = in.table+" s JOIN request r ON r.id = s.request", "s.request"
		}
		part.where, part.args = append([]string{in.where}, q.where...), append([]any{in.arg}, q.args...)
		by := strings.Replace(order, "id", id, 1)
		parts = append(parts, fmt.Sprintf("SELECT id FROM (SELECT %s AS id FROM %s%s ORDER BY %s%s) AS s%d", id, table, part.conditions(), by, limited(f.Limit), n))
		args = append(args, part.args...)
	}
	return "SELECT doc FROM request WHERE id IN (" + strings.Join(parts, " UNION ") + ") ORDER BY " + order + limited(f.Limit), args
}

func (t *tx) RequestsOf(since time.Time, vms ...control.VMID) ([]control.Request, error) {
	of := map[string]control.Request{}
	for some := range chunked(vms) {
		in := tuples(len(some), "?")
		args := slices.Concat(some, []any{nanos(since)}, some)
		found, err := t.requestsOf(`SELECT doc FROM request WHERE id IN (
			SELECT request FROM request_vm WHERE vm IN (`+in+`) AND created >= ? UNION SELECT request FROM request_vm WHERE vm IN (`+in+`) AND open = 1)`, args...)
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			of[fold(r.ID)] = r
		}
	}
	var list []control.Request
	for _, id := range slices.Sorted(maps.Keys(of)) {
		list = append(list, of[id])
	}
	return list, nil
}

// PutRequest writes of the rows beside a request those that are other than
// before, which most changes are not.
func (t *tx) PutRequest(r control.Request) error {
	id := fold(r.ID)
	doc, err := encode(r)
	if err != nil {
		t.failed = errors.Join(t.failed, err)
		return err
	}
	columns := []any{r.Policy.Key(), r.Principal, nanos(r.Start), flag(r.Open()), doc}
	before, there := t.requests[id]
	if !there {
		n, err := t.exec("INSERT INTO request (policy, principal, created, open, doc, id) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING", append(columns, id)...)
		if err != nil {
			return err
		}
		if n == 0 {
			if _, err := t.Request(id); err != nil {
				return err
			}
			before, there = t.requests[id]
		}
	}
	var was control.Request
	if there {
		if was, err = t.store.requests.decode(before); err != nil {
			t.failed = errors.Join(t.failed, err)
			return err
		}
		if _, err := t.exec("UPDATE request SET policy = ?, principal = ?, created = ?, open = ?, doc = ? WHERE id = ?", append(columns, id)...); err != nil {
			return err
		}
	}
	t.kept(r, string(doc))
	is := besideOf(r)
	for n, beside := range besideOf(was) {
		if err := t.putBeside(id, beside, is[n]); err != nil {
			return err
		}
	}
	return nil
}

// beside are the rows of a request in a table beside it. Their first column is
// the table's key, together with the request.
type beside struct {
	table, key, columns string
	rows                [][]any
}

// putBeside puts the rows is in the place of was.
func (t *tx) putBeside(id string, was, is beside) error {
	without := func(list, others [][]any) [][]any {
		by := map[any][]any{}
		for _, row := range others {
			by[row[0]] = row
		}
		return slices.DeleteFunc(slices.Clone(list), func(row []any) bool { return slices.Equal(by[row[0]], row) })
	}
	for some := range slices.Chunk(without(was.rows, is.rows), chunk) {
		args := []any{id}
		for _, row := range some {
			args = append(args, row[0])
		}
		if _, err := t.exec("DELETE FROM "+is.table+" WHERE request = ? AND "+is.key+" IN ("+tuples(len(some), "?")+")", args...); err != nil {
			return err
		}
	}
	for some := range slices.Chunk(without(is.rows, was.rows), chunk) {
		tuple := "(" + tuples(len(some[0]), "?") + ")"
		if _, err := t.exec("INSERT INTO "+is.table+" ("+is.columns+") VALUES "+tuples(len(some), tuple), slices.Concat(some...)...); err != nil {
			return err
		}
	}
	return nil
}

// besideOf are the rows beside a request: its machines, the subscriptions and
// groups that these or its policy are in, and the statuses of its ports. Those of
// the zero Request are none.
func besideOf(r control.Request) [3]beside {
	vms := beside{"request_vm", "vm", "vm, request, created, open", nil}
	places := beside{"request_place", "scope", "scope, request, machine", nil}
	statuses := beside{"request_status", "status", "status, request", nil}
	if r.ID == "" {
		return [3]beside{vms, places, statuses}
	}
	id, created, open := fold(r.ID), nanos(r.Start), flag(r.Open())
	machine := map[string]bool{} // by scope: one of its machines is there
	add := func(key string, is bool) {
		for _, depth := range []int{subscriptionDepth, groupDepth} {
			scope := ancestor(key, depth)
			machine[scope] = machine[scope] || is
		}
	}
	add(r.Policy.Key(), false)
	keys, had := map[string]bool{}, map[control.Status]bool{}
	for _, vm := range r.VMs {
		key := vm.ID.Key()
		add(key, true)
		keys[key] = true
		for _, p := range vm.Ports {
			had[p.Status] = true
		}
	}
	for _, scope := range slices.Sorted(maps.Keys(machine)) {
		places.rows = append(places.rows, []any{scope, id, flag(machine[scope])})
	}
	for _, vm := range slices.Sorted(maps.Keys(keys)) {
		vms.rows = append(vms.rows, []any{vm, id, created, open})
	}
	for _, status := range slices.Sorted(maps.Keys(had)) {
		statuses.rows = append(statuses.rows, []any{string(status), id})
	}
	return [3]beside{vms, places, statuses}
}

// --- documents ---

func (t *tx) Document(vm string, kind policy.Type) (control.Document, error) {
	return one[control.Document](t, "SELECT doc FROM document WHERE vm = ? AND type = ?", fold(vm), string(kind))
}

// DocumentsNewer asks for versions in the query: an agent that comes mostly has
// its documents, and to read one takes longer than to find it. Version 0 is that
// of a row from before there was a column for it.
func (t *tx) DocumentsNewer(vm string, than map[policy.Type]uint64) ([]control.Document, error) {
	if len(than) == 0 {
		return nil, nil
	}
	var any, q selection
	for _, kind := range slices.Sorted(maps.Keys(than)) {
		any.and("(type = ? AND (version = 0 OR version > ?))", string(kind), number(than[kind]))
	}
	q.and("vm = ?", fold(vm))
	q.and("("+strings.Join(any.where, " OR ")+")", any.args...)
	list, err := all[control.Document](t, q.text("document", "type", 0), q.args...)
	return slices.DeleteFunc(list, func(d control.Document) bool { return d.Version <= than[d.Type] }), err
}

func (t *tx) DocumentsOf(vms ...string) (list []control.Document, err error) {
	keys := make([]string, 0, len(vms))
	for _, vm := range vms {
		keys = append(keys, fold(vm))
	}
	slices.Sort(keys)
	for some := range slices.Chunk(slices.Compact(keys), chunk) {
		found, err := all[control.Document](t, "SELECT doc FROM document WHERE vm IN ("+tuples(len(some), "?")+") ORDER BY vm, type", anys(some)...)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// documentsAfter is what replicas ask again and again.
const documentsAfter = "SELECT doc FROM document WHERE seq > ? ORDER BY seq"

func (t *tx) DocumentsAfter(seq uint64, limit int) ([]control.Document, error) {
	return all[control.Document](t, documentsAfter+limited(limit), number(seq))
}

func (t *tx) PutDocument(list ...control.Document) error {
	if len(list) == 0 {
		return nil
	}
	seq, err := t.next("document", len(list))
	if err != nil {
		return err
	}
	t.changed = true
	for some := range slices.Chunk(list, documentsAtOnce) {
		var args []any
		for _, d := range some {
			d.VM, d.Seq = fold(d.VM), seq
			seq++
			doc, err := encode(d)
			if err != nil {
				t.failed = errors.Join(t.failed, err)
				return err
			}
			args = append(args, d.VM, string(d.Type), number(d.Seq), nanos(d.Issued), number(d.Version), doc)
		}
		_, err := t.exec("INSERT INTO document (vm, type, seq, issued, version, doc) VALUES "+tuples(len(some), "(?, ?, ?, ?, ?, ?)")+`
			ON CONFLICT (vm, type) DO UPDATE SET seq = excluded.seq, issued = excluded.issued, version = excluded.version, doc = excluded.doc`, args...)
		if err != nil {
			return err
		}
	}
	return nil
}

// documentsAtOnce bounds the documents in one statement, which is a text for
// each number of them.
const documentsAtOnce = 50

func (t *tx) GrantsDue(before time.Time, limit int) ([]control.Document, error) {
	return all[control.Document](t, `SELECT doc FROM document WHERE type = ? AND issued < ?
		AND EXISTS (SELECT 1 FROM request_vm WHERE request_vm.vm = document.vm AND request_vm.open = 1)
		ORDER BY issued, vm`+limited(limit), string(policy.TypeGrants), nanos(before))
}

func (t *tx) PendingPolicy(vm control.VMID) (control.PendingPolicy, error) {
	return one[control.PendingPolicy](t, "SELECT doc FROM pending_policy WHERE vm = ?", vm.Key())
}

func (t *tx) PendingPolicies(vms ...control.VMID) (list []control.PendingPolicy, err error) {
	if len(vms) == 0 {
		return all[control.PendingPolicy](t, "SELECT doc FROM pending_policy ORDER BY vm")
	}
	for some := range chunked(vms) {
		found, err := all[control.PendingPolicy](t, "SELECT doc FROM pending_policy WHERE vm IN ("+tuples(len(some), "?")+") ORDER BY vm", some...)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

func (t *tx) PutPendingPolicy(p control.PendingPolicy) error {
	return t.put("INSERT INTO pending_policy (vm, doc) VALUES (?, ?) ON CONFLICT (vm) DO UPDATE SET doc = excluded.doc", p, p.VM.Key())
}

func (t *tx) DeletePendingPolicy(vm control.VMID) error {
	return t.drop("DELETE FROM pending_policy WHERE vm = ?", vm.Key())
}

// --- machines ---

func (t *tx) VM(id control.VMID) (control.VM, error) {
	list, err := t.vms("SELECT seen, doc FROM vm WHERE id = ?", id.Key())
	if err != nil || len(list) == 0 {
		if err == nil {
			err = control.ErrNotFound
		}
		return control.VM{}, err
	}
	return list[0], nil
}

func (t *tx) VMs(f control.VMFilter) ([]control.VM, error) {
	query, args := t.store.vms(f)
	return t.vms(query, args...)
}

// vms is the query of a filter.
func (s *store) vms(f control.VMFilter) (string, []any) {
	var q selection
	q.below("id", f.Scope)
	if f.Search != "" {
		q.and(s.contains("id"), fold(f.Search))
	}
	if f.After != "" {
		q.and("id > ?", fold(f.After))
	}
	if !f.Silent.IsZero() {
		q.and("seen <= ?", nanos(f.Silent))
	}
	return "SELECT seen, doc FROM vm" + q.conditions() + " ORDER BY id" + limited(f.Limit), q.args
}

func (t *tx) VMsOf(ids ...control.VMID) (list []control.VM, err error) {
	for some := range chunked(ids) {
		found, err := t.vms("SELECT seen, doc FROM vm WHERE id IN ("+tuples(len(some), "?")+") ORDER BY id", some...)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// chunked are the keys of machines, in their order and each once, as arguments
// of one statement after the other.
func chunked(ids []control.VMID) iter.Seq[[]any] {
	keys := make([]string, 0, len(ids))
	for _, id := range ids {
		keys = append(keys, id.Key())
	}
	slices.Sort(keys)
	return slices.Chunk(anys(slices.Compact(keys)), chunk)
}

// anys are strings as arguments of a statement.
func anys(list []string) []any {
	args := make([]any, len(list))
	for i, s := range list {
		args[i] = s
	}
	return args
}

func (t *tx) Machines(f control.MachineFilter) (keys []string, err error) {
	if f.Search != "" {
		x, err := t.keyIndex()
		if err != nil {
			return nil, err
		}
		return x.find(f), nil
	}
	query, args := machines(f)
	err = t.read(func(rows *sql.Rows) error {
		var key string
		err := rows.Scan(&key)
		keys = append(keys, key)
		return err
	}, query, args...)
	return keys, err
}

// machines is the query of a filter without a Search.
func machines(f control.MachineFilter) (string, []any) {
	var q selection
	if f.Tab != "" {
		q.and("tab = ?", string(f.Tab))
	}
	if from, after := fold(f.From), fold(f.After); after != "" && after >= from {
		q.and("id > ?", after)
	} else if from != "" {
		q.and("id >= ?", from)
	}
	if f.To != "" {
		q.and("id < ?", fold(f.To))
	}
	return "SELECT id FROM machine" + q.conditions() + " ORDER BY id" + limited(f.Limit), q.args
}

// CountMachines adds up counts that are kept in step with the machines: see sort.
func (t *tx) CountMachines(from, to string) (map[control.Tab]int, error) {
	counts := map[control.Tab]int{}
	err := t.read(func(rows *sql.Rows) error {
		var tab control.Tab
		var n int
		err := rows.Scan(&tab, &n)
		counts[tab] = n
		return err
	}, machineCounts, fold(from), fold(to))
	return counts, err
}

const machineCounts = "SELECT tab, CAST(sum(n) AS BIGINT) FROM machine_count WHERE grp >= ? AND grp < ? GROUP BY tab"

// sort puts machines into their tabs, after something that these depend on has
// changed, and keeps the counts in step.
func (t *tx) sort(keys ...string) error {
	moved := map[[2]string]int{} // by group and tab
	for some := range slices.Chunk(keys, chunk) {
		tabs := map[string]control.Tab{}
		err := t.read(func(rows *sql.Rows) error {
			var key string
			var was control.Tab
			var named bool
			var unsupported int
			if err := rows.Scan(&key, &unsupported, &was, &named); err != nil {
				return err
			}
			if is := control.BaseTab(key, named, unsupported != 0); is != was {
				tabs[key] = is
				moved[[2]string{groupOf(key), string(is)}]++
				moved[[2]string{groupOf(key), string(was)}]--
			}
			return nil
		}, `SELECT vm.id, vm.unsupported, COALESCE(machine.tab, ''), EXISTS (SELECT 1 FROM policy_vm WHERE policy_vm.vm = vm.id)
			FROM vm LEFT JOIN machine ON machine.id = vm.id WHERE vm.id IN (`+tuples(len(some), "?")+")", anys(some)...)
		if err != nil {
			return err
		}
		if len(tabs) == 0 {
			continue
		}
		if _, err := t.next(machineVersion, 1); err != nil {
			return err
		}
		var rows []any
		for key, tab := range tabs {
			rows = append(rows, key, string(tab))
		}
		if _, err := t.exec("INSERT INTO machine (id, tab) VALUES "+tuples(len(tabs), "(?, ?)")+" ON CONFLICT (id) DO UPDATE SET tab = excluded.tab", rows...); err != nil {
			return err
		}
	}
	return t.count(moved)
}

// count changes the counts of groups and tabs; the empty tab is none.
func (t *tx) count(moved map[[2]string]int) error {
	for of, n := range moved {
		if of[1] == "" || n == 0 {
			continue
		}
		_, err := t.exec("INSERT INTO machine_count (grp, tab, n) VALUES (?, ?, ?) ON CONFLICT (grp, tab) DO UPDATE SET n = machine_count.n + excluded.n", of[0], of[1], n)
		if err == nil && n < 0 {
			_, err = t.exec("DELETE FROM machine_count WHERE grp = ? AND tab = ? AND n = 0", of[0], of[1])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// groupOf is a machine's resource group, as machine_count has it.
func groupOf(key string) string { return ancestor(key, groupDepth) + "/" }

// vms puts when an agent was last heard of back into its machine.
func (t *tx) vms(query string, args ...any) ([]control.VM, error) {
	var list []control.VM
	err := t.read(func(rows *sql.Rows) error {
		var seen int64
		var doc string
		if err := rows.Scan(&seen, &doc); err != nil {
			return t.store.judge(t.ctx, err)
		}
		var vm control.VM
		if err := decode(doc, &vm); err != nil {
			return err
		}
		if !t.readOnly {
			t.keptVM(vm)
		}
		if last := time.Unix(0, seen).UTC(); vm.Agent != nil && seen > nanos(time.Time{}) {
			vm.Agent.LastSeen = last
		}
		list = append(list, vm)
		return nil
	}, query, args...)
	return list, err
}

func (t *tx) PutVM(vm control.VM) error {
	seen := nanos(time.Time{})
	if vm.Agent != nil {
		agent := *vm.Agent
		seen = nanos(agent.LastSeen)
		agent.LastSeen = time.Time{}
		vm.Agent = &agent
	}
	err := t.put(`INSERT INTO vm (id, seen, unsupported, doc) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
		SET seen = CASE WHEN vm.seen > excluded.seen THEN vm.seen ELSE excluded.seen END, unsupported = excluded.unsupported, doc = excluded.doc`,
		vm, vm.ID.Key(), seen, flag(vm.Unsupported != ""))
	if err != nil {
		return err
	}
	was, there := t.machines[vm.ID.Key()]
	t.keptVM(vm)
	if there && was == (vm.Unsupported != "") {
		return nil // the tab depends on nothing else that is in it
	}
	return t.sort(vm.ID.Key())
}

func (t *tx) keptVM(vm control.VM) {
	if t.machines == nil {
		t.machines = map[string]bool{}
	}
	t.machines[vm.ID.Key()] = vm.Unsupported != ""
}

func (t *tx) DeleteVM(id control.VMID) error {
	key := id.Key()
	var tab string
	err := t.read(func(rows *sql.Rows) error { return rows.Scan(&tab) }, "SELECT tab FROM machine WHERE id = ?", key)
	if err != nil {
		return err
	}
	if err := t.drop("DELETE FROM vm WHERE id = ?", key); err != nil {
		return err
	}
	delete(t.machines, key)
	if _, err := t.next(machineVersion, 1); err != nil {
		return err
	}
	return t.count(map[[2]string]int{{groupOf(key), tab}: -1})
}

func (t *tx) Seen(at map[string]time.Time) error {
	for keys := range slices.Chunk(slices.Sorted(maps.Keys(at)), chunk) {
		var args []any
		for _, key := range keys {
			args = append(args, fold(key), nanos(at[key]))
		}
		_, err := t.exec(`WITH heard (id, seen) AS (VALUES `+tuples(len(keys), "(CAST(? AS TEXT), CAST(? AS BIGINT))")+`)
			UPDATE vm SET seen = heard.seen FROM heard WHERE vm.id = heard.id AND vm.seen < heard.seen`, args...)
		if err != nil {
			return err
		}
	}
	return nil
}

// --- agents ---

func (t *tx) Join(hash string) (control.Join, error) {
	return one[control.Join](t, "SELECT doc FROM join_token WHERE hash = ?", hash)
}

func (t *tx) Joins() ([]control.Join, error) {
	return all[control.Join](t, "SELECT doc FROM join_token ORDER BY created, hash")
}

func (t *tx) PutJoin(j control.Join) error {
	return t.put("INSERT INTO join_token (hash, created, doc) VALUES (?, ?, ?) ON CONFLICT (hash) DO UPDATE SET created = excluded.created, doc = excluded.doc",
		j, j.Hash, nanos(j.Created))
}

func (t *tx) NewestRecord(vm control.VMID) (r control.Record, h control.Head, err error) {
	r.VM = vm
	err = t.read(func(rows *sql.Rows) error { return rows.Scan(&r.Epoch, &h.Seq, &h.Hash) },
		"SELECT epoch, seq, hash FROM agent_event WHERE vm = ? ORDER BY epoch DESC, seq DESC LIMIT 1", vm.Key())
	return r, h, err
}

// AppendAgentEvents refuses a number that is there already: a record is not
// written twice.
func (t *tx) AppendAgentEvents(r control.Record, events []control.AgentEvent) error {
	for some := range slices.Chunk(events, chunk) {
		var args []any
		for _, e := range some {
			doc, err := encode(e)
			if err != nil {
				t.failed = err
				return err
			}
			args = append(args, r.VM.Key(), number(r.Epoch), number(e.Seq), e.Hash, doc)
		}
		n, err := t.exec("INSERT INTO agent_event (vm, epoch, seq, hash, doc) VALUES "+tuples(len(some), "(?, ?, ?, ?, ?)")+" ON CONFLICT DO NOTHING", args...)
		if err != nil {
			return err
		}
		if n != len(some) {
			t.failed = control.Refuse(control.Conflict, "AgentEventKept", "The record of %s has one of these lines already.", r.VM)
			return t.failed
		}
	}
	return nil
}

func (t *tx) AgentEvents(r control.Record, after uint64, limit int) ([]control.AgentEvent, error) {
	return all[control.AgentEvent](t, "SELECT doc FROM agent_event WHERE vm = ? AND epoch = ? AND seq > ? ORDER BY seq"+limited(limit), r.VM.Key(), number(r.Epoch), number(after))
}

// --- activity ---

func (t *tx) AppendActivity(lines ...control.Activity) error {
	if len(lines) == 0 {
		return nil
	}
	first, err := t.next("activity", len(lines))
	if err != nil {
		return err
	}
	t.changed = true
	hours := map[int64]*[3]int64{} // the first, the last, how many
	for some := range slices.Chunk(lines, chunk) {
		var args []any
		for _, a := range some {
			a.Seq = first
			first++
			hour := nanos(a.Time) / int64(time.Hour)
			in := hours[hour]
			if in == nil {
				in = &[3]int64{number(a.Seq)}
				hours[hour] = in
			}
			in[1] = number(a.Seq)
			in[2]++
			doc, err := encode(a)
			if err != nil {
				t.failed = err
				return err
			}
			scope := fold(string(a.Scope))
			args = append(args, number(a.Seq), nanos(a.Time), ancestor(scope, subscriptionDepth), ancestor(scope, groupDepth), scope, a.Event, a.Actor, doc)
		}
		if _, err := t.exec("INSERT INTO activity (seq, ts, sub, grp, scope, event, actor, doc) VALUES "+tuples(len(some), "(?, ?, ?, ?, ?, ?, ?, ?)"), args...); err != nil {
			return err
		}
	}
	for hour, in := range hours {
		_, err := t.exec(`INSERT INTO activity_hour (hour, first, last, n) VALUES (?, ?, ?, ?)
			ON CONFLICT (hour) DO UPDATE SET last = excluded.last, n = activity_hour.n + excluded.n`, hour, in[0], in[1], in[2])
		if err != nil {
			return err
		}
	}
	return nil
}

// The slashes in the id of a subscription, and of a resource group.
const (
	subscriptionDepth = 2
	groupDepth        = 4
)

// ancestor is the scope of that depth that a scope is in; empty: it is in none.
func ancestor(scope string, depth int) string {
	for i, c := range scope {
		if c != '/' {
			continue
		}
		if depth == 0 {
			return scope[:i]
		}
		depth--
	}
	if depth == 0 {
		return scope
	}
	return ""
}

func (t *tx) Activity(f control.ActivityFilter) ([]control.Activity, error) {
	w, err := t.way(f)
	if err != nil {
		return nil, err
	}
	query, args := activity(f, w)
	return all[control.Activity](t, query, t.store.planned(args)...)
}

// way is how lines are looked for: by the index of one column, where all that
// is there may be looked at. Without one, in the order of seq.
type way struct {
	by          string // the column
	first, last int64  // what is in the time of the filter is in these seqs, and some that is not
}

// fewLines may be looked at for one page.
const fewLines = 20_000

// way is the one with the fewest lines to look at, as far as that can be told
// by counting no more than fewLines. Engines know what is rare, and not what
// goes together: that seq rises with time above all.
func (t *tx) way(f control.ActivityFilter) (w way, err error) {
	w = way{first: math.MinInt64, last: math.MaxInt64}
	fewest := fewLines + 1
	asked := columnsOf(f)
	if !f.From.IsZero() || !f.To.IsZero() {
		var lines int
		err := t.read(func(rows *sql.Rows) error { return rows.Scan(&w.first, &w.last, &lines) },
			"SELECT COALESCE(min(first), 0), COALESCE(max(last), 0), COALESCE(CAST(sum(n) AS BIGINT), 0) FROM activity_hour WHERE hour >= ? AND hour <= ?",
			hourOf(f.From, math.MinInt64), hourOf(f.To, math.MaxInt64))
		if err != nil {
			return w, err
		}
		if lines < fewest {
			w.by, fewest = "ts", lines
		}
	}
	for _, c := range asked {
		if len(asked) == 1 && w.by == "" {
			w.by = c.name
			break // what there is, is in its order
		}
		var q selection
		q.and(c.name+" = ?", c.value)
		q.pages(f, w, "seq")
		var lines int
		err := t.read(func(rows *sql.Rows) error { return rows.Scan(&lines) }, "SELECT count(*) FROM (SELECT 1 FROM activity"+q.conditions()+limited(fewest)+") AS few", t.store.planned(q.args)...)
		if err != nil {
			return w, err
		}
		if lines < fewest || w.by == "" {
			w.by, fewest = c.name, lines
		}
	}
	return w, nil
}

// hourOf is where activity_hour counts lines of a time. Every line between two
// times is counted between their hours.
func hourOf(at time.Time, unless int64) int64 {
	if at.IsZero() {
		return unless
	}
	return nanos(at) / int64(time.Hour)
}

// column is one that has to have a value.
type column struct{ name, value string }

// columnsOf are those that a filter asks of. A subscription and a group have a
// column each; below other scopes is nothing.
func columnsOf(f control.ActivityFilter) (asked []column) {
	scope := fold(string(f.Scope))
	switch depth := strings.Count(scope, "/"); {
	case scope == "" || scope == string(control.Everywhere):
	case depth == subscriptionDepth:
		asked = append(asked, column{"sub", scope})
	case depth == groupDepth:
		asked = append(asked, column{"grp", scope})
	default:
		asked = append(asked, column{"scope", scope})
	}
	if f.Actor != "" {
		asked = append(asked, column{"actor", f.Actor})
	}
	if f.Event != "" {
		asked = append(asked, column{"event", f.Event})
	}
	return asked
}

// activity is the query of a filter. What is not to be gone by is written so
// that no index has it.
func activity(f control.ActivityFilter, w way) (string, []any) {
	var q selection
	for _, c := range columnsOf(f) {
		if c.name == w.by {
			q.and(c.name+" = ?", c.value)
		} else {
			q.and(c.name+" || '' = ?", c.value)
		}
	}
	ts, seq := "ts + 0", "seq"
	if w.by == "ts" {
		ts, seq = "ts", "seq + 0"
	}
	if !f.From.IsZero() {
		q.and(ts+" >= ?", nanos(f.From))
	}
	if !f.To.IsZero() {
		q.and(ts+" < ?", nanos(f.To))
	}
	q.pages(f, w, seq)
	order := seq
	if f.Newest {
		order += " DESC"
	}
	if w.by != "ts" {
		return q.text("activity", order, f.Limit), q.args
	}
	// Only numbers are sorted.
	return "SELECT doc FROM activity WHERE seq IN (SELECT seq FROM activity" + q.conditions() + " ORDER BY " + order + limited(f.Limit) + ") ORDER BY " + strings.Replace(order, seq, "seq", 1), q.args
}

// behind is the first seq that is higher.
func behind(seq uint64) int64 { return number(min(seq, math.MaxInt64-1) + 1) }

// pages asks for what is behind the page before.
func (q *selection) pages(f control.ActivityFilter, w way, seq string) {
	above, below := w.first, w.last // both are in it
	if f.Newest {
		if f.After > 0 {
			below = min(below, number(f.After)-1)
		}
		if f.Within > 0 {
			above = max(above, behind(f.Within))
		}
	} else {
		above = max(above, behind(f.After))
		if f.Within > 0 {
			below = min(below, number(f.Within)-1)
		}
	}
	if above > 1 {
		q.and(seq+" >= ?", above)
	}
	if below < math.MaxInt64 {
		q.and(seq+" <= ?", below)
	}
}

// --- who may what ---

func (t *tx) ScopeSettings() ([]control.ScopeSetting, error) {
	return all[control.ScopeSetting](t, "SELECT doc FROM scope_setting ORDER BY scope")
}

func (t *tx) PutScopeSetting(s control.ScopeSetting) error {
	return t.put("INSERT INTO scope_setting (scope, doc) VALUES (?, ?) ON CONFLICT (scope) DO UPDATE SET doc = excluded.doc", s, fold(string(s.Scope)))
}

func (t *tx) Token(hash string) (control.Token, error) {
	return one[control.Token](t, "SELECT doc FROM token WHERE hash = ?", hash)
}

func (t *tx) Tokens() ([]control.Token, error) {
	return all[control.Token](t, "SELECT doc FROM token ORDER BY created, hash")
}

func (t *tx) PutToken(k control.Token) error {
	return t.put("INSERT INTO token (hash, created, doc) VALUES (?, ?, ?) ON CONFLICT (hash) DO UPDATE SET created = excluded.created, doc = excluded.doc",
		k, k.Hash, nanos(k.Created))
}

func (t *tx) Roles() ([]control.Role, error) {
	return all[control.Role](t, "SELECT doc FROM role ORDER BY name")
}

func (t *tx) PutRole(r control.Role) error {
	return t.put("INSERT INTO role (name, doc) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET doc = excluded.doc", r, fold(r.Name))
}

func (t *tx) DeleteRole(name string) error {
	return t.drop("DELETE FROM role WHERE name = ?", fold(name))
}

func (t *tx) Assignments(principals ...string) ([]control.Assignment, error) {
	const query, order = "SELECT doc FROM assignment", " ORDER BY principal, role, scope"
	if len(principals) == 0 {
		return all[control.Assignment](t, query+order)
	}
	var list []control.Assignment
	principals = slices.Compact(slices.Sorted(slices.Values(principals)))
	for some := range slices.Chunk(principals, chunk) {
		found, err := all[control.Assignment](t, query+" WHERE principal IN ("+tuples(len(some), "?")+")"+order, anys(some)...)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

func (t *tx) PutAssignment(a control.Assignment) error {
	return t.put("INSERT INTO assignment (principal, role, scope, doc) VALUES (?, ?, ?, ?) ON CONFLICT (principal, role, scope) DO UPDATE SET doc = excluded.doc",
		a, a.Principal, fold(a.Role), fold(string(a.Scope)))
}

func (t *tx) DeleteAssignment(a control.Assignment) error {
	return t.drop("DELETE FROM assignment WHERE principal = ? AND role = ? AND scope = ?", a.Principal, fold(a.Role), fold(string(a.Scope)))
}

// --- the rest ---

func (t *tx) Answer(key string) (control.Answer, error) {
	return one[control.Answer](t, "SELECT doc FROM answer WHERE id = ?", key)
}

// answersKept is how long an answer is kept.
const answersKept = 24 * time.Hour

func (t *tx) PutAnswer(a control.Answer) error {
	if _, err := t.exec("DELETE FROM answer WHERE ts < ?", nanos(a.Time.Add(-answersKept))); err != nil {
		return err
	}
	return t.put("INSERT INTO answer (id, ts, doc) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET ts = excluded.ts, doc = excluded.doc", a, a.Key, nanos(a.Time))
}

func (t *tx) Meta(name string) ([]byte, error) {
	return one[[]byte](t, "SELECT doc FROM meta WHERE name = ?", name)
}

func (t *tx) MetaNames() (names []string, err error) {
	err = t.read(func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		names = append(names, name)
		return err
	}, "SELECT name FROM meta")
	slices.Sort(names) // by bytes, whatever the database's own order
	return names, err
}

func (t *tx) PutMeta(name string, value []byte) error {
	return t.put("INSERT INTO meta (name, doc) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET doc = excluded.doc", value, name)
}
