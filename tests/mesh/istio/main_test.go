// Package istio runs Istio's own discovery and its own agent on the manifests of deploy/istio, without a cluster.
package istio

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inside tells a process that it runs in namespaces of its own.
const inside = "IDLEGUARD_MESH_INSIDE"

// prepare makes namespaces of the test's own, because the agent's ports and its folder for modules are fixed.
const prepare = `set -e
ip link set lo up
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/istio/data
exec "$@"`

// TestMain runs the tests in a network and a mount namespace of their own, with what only Istio's own proxy has switched off:
// Istio's features are read from the environment before main.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	arguments := []string{"unshare", "--net", "--mount"}
	if os.Geteuid() != 0 {
		arguments = append(arguments, "--map-root-user")
	}
	arguments = append(arguments, "sh", "-c", prepare, "sh", "/proc/self/exe")
	executable, err := os.Executable()
	if err == nil {
		arguments[len(arguments)-1] = executable
		arguments = append(arguments, os.Args[1:]...)
		environment := append(os.Environ(), inside+"=1", "PILOT_ENABLE_METADATA_EXCHANGE=false", "PILOT_ENABLE_ALPN_FILTER=false")
		var unshare string
		if unshare, err = exec.LookPath("unshare"); err == nil {
			err = syscall.Exec(unshare, arguments, environment)
		}
	}
	fmt.Fprintln(os.Stderr, "no namespaces for the test:", err)
	os.Exit(1)
}
