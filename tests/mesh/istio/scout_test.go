package istio

import (
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

// Nobody says what the timeout is: the scout finds it, and everybody goes to the right lane.
func TestScoutAtTheEgressGateway(t *testing.T) {
	lb := kit.StartLB(t, "fin:4s")
	m := startMesh(t, strings.ReplaceAll(egress, "PORT", lb.Port())+"---\n"+plainRoute)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "egressgateway"})
	setup := kit.Setup{Admin: proxy.Admin, LB: lb, Address: "127.0.0.1:8080", Host: "api.example.com", Destination: "external-api"}
	kit.WaitForPort(t, setup.Address)
	pushed := "oci://" + kit.StartRegistry(t).Push("0.2.0")
	m.apply(kit.Render(t, "istio/egress-gateway", image, pushed))
	proxy.WaitForLane(t, "external-api", 4*time.Second)
	m.apply(kit.Render(t, "istio/scout", image, pushed))
	setup.Scouted(t)
}
