package kit

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// metrics are the names in queries.
var metrics = regexp.MustCompile(`\b(?:idleguard|envoy)_[a-z_]+`)

// DashboardWrong is which metrics of the dashboard's queries the Envoy does not have: under the label idleguard_destination, or, where nobody
// configures it, with the destination in their names. The scout's are those of an Envoy with a scout.
func (s Setup) DashboardWrong(t testing.TB, scout bool) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(t), "deploy/grafana/idleguard.json"))
	if err != nil {
		t.Fatal(err)
	}
	has, err := s.Get("/stats/prometheus")
	if err != nil {
		return []string{err.Error()}
	}
	var wrong []string
	seen := map[string]bool{}
	for _, name := range metrics.FindAllString(string(text), -1) {
		own, isOurs := strings.CutPrefix(name, "idleguard_")
		kind, metric, ofDestination := strings.Cut(own, "_")
		switch {
		case seen[name] || name == "idleguard_destination" || name == "envoy_cluster_name" || kind == "client" && !s.ClientIP || kind == "scout" && !scout:
			continue
		case isOurs && ofDestination && kind != "client":
			sample := fmt.Sprintf(`\nidleguard_%s_%s\{[^}]*idleguard_destination="%s"`, kind, metric, s.Destination)
			if !s.Labelled {
				sample = fmt.Sprintf(`\nidleguard_%s_%s_%s[{ ]`, kind, strings.ReplaceAll(s.Destination, "-", "_"), metric)
			}
			if !regexp.MustCompile(sample).MatchString(has) {
				wrong = append(wrong, "no sample of "+name+" of the dashboard: "+sample)
			}
		case !strings.Contains(has, "\n"+name+"{"):
			wrong = append(wrong, "no sample of "+name+" of the dashboard")
		}
		seen[name] = true
	}
	t.Logf("%d metrics of the dashboard", len(seen))
	return wrong
}
