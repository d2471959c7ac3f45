package kit

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// LB is the project's scripted load balancer.
type LB struct {
	t       testing.TB
	Address string
	in      io.Writer
	out     *bufio.Scanner
}

// StartLB starts one that drops idle connections as the mode says: "fin:4s", "rst:4s", "silent-rst:4s", "swallow:4s", "stable".
func StartLB(t testing.TB, mode string, more ...string) *LB {
	t.Helper()
	command := exec.Command(Program(t, "STUB_LB", "target/debug/stub_lb"), append([]string{"--mode", mode}, more...)...)
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = command.Wait()
	})
	lb := &LB{t: t, in: in, out: bufio.NewScanner(out)}
	if !lb.out.Scan() {
		t.Fatal("the load balancer does not say its address")
	}
	lb.Address = lb.out.Text()
	return lb
}

// Port is that of its address.
func (lb *LB) Port() string {
	return lb.Address[strings.LastIndex(lb.Address, ":")+1:]
}

// Set changes the mode, for open connections, too; "close" closes every connection.
func (lb *LB) Set(mode string) {
	lb.t.Helper()
	if _, err := fmt.Fprintln(lb.in, mode); err != nil {
		lb.t.Fatal(err)
	}
	if !lb.out.Scan() || lb.out.Text() != "ok" {
		lb.t.Fatalf("%s: %s", mode, lb.out.Text())
	}
}
