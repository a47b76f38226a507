// Package e2e tests jitgate from outside: real agents, in network namespaces
// of their own, on this machine's kernel. All of it is in the tests.
//
// A test makes a host: a guarded machine ("vm") and a neighbour from which
// addresses try to get in. It delivers signed files to the host's inbox, as
// any carrier would, and looks at what the host then lets through, says of
// itself (status) and records (audit). Documents are signed by a few lines of
// the tests' own, not by the product's.
//
// A namespace belongs to a thread of the test process and ends with it, and
// so does every agent: neither is left behind, however a test ends.
package e2e
