package kit

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Admin is an Envoy's admin interface.
type Admin struct {
	// URL is without a path: http://127.0.0.1:15000.
	URL string
}

// Get is what a path says; an error's text if it can't.
func (a Admin) Get(path string) (string, error) {
	// While it compiles a module it does not answer.
	client := http.Client{Timeout: 30 * time.Second}
	response, err := client.Get(a.URL + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", path, response.StatusCode, body)
	}
	return string(body), err
}

// Applied waits until a route for this name is there.
func (a Admin) Applied(t testing.TB, name string) {
	t.Helper()
	a.dumped(t, "dynamic_route_configs", func(routes string) bool { return strings.Contains(routes, name) })
}

// Warm waits until no cluster is on its way. One that changes stays as it was until its endpoints have come again, which may take 15 s.
func (a Admin) Warm(t testing.TB) {
	t.Helper()
	a.dumped(t, "dynamic_warming_clusters", func(clusters string) bool { return !strings.Contains(clusters, "version_info") })
}

func (a Admin) dumped(t testing.TB, resources string, is func(string) bool) {
	t.Helper()
	Eventually(t, Patience, func() string {
		dump, err := a.Get("/config_dump?resource=" + resources)
		if err != nil {
			return err.Error()
		}
		if !is(dump) {
			return "Envoy does not have what was applied: " + resources
		}
		return ""
	})
}

// Stats are the counters and gauges by name.
func (a Admin) Stats() (map[string]uint64, error) {
	text, err := a.Get("/stats")
	if err != nil {
		return nil, err
	}
	stats := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if number, err := strconv.ParseUint(value, 10, 64); err == nil {
			stats[name] = number
		}
	}
	return stats, nil
}

// Metric is one of idleguard's, by what follows "idleguard.".
func (a Admin) Metric(t testing.TB, name string) uint64 {
	t.Helper()
	stats, err := a.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return stats["wasmcustom.idleguard."+name]
}

// WaitForLane waits until requests to the destination go to the lane with this idle timeout.
func (a Admin) WaitForLane(t testing.TB, destination string, idleTimeout time.Duration) {
	t.Helper()
	name := "wasmcustom.idleguard.destination." + destination + ".lane_idle_timeout_ms"
	Eventually(t, Patience, func() string {
		stats, err := a.Stats()
		if err != nil {
			return err.Error()
		}
		if stats[name] == uint64(idleTimeout.Milliseconds()) {
			return ""
		}
		value, known := stats[name]
		return fmt.Sprintf("%s is %d (known: %t), not %s", name, value, known, idleTimeout)
	})
}
