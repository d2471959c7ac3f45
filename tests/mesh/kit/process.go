package kit

import (
	"bufio"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that ends with the test.
type Process struct {
	command *exec.Cmd
	done    chan struct{}
	mutex   sync.Mutex
	log     []string
}

// Start starts a program in this folder, and in a process group of its own. What it says is kept, and shown if the test fails.
func Start(t testing.TB, folder string, environment []string, program string, arguments ...string) *Process {
	t.Helper()
	command := exec.Command(program, arguments...)
	command.Dir = folder
	command.Env = append(os.Environ(), environment...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	command.Stdout, command.Stderr = writer, writer
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	p := &Process{command: command, done: make(chan struct{})}
	go p.read(reader)
	go func() {
		_ = command.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("%s:\n%s", program, strings.Join(p.Tail(60), "\n"))
		}
	})
	return p
}

func (p *Process) read(reader io.Reader) {
	lines := bufio.NewScanner(reader)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.mutex.Lock()
		p.log = append(p.log, lines.Text())
		p.mutex.Unlock()
	}
}

// Stop ends the process group: gently, and after five seconds not so.
func (p *Process) Stop() {
	group := -p.command.Process.Pid
	_ = syscall.Kill(group, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-p.done
}

// Ended is whether it has ended by itself.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Tail is the last lines of what it said.
func (p *Process) Tail(lines int) []string {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return append([]string(nil), p.log[len(p.log)-min(lines, len(p.log)):]...)
}

// Lines are all that it has said.
func (p *Process) Lines() []string {
	return p.Tail(math.MaxInt)
}

// Command runs a program to its end, and is what it said.
func Command(program string, arguments ...string) (string, error) {
	output, err := exec.Command(program, arguments...).CombinedOutput()
	return string(output), err
}
