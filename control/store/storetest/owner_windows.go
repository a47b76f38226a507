package storetest

import "syscall"

// ownedByNobody changes nothing here: PostgreSQL drops an administrator's
// rights by itself.
func ownedByNobody(string) (*syscall.SysProcAttr, error) { return nil, nil }
