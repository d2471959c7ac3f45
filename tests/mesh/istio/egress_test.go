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

// image is that of the manifests, as they are shipped.
const image = "oci://registry.example.com/idleguard:0.2.0"

// stale is the load that shows stale connections: pauses around the load balancer's idle timeout.
func stale(address, host string) kit.Load {
	return kit.Load{Address: address, Host: host, Clients: 25, Pause: 2 * lbIdleTimeout, Bursts: true}
}

// withoutFails holds that the load balancer does what it should: without idleguard requests fail.
func withoutFails(t *testing.T, address, host string) {
	t.Helper()
	without := stale(address, host).Run(12 * time.Second)
	t.Logf("without idleguard: %s", without)
	if without.Failed() == 0 {
		t.Error("the load balancer does not do what it should")
	}
}

// withNothingFails holds the promise, whatever the load balancer does to idle connections.
func withNothingFails(t *testing.T, lb *kit.LB, address, host string) {
	t.Helper()
	for _, mode := range []string{"fin:4s", "rst:4s", "silent-rst:4s", "swallow:4s"} {
		lb.Set(mode)
		lb.Set("close")
		// What the restart has closed may fail once, and is not counted: a moment for Envoy to see it.
		time.Sleep(500 * time.Millisecond)
		with := stale(address, host).Run(12 * time.Second)
		t.Logf("%s, with idleguard: %s", mode, with)
		if with.Failed() != 0 || with.OK < 50 {
			t.Errorf("%s: %s", mode, with)
		}
	}
	headers := kit.Received(t, address, host, [2]string{"x-idleguard-lane", "external-api=900ms"})
	if found := kit.Values(headers, "x-idleguard-lane"); len(found) != 0 {
		t.Errorf("the application gets %q", found)
	}
}

func TestEgressGateway(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s")
	m := startMesh(t, strings.ReplaceAll(egress, "PORT", lb.Port())+"---\n"+plainRoute)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "egressgateway"})
	const address, host = "127.0.0.1:8080", "api.example.com"
	kit.WaitForPort(t, address)
	withoutFails(t, address, host)
	m.apply(kit.Render(t, "istio/egress-gateway", "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, "oci://"+kit.StartRegistry(t).Push("0.2.0")))
	proxy.WaitForLane(t, "external-api", 900*time.Millisecond, 60*time.Second)
	withNothingFails(t, lb, address, host)
}

// originated is the operator's own traffic policy: TLS to the load balancer.
const originated = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: external-api, namespace: istio-system }
spec:
  host: api.example.com
  trafficPolicy: { portLevelSettings: [{ port: { number: 443 }, tls: { mode: SIMPLE, sni: localhost, insecureSkipVerify: true } }] }
`

// The lanes take over TLS from the operator's own DestinationRule, which knows nothing of them.
func TestEgressGatewayThatOriginatesTLS(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s", "--tls")
	m := startMesh(t, strings.ReplaceAll(egress, "PORT", lb.Port())+"---\n"+plainRoute+"---\n"+originated)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "egressgateway"})
	const address, host = "127.0.0.1:8080", "api.example.com"
	kit.WaitForPort(t, address)
	withoutFails(t, address, host)
	m.apply(kit.Render(t, "istio/egress-gateway", "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, "oci://"+kit.StartRegistry(t).Push("0.2.0")))
	proxy.WaitForLane(t, "external-api", 900*time.Millisecond, 60*time.Second)
	withNothingFails(t, lb, address, host)
}
