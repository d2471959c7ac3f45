package kit

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// inside tells a process that it runs in namespaces of its own.
const inside = "IDLEGUARD_MESH_INSIDE"

// atOnce is how many tests run at a time; they wait for load balancers more than they compute.
const atOnce = 4

// prepare lets a process see the machine's files from a root of its own, with folders that it may fill: the control planes' own are
// fixed, as their ports are. So is the name of the memory that an Envoy shares with the one before it: of two that start at once, one fails.
const prepare = `set -e
ip link set lo up
mount -t tmpfs tmpfs /mnt
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "/mnt$entry"
  elif [ -d "$entry" ] && [ "$entry" != /mnt ]; then mkdir "/mnt$entry"; mount --rbind "$entry" "/mnt$entry"
  fi
done
mount -t tmpfs tmpfs /mnt/var/lib
mount -t tmpfs tmpfs /mnt/dev/shm
mkdir -p /mnt/certs /mnt/var/lib/istio/data
exec chroot /mnt sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"`

// Main runs each test in a network and a mount namespace of its own, with this environment, from before main on.
func Main(m *testing.M, environment ...string) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	flag.Parse()
	wanted := flag.Lookup("test.run").Value.String()
	top, _, _ := strings.Cut(wanted, "/")
	if top == "" {
		top = "."
	}
	list := exec.Command(os.Args[0], "-test.list", top)
	list.Env = append(append(os.Environ(), inside+"=1"), environment...)
	listed, err := list.CombinedOutput()
	if err != nil {
		fmt.Fprintln(os.Stderr, "no list of the tests:", err, string(listed))
		os.Exit(1)
	}
	os.Exit(all(strings.Fields(string(listed)), wanted, environment))
}

func all(names []string, wanted string, environment []string) int {
	var failed []string
	var mutex sync.Mutex
	var tests sync.WaitGroup
	free := make(chan struct{}, atOnce)
	for _, name := range names {
		if !strings.HasPrefix(name, "Test") {
			continue
		}
		free <- struct{}{}
		tests.Go(func() {
			defer func() { <-free }()
			began := time.Now()
			said, err := alone(name, wanted, environment)
			mutex.Lock()
			defer mutex.Unlock()
			_, _ = os.Stdout.Write(said)
			if err != nil {
				fmt.Printf("%s, after %.0f s: %v\n", name, time.Since(began).Seconds(), err)
				failed = append(failed, name)
			}
		})
	}
	tests.Wait()
	if len(failed) > 0 {
		fmt.Println("failed:", strings.Join(failed, ", "))
		return 1
	}
	return 0
}

// alone runs one test, or those of its parts that are wanted.
func alone(name, wanted string, environment []string) ([]byte, error) {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return nil, err
	}
	run := "^" + name + "$"
	if _, part, is := strings.Cut(wanted, "/"); is {
		run += "/" + part
	}
	arguments := []string{"--net", "--mount"}
	if os.Geteuid() != 0 {
		arguments = append(arguments, "--map-root-user")
	}
	arguments = append(append(arguments, "sh", "-c", prepare, "sh", os.Args[0]), os.Args[1:]...)
	command := exec.Command(unshare, append(arguments, "-test.run="+run)...)
	command.Env = append(append(os.Environ(), inside+"=1"), environment...)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	said, err := command.CombinedOutput()
	if err == nil && !bytes.Contains(said, []byte("--- PASS: "+name+" ")) {
		err = errors.New("it did not run")
	}
	return said, err
}
