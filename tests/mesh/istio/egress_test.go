package istio

import (
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

// egress is what an operator has before idleguard comes: a gateway, and the service behind the load balancer.
const egress = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: external-api, namespace: istio-system }
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{ number: 443, name: http, protocol: HTTP }]
  endpoints: [{ address: 127.0.0.1, ports: { http: PORT } }]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: istio-egressgateway, namespace: istio-system }
spec:
  selector: { istio: egressgateway }
  servers: [{ port: { number: 8080, name: http, protocol: HTTP }, hosts: ["*"] }]
`

// plainRoute is the operator's own route, which deploy/istio/egress-gateway copies.
const plainRoute = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: idleguard, namespace: istio-system }
spec:
  hosts: [api.example.com]
  gateways: [istio-egressgateway]
  http:
  - route: [{ destination: { host: api.example.com, port: { number: 443 } } }]
`

const lbIdleTimeout = 4 * time.Second

// stale is the load that shows stale connections: pauses around the load balancer's idle timeout.
func stale(address, host string) kit.Load {
	return kit.Load{Address: address, Host: host, Clients: 40, Pause: 2 * lbIdleTimeout}
}

func TestEgressGateway(t *testing.T) {
	registry := kit.StartRegistry(t)
	lb := kit.StartLB(t, "silent-rst:4s")
	m := startMesh(t, strings.ReplaceAll(egress, "PORT", lb.Port())+"---\n"+plainRoute)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "egressgateway"})
	const address = "127.0.0.1:8080"
	kit.WaitForPort(t, address)

	without := stale(address, "api.example.com").Run(12 * time.Second)
	t.Logf("without idleguard: %s", without)
	if without.Failed() == 0 {
		t.Error("the load balancer does not do what it should")
	}

	manifests := kit.Render(t, "istio/egress-gateway", "lbIdleTimeout: learn", "lbIdleTimeout: 4s",
		"oci://registry.example.com/idleguard:0.2.0", "oci://"+registry.Push("0.2.0"))
	m.apply(manifests)
	proxy.WaitForLane(t, "external-api", 900*time.Millisecond, 60*time.Second)
	for _, mode := range []string{"fin:4s", "rst:4s", "silent-rst:4s", "swallow:4s"} {
		lb.Set(mode)
		lb.Set("close")
		with := stale(address, "api.example.com").Run(12 * time.Second)
		t.Logf("%s, with idleguard: %s", mode, with)
		if with.Failed() != 0 || with.OK < 50 {
			t.Errorf("%s: %s", mode, with)
		}
	}
	headers := kit.Received(t, address, "api.example.com")
	if found := kit.Values(headers, "x-idleguard-lane"); len(found) != 0 {
		t.Errorf("the application gets %q", found)
	}
}
