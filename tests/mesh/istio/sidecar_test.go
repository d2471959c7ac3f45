package istio

import (
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

// sidecar is what there is before idleguard: the service, and an application's proxy with a port to talk to, without iptables.
const sidecar = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: external-api, namespace: shop }
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{ number: 80, name: http, protocol: HTTP }]
  endpoints: [{ address: 127.0.0.1, ports: { http: PORT } }]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: { name: default, namespace: shop }
spec:
  egress: [{ port: { number: 80, protocol: HTTP, name: http }, bind: 127.0.0.1, captureMode: NONE, hosts: ["./*"] }]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: DISABLE } }
`

func TestSidecar(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s")
	m := startMesh(t, strings.ReplaceAll(sidecar, "PORT", lb.Port()))
	proxy := m.startProxy("sidecar", "shop", map[string]string{"app": "checkout"})
	setup := kit.Setup{Admin: proxy.Admin, LB: lb, Address: "127.0.0.1:80", Host: "api.example.com", Destination: "external-api"}
	kit.WaitForPort(t, setup.Address)
	setup.FailsWithout(t)
	m.apply(kit.Render(t, "istio/sidecar", "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, "oci://"+kit.StartRegistry(t).Push("0.2.0")))
	proxy.WaitForLane(t, "external-api", 900*time.Millisecond)
	setup.Holds(t)
}
