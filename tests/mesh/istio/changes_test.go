package istio

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

// settled is a moment for the filter, which its workers hear of one after the other.
const settled = 2 * time.Second

// marker is a route for nobody, by whose name it is seen that a gateway's proxy has what was applied before.
const marker = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: marker, namespace: istio-system }
spec:
  hosts: [NAME]
  gateways: [istio-ingressgateway]
  http: [{ route: [{ destination: { host: shop.shop.svc.cluster.local } }] }]
`

// settle waits until the proxy has what was applied.
func (m *Mesh) settle(proxy *Proxy) {
	m.t.Helper()
	m.applied++
	name := fmt.Sprintf("applied-%d.example.com", m.applied)
	m.apply(strings.ReplaceAll(marker, "NAME", name))
	proxy.Applied(m.t, name)
	proxy.Warm(m.t)
	time.Sleep(settled / 2)
}

// added is the manifests with one more lane.
func added(t *testing.T, manifests string) string {
	t.Helper()
	return kit.Replaced(t, manifests,
		"  subsets:\n", "  subsets:\n  - name: idle-2s\n    trafficPolicy: { connectionPool: { http: { idleTimeout: 2s } } }\n",
		"  http:\n  - headers:\n", `  http:
  - match: [{ headers: { x-idleguard-lane: { exact: shop=2s } } }]
    headers: { request: { remove: [x-idleguard-lane] } }
    route: [{ destination: { host: shop.shop.svc.cluster.local, subset: idle-2s, port: { number: 80 } } }]
  - headers:
`,
		"        lanes:\n", "        lanes:\n          outbound|80|idle-2s|shop.shop.svc.cluster.local: 2s\n")
}

// orders are those in which three things can be done.
var orders = [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}

// At 200 requests a second nothing fails while something changes, and no client ever chooses its address.
func TestChangesUnderTraffic(t *testing.T) {
	registry := kit.StartRegistry(t)
	lb := kit.StartLB(t, "silent-rst:5s")
	operators := shop + "---\n" + slice("shop", lb.Port()) + "---\n" + ingressGateway
	m := startMesh(t, operators)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "ingressgateway"})
	const address, host = "127.0.0.1:8080", "shop.example.com"
	kit.WaitForPort(t, address)
	first := "oci://" + registry.Push("0.2.0")
	with := func(lbIdleTimeout, image_ string) string {
		return kit.Render(t, "istio/ingress-gateway", "lbIdleTimeout: learn", "lbIdleTimeout: "+lbIdleTimeout, image, image_)
	}
	lane := func(idleTimeout time.Duration) { proxy.WaitForLane(t, "shop", idleTimeout) }
	manifests := with("5s", first)
	m.apply(manifests)
	lane(4 * time.Second)
	load := kit.Forged(address, host)

	load.Under(t, "the timeout is changed", func(*testing.T) {
		m.apply(with("2s", first))
		lane(900 * time.Millisecond)
		m.settle(proxy)
		m.apply(manifests)
		lane(4 * time.Second)
	})
	// Proxies go on without it, and with what the new one says.
	load.Under(t, "the control plane is restarted", func(*testing.T) {
		m.restart(3*time.Second, operators+"---\n"+with("2s", first))
		lane(900 * time.Millisecond)
		m.apply(manifests)
		lane(4 * time.Second)
	})
	load.Under(t, "a lane is added and removed", func(t *testing.T) {
		more := added(t, with("3s", first))
		for _, kind := range []string{"DestinationRule", "VirtualService", "WasmPlugin"} {
			m.apply(kit.OfKind(more, kind))
			m.settle(proxy)
		}
		lane(2 * time.Second)
		m.settle(proxy)
		for _, kind := range []string{"WasmPlugin", "VirtualService", "DestinationRule"} {
			m.apply(kit.OfKind(manifests, kind))
			m.settle(proxy)
		}
		lane(4 * time.Second)
	})
	load.Under(t, "a new version of the module", func(t *testing.T) {
		before := module(t, proxy)
		m.apply(with("5s", "oci://"+registry.PushModule(kit.OtherModule(t), "0.2.1")))
		kit.Eventually(t, kit.Patience, func() string {
			if module(t, proxy) == before {
				return "the proxy still runs " + before
			}
			return ""
		})
		time.Sleep(settled)
		lane(4 * time.Second)
	})
	// Istio's agent takes the place of a filter that it can't have by one that lets nobody in: so says every failStrategy but
	// FAIL_OPEN. Nobody chooses an address meanwhile.
	load.Denied = "403 RBAC: access denied"
	load.Under(t, "a module that can't be loaded", func(t *testing.T) {
		m.apply(with("5s", "oci://"+registry.PushModule([]byte("no module"), "broken")))
		time.Sleep(3 * settled)
		m.apply(manifests)
		m.settle(proxy)
		kit.WaitForAnswer(t, address, host)
	})
	load.Under(t, "an image that is not there", func(t *testing.T) {
		m.apply(with("5s", strings.ReplaceAll(first, "0.2.0", "none")))
		time.Sleep(3 * settled)
		m.apply(manifests)
		m.settle(proxy)
		kit.WaitForAnswer(t, address, host)
	})
	load.Denied = ""
	load.Under(t, "the registry is gone", func(*testing.T) {
		registry.Close()
		m.apply(with("2s", first))
		lane(900 * time.Millisecond)
		m.apply(manifests)
		lane(4 * time.Second)
	})
}

var modules = regexp.MustCompile(`/var/lib/istio/data/[^"]+`)

// module is the file of the module that a proxy runs.
func module(t *testing.T, proxy *Proxy) string {
	t.Helper()
	dump, err := proxy.Get("/config_dump?resource=ecds_filters")
	if err != nil {
		t.Fatal(err)
	}
	return modules.FindString(dump)
}

// own is the operator's idle timeout, with which nothing fails before idleguard comes and after it has gone.
const own = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: own, namespace: shop }
spec:
  host: shop.shop.svc.cluster.local
  trafficPolicy: { connectionPool: { http: { idleTimeout: 3s } } }
