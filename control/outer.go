package control

import "context"

// Outer is a layer outside the machines that the same requests are passed on
// to: a network security group driven by Azure's own JIT. control/azure is one.
// RunLayers calls it, outside any transaction, with the ports of one request
// that are to be asked for or looked at and no others.
type Outer interface {
	// Name is that of its Layers.
	Name() string
	// Initiate asks for every port of r until its End. The result has a Layer
	// for each port in order, machine by machine; nil where the layer does not
	// cover it. A Layer with an Error was not taken: its Until is zero where
	// that is sure, and the port's End where the layer may have taken it all
	// the same. An error instead of a result means that nothing was asked for.
	// Asking twice for the same does no harm.
	Initiate(ctx context.Context, r Request) ([]*Layer, error)
	// Look asks where those ports stand now, in the same order; nil where the
	// layer does not know of the request.
	Look(ctx context.Context, r Request) ([]*Layer, error)
}
