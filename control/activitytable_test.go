package control_test

import (
	"slices"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
)

func TestActivityCells(t *testing.T) {
	for in, want := range map[string]string{"": "", "alice": "alice", "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@SUM(A1)": "'@SUM(A1)",
		"\t=1": "'\t=1", "\r=1": "'\r=1", "\n=1": "'\n=1", "1=1": "1=1", "'; DROP TABLE vm; --": "'; DROP TABLE vm; --"} {
		cells := control.Activity{Actor: in, Reason: in, Port: 22, Time: time.Date(2026, 11, 22, 18, 55, 15, 400_000_000, time.UTC)}.Cells()
		columns := control.ActivityColumns()
		if len(cells) != len(columns) {
			t.Fatalf("%d cells in %d columns", len(cells), len(columns))
		}
		for column, want := range map[string]string{"actor": want, "reason": want, "port": "22", "time": "2026-11-22T18:55:15.4Z", "end": "", "seq": ""} {
			if got := cells[slices.Index(columns, column)]; got != want {
				t.Errorf("%q is written %q in the column %s, want %q", in, got, column, want)
			}
		}
	}
}
