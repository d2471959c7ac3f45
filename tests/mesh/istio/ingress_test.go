package istio

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

// slice is what Kubernetes makes of a service: its endpoints, here the scripted load balancer.
func slice(service, port string) string {
	return fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: %[1]s-1, namespace: shop, labels: { kubernetes.io/service-name: %[1]s } }
addressType: IPv4
endpoints: [{ addresses: [127.0.0.1], conditions: { ready: true } }]
ports: [{ name: http, port: %[2]s, protocol: TCP }]
`, service, port)
}

// shop is the service behind the gateway.
const shop = `
apiVersion: v1
kind: Service
metadata: { name: shop, namespace: shop }
spec: { clusterIP: 10.96.0.1, selector: { app: shop }, ports: [{ name: http, port: 80, targetPort: 8080 }] }
`

const ingressGateway = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: istio-ingressgateway, namespace: istio-system }
spec:
  selector: { istio: ingressgateway }
  servers: [{ port: { number: 8080, name: http, protocol: HTTP }, hosts: ["*"] }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: idleguard, namespace: istio-system }
spec:
  hosts: [shop.example.com]
  gateways: [istio-ingressgateway]
  http: [{ route: [{ destination: { host: shop.shop.svc.cluster.local } }] }]
`

// The Gateway API: Istio finds a gateway's proxies by the service of their deployment.
const gatewayAPI = `
apiVersion: v1
kind: Service
metadata: { name: shop-gateway-istio, namespace: istio-ingress, labels: { gateway.networking.k8s.io/gateway-name: shop-gateway } }
spec:
  clusterIP: 10.96.0.2
  selector: { gateway.networking.k8s.io/gateway-name: shop-gateway }
  ports: [{ name: http, port: 8080, targetPort: 8080 }]
---
apiVersion: v1
kind: Pod
metadata: { name: proxy, namespace: istio-ingress, labels: { gateway.networking.k8s.io/gateway-name: shop-gateway } }
spec: { containers: [{ name: istio-proxy, image: none }] }
status: { phase: Running, podIP: 127.0.0.1, podIPs: [{ ip: 127.0.0.1 }], conditions: [{ type: Ready, status: "True" }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: shop-gateway-istio-1, namespace: istio-ingress, labels: { kubernetes.io/service-name: shop-gateway-istio } }
addressType: IPv4
endpoints: [{ addresses: [127.0.0.1], conditions: { ready: true }, targetRef: { kind: Pod, name: proxy, namespace: istio-ingress } }]
ports: [{ name: http, port: 8080, protocol: TCP }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: shop-gateway, namespace: istio-ingress }
spec:
  gatewayClassName: istio
  listeners: [{ name: http, protocol: HTTP, port: 8080, allowedRoutes: { namespaces: { from: All } } }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: shop, namespace: shop }
spec:
  parentRefs: [{ name: shop-gateway, namespace: istio-ingress }]
  hostnames: [shop.example.com]
  rules: [{ name: base, backendRefs: [{ name: shop, port: 80 }] }]
`

func TestIngressGateway(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s")
	m := startMesh(t, shop+"---\n"+slice("shop", lb.Port())+"---\n"+ingressGateway)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "ingressgateway"})
	behindIngress(t, m, proxy, lb, kit.Render(t, "istio/ingress-gateway",
		"lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, "oci://"+kit.StartRegistry(t).Push("0.2.0")))
}

func TestIngressGatewayOfTheGatewayAPI(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s")
	slices := []string{shop, gatewayAPI, slice("shop", lb.Port())}
	for _, lane := range []string{"54s", "4s", "900ms"} {
		slices = append(slices, slice("shop-idle-"+lane, lb.Port()))
	}
	m := startMesh(t, strings.Join(slices, "---\n"))
	proxy := m.startProxy("router", "istio-ingress", map[string]string{"gateway.networking.k8s.io/gateway-name": "shop-gateway"})
	behindIngress(t, m, proxy, lb, kit.Render(t, "istio/ingress-gateway-api",
		"lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, "oci://"+kit.StartRegistry(t).Push("0.2.0")))
}

// behindIngress holds what both kinds of gateways do: stale connections without idleguard, none with it, and the client's address.
func behindIngress(t *testing.T, m *Mesh, proxy *Proxy, lb *kit.LB, manifests string) {
	setup := kit.Setup{Admin: proxy.Admin, LB: lb, Address: "127.0.0.1:8080", Host: "shop.example.com", Destination: "shop", ClientIP: true}
	kit.WaitForPort(t, setup.Address)
	setup.FailsWithout(t)
	m.apply(manifests)
	proxy.WaitForLane(t, "shop", 900*time.Millisecond)
	setup.Holds(t)
}

// Mistakes in the manifests are found.
func TestBrokenManifestsAreFound(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s")
	m := startMesh(t, shop+"---\n"+slice("shop", lb.Port())+"---\n"+ingressGateway)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "ingressgateway"})
	setup := kit.Setup{Admin: proxy.Admin, LB: lb, Address: "127.0.0.1:8080", Host: "shop.example.com", Destination: "shop", ClientIP: true}
	kit.WaitForPort(t, setup.Address)
	manifests := kit.Render(t, "istio/ingress-gateway", "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, "oci://"+kit.StartRegistry(t).Push("0.2.0"))
	m.apply(manifests)
	proxy.WaitForLane(t, "shop", 900*time.Millisecond)
	setup.Finds(t, manifests, []kit.Break{
		{Name: "another header", From: "        x-idleguard-lane:\n", To: "        x-other-lane:\n"},
		{Name: "a misspelt lane in a route", From: "        subset: idle-900ms\n", To: "        subset: idle-900s\n"},
		{Name: "a misspelt lane in the plugin", From: "          outbound|80|idle-900ms|", To: "          outbound|80|idle-900s|"},
		{Name: "no skip_xff_append", From: "          skip_xff_append: true\n", To: "          skip_xff_append: false\n"},
	}, func(manifests string) {
		m.apply(manifests)
		m.settle(proxy)
	})
}