`

// Resources come and go in every order. Clients may choose their address only where nobody keeps them from it: without the filter.
func TestOrdersUnderTraffic(t *testing.T) {
	registry := kit.StartRegistry(t)
	m := startMesh(t, shop+"---\n"+slice("shop", kit.StartLB(t, "silent-rst:5s").Port())+"---\n"+ingressGateway+"---\n"+own)
	proxy := m.startProxy("router", "istio-system", map[string]string{"istio": "ingressgateway"})
	const address, host = "127.0.0.1:8080", "shop.example.com"
	kit.WaitForPort(t, address)
	manifests := kit.Render(t, "istio/ingress-gateway", "lbIdleTimeout: learn", "lbIdleTimeout: 5s", image, "oci://"+registry.Push("0.2.0"))
	manifests = kit.Replaced(t, manifests, "lb_idle_timeout: 5s\n", "lb_idle_timeout: 5s\n        idle_timeout: 3s\n")
	kinds := [3]string{"DestinationRule", "VirtualService", "WasmPlugin"}
	load := kit.Plain(address, host)
	for _, order := range orders {
		names := []string{kinds[order[0]], kinds[order[1]], kinds[order[2]]}
		// A route to a lane that is not there answers 503, once the filter sends requests there.
		load.Denied = ""
		if position(order, 0) == 2 {
			load.Denied = "503 "
		}
		load.Under(t, "apply "+strings.Join(names, ", "), func(t *testing.T) {
			m.apply(kit.OfKind(manifests, "EnvoyFilter"))
			for _, kind := range names {
				m.apply(kit.OfKind(manifests, kind))
				m.settle(proxy)
			}
			proxy.WaitForLane(t, "shop", 4*time.Second)
			m.settle(proxy)
		})
		load.Denied = ""
		if position(order, 0) == 0 {
			load.Denied = "503 "
		}
		remove := func(t *testing.T) {
			for _, kind := range names {
				if kind == "VirtualService" {
					m.apply(kit.OfKind(ingressGateway, kind))
				} else {
					m.remove(kit.OfKind(manifests, kind))
				}
				m.settle(proxy)
			}
			m.remove(kit.OfKind(manifests, "EnvoyFilter"))
			m.settle(proxy)
		}
		load.Under(t, "remove "+strings.Join(names, ", "), remove)
	}
}

// position is where in an order something is done.
func position(order [3]int, what int) int {
	for at, done := range order {
		if done == what {
			return at
		}
	}
	return -1
}
