package control

import (
	"strconv"
	"strings"
	"time"
)

// ActivityColumns are the names of what Activity.Cells has.
func ActivityColumns() []string {
	return []string{"seq", "time", "event", "operation", "status", "actor", "principal", "address", "scope", "virtualMachine",
		"request", "grant", "port", "source", "end", "reason", "code", "call"}
}

// Cells are the line as a row of a table that a spreadsheet may open: nothing
// in it is taken for a formula.
func (a Activity) Cells() []string {
	number := func(n uint64) string {
		if n == 0 {
			return ""
		}
		return strconv.FormatUint(n, 10)
	}
	date := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02T15:04:05.9999999Z")
	}
	cells := []string{number(a.Seq), date(a.Time), a.Event, a.Operation, a.Status, a.Actor, a.Principal, a.Address, string(a.Scope), a.VM,
		a.Request, a.Grant, number(uint64(a.Port)), a.Source, date(a.End), a.Reason, a.Code, a.Call}
	for i := range cells {
		cells[i] = harmless(cells[i])
	}
	return cells
}

// harmless keeps a spreadsheet from taking a cell for a formula.
func harmless(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r\n", rune(cell[0])) {
		return "'" + cell
	}
	return cell
}
