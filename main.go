// Command jitgate keeps a machine's management ports closed, and opens one,
// for one source, for a bounded time, when a signed grant says so.
package main

import (
	"os"

	"github.com/jitgate/jitgate/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
