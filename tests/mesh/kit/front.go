package kit

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Front is an address behind which one server can take the place of another, as a service's address is in a cluster.
type Front struct {
	Address string
	mutex   sync.Mutex
	behind  string
	open    map[net.Conn]bool
}

// StartFront starts one with nobody behind.
func StartFront(t testing.TB) *Front {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Front{Address: listener.Addr().String(), open: map[net.Conn]bool{}}
	t.Cleanup(func() {
		_ = listener.Close()
		f.Set("")
	})
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			go f.relay(near)
		}
	}()
	return f
}

// Set puts another server behind; "" puts nobody there. Connections end.
func (f *Front) Set(behind string) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.behind = behind
	for connection := range f.open {
		_ = connection.Close()
	}
}

func (f *Front) relay(near net.Conn) {
	defer near.Close()
	f.mutex.Lock()
	behind := f.behind
	f.open[near] = true
	f.mutex.Unlock()
	defer func() {
		f.mutex.Lock()
		defer f.mutex.Unlock()
		delete(f.open, near)
	}()
	if behind == "" {
		return
	}
	far, err := net.Dial("tcp", behind)
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(far, near)
		_ = far.Close()
	}()
	_, _ = io.Copy(near, far)
}
