package kit

import (
	"fmt"
	"testing"
	"time"
)

// LBIdleTimeout is that of the load balancer in the tests of the promise.
const LBIdleTimeout = 4 * time.Second

// Setup is what is tried: a proxy with idleguard before the scripted load balancer.
type Setup struct {
	Admin
	LB *LB
	// Address of the proxy, and what clients ask it for.
	Address, Host string
	// Destination is what the manifests call it.
	Destination string
	// ClientIP is whether idleguard finds the client's address, too.
	ClientIP bool
	// Labelled is whether the destination is a label in Prometheus; else it is a part of the metrics' names.
	Labelled bool
}

// Drops are the ways in which the load balancer drops idle connections.
var Drops = []string{"fin:4s", "rst:4s", "silent-rst:4s", "swallow:4s"}

// stale is the load that shows stale connections: pauses around the load balancer's idle timeout.
func (s Setup) stale() *Report {
	return Load{Address: s.Address, Host: s.Host, Clients: 25, Pause: 2 * LBIdleTimeout, Bursts: true}.Run(12 * time.Second)
}

// FailsWithout holds that the load balancer does what it should: without idleguard requests fail.
func (s Setup) FailsWithout(t testing.TB) {
	t.Helper()
	without := s.stale()
	t.Logf("without idleguard: %s", without)
	if without.Failed() == 0 {
		t.Error("the load balancer does not do what it should")
	}
}

// Holds fails the test for each promise that is not kept, whatever the load balancer does to idle connections.
func (s Setup) Holds(t *testing.T) {
	t.Helper()
	for _, drops := range Drops {
		t.Run(drops, func(t *testing.T) {
			for _, wrong := range s.drops(t, drops) {
				t.Error(wrong)
			}
		})
	}
	t.Run("metrics and headers", func(t *testing.T) {
		for _, wrong := range append(s.seen(t), s.DashboardWrong(t, false)...) {
			t.Error(wrong)
		}
	})
}

// Wrong is what is not as promised, in a short form.
func (s Setup) Wrong(t testing.TB) []string {
	return append(s.seen(t), s.drops(t, "silent-rst:4s")...)
}

// drops is what goes wrong when the load balancer drops connections like this.
func (s Setup) drops(t testing.TB, drops string) []string {
	s.LB.Set(drops)
	s.LB.Set("close")
	// What the restart has closed may fail once, and is not counted: a moment for Envoy to see it.
	time.Sleep(500 * time.Millisecond)
	with := s.stale()
	t.Logf("%s, with idleguard: %s", drops, with)
	if with.Failed() != 0 || with.OK < 50 {
		return []string{fmt.Sprintf("%s: %s", drops, with)}
	}
	return nil
}

// seen is what is wrong with the metrics, and with what the application gets.
func (s Setup) seen(t testing.TB) []string {
	var wrong []string
	name := "destination." + s.Destination + ".reuses"
	before := s.Metric(t, name)
	if load := Plain(s.Address, s.Host).Run(time.Second); load.Failed() != 0 {
		wrong = append(wrong, load.String())
	}
	if after := s.Metric(t, name); after <= before {
		wrong = append(wrong, fmt.Sprintf("idleguard sees no connection used again: %s is %d", name, after))
	}
	headers, err := received(s.Address, s.Host, "", [][2]string{{"x-idleguard-lane", s.Destination + "=900ms"}})
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	if found := Values(headers, "x-idleguard-lane"); len(found) != 0 {
		wrong = append(wrong, fmt.Sprintf("the application gets %q", found))
	}
	if s.ClientIP {
		requests, differences := VectorsWrong(t, s.Address, s.Host)
		t.Logf("%d requests of the vectors", requests)
		wrong = append(append(wrong, differences...), ChainWrong(t, s.Address, s.Host)...)
	}
	return wrong
}

// applied is a moment for Envoy to compile a plugin anew, and for workers to hear of it.
const applied = 3 * time.Second

// Break is a mistake in the manifests.
type Break struct {
	Name string
	// From is what stands there, and To is what stands there by mistake.
	From, To string
}

// Finds holds that each mistake is seen. `apply` applies manifests, and returns when Envoy has them.
func (s Setup) Finds(t *testing.T, manifests string, breaks []Break, apply func(string)) {
	t.Helper()
	for _, b := range breaks {
		t.Run(b.Name, func(t *testing.T) {
			apply(Replaced(t, manifests, b.From, b.To))
			s.Warm(t)
			time.Sleep(applied)
			wrong := s.Wrong(t)
			if len(wrong) == 0 {
				t.Errorf("%q for %q is not found", b.To, b.From)
			}
			for _, found := range wrong[:min(3, len(wrong))] {
				t.Logf("found, of %d: %.300s", len(wrong), found)
			}
			apply(manifests)
			s.Warm(t)
			time.Sleep(applied)
		})
	}
	t.Run("as they are", func(t *testing.T) {
		for _, wrong := range s.Wrong(t) {
			t.Error(wrong)
		}
	})
}

// Scouted holds that the scout finds the timeout, that the lane follows, and that nothing fails then.
func (s Setup) Scouted(t *testing.T) {
	t.Helper()
	name := "scout." + s.Destination + ".lb_idle_timeout_ms"
	Eventually(t, Patience, func() string {
		// A busy machine is late, and never early.
		if found := s.Metric(t, name); found < 3900 || found > 4400 {
			return fmt.Sprintf("%s is %d", name, found)
		}
		return ""
	})
	s.WaitForLane(t, s.Destination, 900*time.Millisecond)
	t.Logf("the scout says %d ms after %d requests", s.Metric(t, name), s.Metric(t, "scout."+s.Destination+".requests"))
	for _, wrong := range append(s.drops(t, "fin:4s"), s.DashboardWrong(t, true)...) {
		t.Error(wrong)
	}
}
