package control

import "context"

// Outer is a layer outside the machines that the same requests are passed on
// to: a network security group driven by Azure's own JIT. control/azure is one.
type Outer interface {
	// Name is that of its Layers.
	Name() string
	// Initiate asks for the ports of r that the layer covers. The result has a
	// Layer for each port of r in order, machine by machine; nil where the
	// layer does not cover it.
	Initiate(ctx context.Context, r Request) ([]*Layer, error)
	// Look asks where those ports stand now.
	Look(ctx context.Context, r Request) ([]*Layer, error)
}
