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

// image is that of the manifests, as they are shipped.
const image = "oci://registry.example.com/idleguard:0.2.0"

func TestEgressGateway(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s")
	m := startMesh(t, strings.ReplaceAll(egress, "PORT", lb.Port())+"---\n"+plainRoute)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "egressgateway"})
	setup := kit.Setup{Admin: proxy.Admin, LB: lb, Address: "127.0.0.1:8080", Host: "api.example.com", Destination: "external-api"}
	kit.WaitForPort(t, setup.Address)
	setup.FailsWithout(t)
	m.apply(kit.Render(t, "istio/egress-gateway", "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, "oci://"+kit.StartRegistry(t).Push("0.2.0")))
	proxy.WaitForLane(t, "external-api", 900*time.Millisecond)
	setup.Holds(t)
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
	setup := kit.Setup{Admin: proxy.Admin, LB: lb, Address: "127.0.0.1:8080", Host: "api.example.com", Destination: "external-api"}
	kit.WaitForPort(t, setup.Address)
	setup.FailsWithout(t)
	m.apply(kit.Render(t, "istio/egress-gateway", "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, "oci://"+kit.StartRegistry(t).Push("0.2.0")))
	proxy.WaitForLane(t, "external-api", 900*time.Millisecond)
	setup.Holds(t)
}
