package kit

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inside tells a process that it runs in namespaces of its own.
const inside = "IDLEGUARD_MESH_INSIDE"

// prepare lets a process see the machine's files from a root of its own, with folders that it may fill: the control planes' own are
// fixed, as their ports are.
const prepare = `set -e
ip link set lo up
mount -t tmpfs tmpfs /mnt
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "/mnt$entry"
  elif [ -d "$entry" ] && [ "$entry" != /mnt ]; then mkdir "/mnt$entry"; mount --rbind "$entry" "/mnt$entry"
  fi
done
mount -t tmpfs tmpfs /mnt/var/lib
mkdir -p /mnt/certs /mnt/var/lib/istio/data
exec chroot /mnt sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"`

// Main runs the tests in a network and a mount namespace of their own, with this environment, from before main on.
func Main(m *testing.M, environment ...string) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	arguments := []string{"unshare", "--net", "--mount"}
	if os.Geteuid() != 0 {
		arguments = append(arguments, "--map-root-user")
	}
	executable, err := os.Executable()
	if err == nil {
		arguments = append(append(arguments, "sh", "-c", prepare, "sh", executable), os.Args[1:]...)
		var unshare string
		if unshare, err = exec.LookPath("unshare"); err == nil {
			err = syscall.Exec(unshare, arguments, append(append(os.Environ(), inside+"=1"), environment...))
		}
	}
	fmt.Fprintln(os.Stderr, "no namespaces for the tests:", err)
	os.Exit(1)
}
