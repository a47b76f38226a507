// Package control is the control plane: it decides who may have which port
// opened, writes the documents agents obey, and keeps the record of it. It
// speaks no HTTP and no SQL: control/api and control/agents speak for it, and
// a Store keeps what it knows.
//
// Everything that changes something goes one way: a call with its Caller is
// authorised, judged against what the store has, and written (policy, request,
// documents, activity) in one transaction. Agents are told after the commit.
package control
