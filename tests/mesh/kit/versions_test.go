package kit

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What go.mod names is what versions.env names, and the documentation says no other version was run.
func TestVersionsAreThoseOfVersionsEnv(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile(filepath.Join(Root(t), path))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, what := range []struct{ variable, module, required, documented string }{
		// A commit's short name; and a release's number.
		{"ISTIO_VERSION", "istio", "istio.io/istio", `-([0-9a-f]{12})$`},
		{"ENVOY_GATEWAY_VERSION", "envoy-gateway", "github.com/envoyproxy/gateway", `^v(.*)$`},
	} {
		_, rest, found := strings.Cut(read("versions.env"), "\n"+what.variable+"=")
		version, _, _ := strings.Cut(rest, "\n")
		if !found || !strings.Contains(read("tests/mesh/"+what.module+"/go.mod"), "\t"+what.required+" "+version) {
			t.Errorf("tests/mesh/%s/go.mod requires another %s than versions.env: %q", what.module, what.required, version)
			continue
		}
		if name := regexp.MustCompile(what.documented).FindStringSubmatch(version); name == nil || !strings.Contains(read("docs/"+what.module+".md"), name[1]) {
			t.Errorf("docs/%s.md does not say that %s was run", what.module, version)
		}
	}
}
