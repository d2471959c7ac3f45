package envoygateway

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

// sharesVM is what deploy/envoy-gateway/scout says about lanes: their filter is in the scout's VM.
const sharesVM = `  - name: default/eg/http
    operation:
      jsonPath: $..http_filters[?(@.typed_config.config.name=='idleguard')].typed_config.config.vm_config
      op: add
      path: vm_id
      value: idleguard
    type: type.googleapis.com/envoy.config.listener.v3.Listener
`

// Nobody says what the timeout is: the scout finds it, and everybody goes to the right lane.
func TestScout(t *testing.T) {
	lb := kit.StartLB(t, "fin:4s")
	resources := strings.ReplaceAll(operators, "LB_PORT", lb.Port()) + "---\n"
	all := manifests(t, image, kit.StartRegistry(t).Push("0.2.0"))
	if !strings.Contains(all, "path: vm_id") {
		all = kit.Replaced(t, all, "spec:\n  jsonPatches:\n", "spec:\n  jsonPatches:\n"+sharesVM)
	}
	// The bootstrap patches of the scout's EnvoyProxy, in the one that the Gateway has already.
	scout := kit.Render(t, "envoy-gateway/scout")
	_, patches, _ := strings.Cut(scout, "    jsonPatches:\n")
	patches, _, _ = strings.Cut(patches, "    - op: add\n      path: /stats_config/")
	// In the place of a volume: the file of the same module.
	module, err := os.ReadFile(filepath.Join(kit.Root(t), "idleguard.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "plugin.wasm")
	if err := os.WriteFile(file, module, 0o644); err != nil {
		t.Fatal(err)
	}
	patches = kit.Replaced(t, patches, "/idleguard/plugin.wasm", file)
	all = kit.Replaced(t, all, "    jsonPatches:\n    - op: add\n      path: /stats_config/", "    jsonPatches:\n"+patches+"    - op: add\n      path: /stats_config/")
	g := startGateway(t, resources+all)
	g.WaitForLane(t, "external-api", 4*time.Second)
	setup := kit.Setup{Admin: g.Admin, LB: lb, Address: address, Host: domain, Destination: "external-api", ClientIP: true, Labelled: true}
	setup.Scouted(t)
}
