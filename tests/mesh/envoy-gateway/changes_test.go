package envoygateway

import (
	"slices"
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

// settled is a moment for the filter, which its workers hear of one after the other.
const settled = 2 * time.Second

// guarded is a Gateway with idleguard, in front of a load balancer that forgets connections after 5 s.
type guarded struct {
	*Gateway
	registry  *kit.Registry
	resources string
	// first is the image that it runs.
	first string
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{registry: kit.StartRegistry(t), resources: strings.ReplaceAll(operators, "LB_PORT", kit.StartLB(t, "silent-rst:5s").Port()) + "---\n"}
	g.first = g.registry.Push("0.2.0")
	g.Gateway = startGateway(t, g.resources+manifests(t, "lbIdleTimeout: learn", "lbIdleTimeout: 5s", image, g.first))
	g.lane(4 * time.Second)
	return g
}

// with is the manifests with this timeout and image.
func (g *guarded) with(lbIdleTimeout, pushed string) string {
	g.t.Helper()
	return manifests(g.t, "lbIdleTimeout: learn", "lbIdleTimeout: "+lbIdleTimeout, image, pushed)
}

// set applies them.
func (g *guarded) set(lbIdleTimeout, pushed string) {
	g.t.Helper()
	g.apply(g.resources + g.with(lbIdleTimeout, pushed))
}

// lane waits until it is in force.
func (g *guarded) lane(idleTimeout time.Duration) {
	g.t.Helper()
	g.WaitForLane(g.t, "external-api", idleTimeout)
}

// At 200 requests a second nothing fails while something changes, and no client ever chooses its address.
func TestChangesUnderTraffic(t *testing.T) {
	g := startGuarded(t)
	load := kit.Forged(address, domain)
	load.Under(t, "the timeout is changed", func(*testing.T) {
		g.set("2s", g.first)
		g.lane(900 * time.Millisecond)
		time.Sleep(settled)
		g.set("5s", g.first)
		g.lane(4 * time.Second)
	})
	load.Under(t, "the control plane is restarted", func(*testing.T) {
		g.restart(3*time.Second, g.resources+g.with("2s", g.first))
		g.lane(900 * time.Millisecond)
		g.set("5s", g.first)
		g.lane(4 * time.Second)
	})
	load.Under(t, "a lane is added and removed", func(t *testing.T) {
		before, after := g.with("3s", g.first), added(t, g.with("3s", g.first))
		withoutFilter := g.resources + kit.NotOfKind(after, "EnvoyExtensionPolicy") + "---\n"
		g.apply(withoutFilter + kit.OfKind(before, "EnvoyExtensionPolicy"))
		g.apply(g.resources + after)
		g.lane(2 * time.Second)
		time.Sleep(settled)
		g.apply(withoutFilter + kit.OfKind(g.with("5s", g.first), "EnvoyExtensionPolicy"))
		g.lane(4 * time.Second)
		time.Sleep(settled)
		g.set("5s", g.first)
	})
}

func TestModulesUnderTraffic(t *testing.T) {
	g := startGuarded(t)
	load := kit.Forged(address, domain)
	load.Under(t, "a new version of the module", func(t *testing.T) {
		g.set("5s", g.registry.PushModule(kit.OtherModule(t), "0.2.1"))
		time.Sleep(3 * settled)
		g.lane(4 * time.Second)
	})
	// It answers everything by itself then: a policy that it can't translate makes the route fail closed, as `failOpen: false` says.
	load.Denied = "500 "
	// It takes the filter out of the listener a moment before the routes answer 500: a weakness of such a change, which docs/envoy-gateway.md names.
	load.Tolerated = func(failure string, sent time.Time) bool {
		return failure == "the client chose its address" && g.changing(sent)
	}
	load.Under(t, "a module that can't be loaded", func(t *testing.T) {
		g.set("5s", g.registry.PushModule([]byte("no module"), "broken"))
		time.Sleep(3 * settled)
		g.set("5s", g.first)
		kit.WaitForAnswer(t, address, domain)
	})
	load.Under(t, "an image that is not there", func(t *testing.T) {
		g.set("5s", strings.ReplaceAll(g.first, "0.2.0", "none"))
		time.Sleep(3 * settled)
		g.set("5s", g.first)
		kit.WaitForAnswer(t, address, domain)
	})
	load.Denied, load.Tolerated = "", nil
	load.Under(t, "the registry is gone", func(*testing.T) {
		g.registry.Close()
		g.set("2s", g.first)
		g.lane(900 * time.Millisecond)
		g.set("5s", g.first)
		g.lane(4 * time.Second)
	})
}

// added is the manifests with one more lane.
func added(t *testing.T, manifests string) string {
	t.Helper()
	route := kit.OfKind(manifests, "HTTPRoute")
	_, last, found := strings.Cut(route, "    name: idle-4s\n")
	policy := kit.OfKind(manifests, "BackendTrafficPolicy")
	if !found {
		t.Fatalf("no lane to copy in %s", route)
	}
	lane := kit.Replaced(t, last, "external-api=900ms", "external-api=2s", "idle-900ms", "idle-2s")
	another := kit.Replaced(t, kit.Documents(policy)[1], "idleguard-4s", "idleguard-2s", "idle-4s", "idle-2s", "connectionIdleTimeout: 4s", "connectionIdleTimeout: 2s")
	return kit.Replaced(t, manifests, route, route+lane,
		"            httproute/default/api/rule/3: 900ms\n", "            httproute/default/api/rule/3: 900ms\n            httproute/default/api/rule/4: 2s\n") +
		"---\n" + another
}

// Resources come and go in every order.
func TestOrdersUnderTrafficFilterLast(t *testing.T) { inOrders(t, [3]int{0, 1, 2}, [3]int{1, 0, 2}) }

func TestOrdersUnderTrafficFilterBetween(t *testing.T) {
	inOrders(t, [3]int{0, 2, 1}, [3]int{1, 2, 0})
}

func TestOrdersUnderTrafficFilterFirst(t *testing.T) {
	inOrders(t, [3]int{2, 0, 1}, [3]int{2, 1, 0})
}

// What refuses requests in some orders is no part of idleguard: whoever asks for a route that comes or goes meets it, too.
func TestRoutesComeAndGoWithoutFilter(t *testing.T) {
	resources := strings.ReplaceAll(operators, "LB_PORT", kit.StartLB(t, "silent-rst:5s").Port()) + "---\n" + own + "---\n"
	all := manifests(t)
	resources += kit.OfKind(all, "EnvoyProxy") + "---\n"
	g := startGateway(t, resources+plainRoute)
	load := kit.Plain(address, domain)
	load.Headers, load.Watched = map[string]string{"x-idleguard-lane": "external-api=4s"}, true
	for range 3 {
		g.refusesOnlyIf(true, load, "come", func(*testing.T) { g.apply(resources + kit.OfKind(all, "BackendTrafficPolicy", "HTTPRoute")) })
		g.refusesOnlyIf(true, load, "go", func(*testing.T) { g.apply(resources + plainRoute) })
	}
}

// groups come and go together: idle timeouts, routes, the filter.
var groups = [3][]string{
	{"BackendTrafficPolicy", "ClientTrafficPolicy"}, {"HTTPRoute"}, {"EnvoyExtensionPolicy", "EnvoyPatchPolicy"},
}

// own is the operator's idle timeout, with which nothing fails before idleguard comes and after it has gone.
const own = `
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: { name: own, namespace: default }
spec:
  targetRefs: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: api }]
  timeout: { http: { connectionIdleTimeout: 3s } }
`

func inOrders(t *testing.T, orders ...[3]int) {
	lb := kit.StartLB(t, "silent-rst:5s")
	resources := strings.ReplaceAll(operators, "LB_PORT", lb.Port()) + "---\n" + own + "---\n"
	all := manifests(t, "lbIdleTimeout: learn", "lbIdleTimeout: 5s", image, kit.StartRegistry(t).Push("0.2.0"))
	all = kit.Replaced(t, all, "          lb_idle_timeout: 5s\n", "          lb_idle_timeout: 5s\n          idle_timeout: 3s\n")
	resources += kit.OfKind(all, "EnvoyProxy") + "---\n"
	g := startGateway(t, resources+plainRoute)
	there := [3]bool{}
	set := func(group int, is bool) {
		there[group] = is
		text := resources
		if !there[1] {
			text += plainRoute + "---\n"
		}
		for group, kinds := range groups {
			if there[group] {
				text += kit.OfKind(all, kinds...) + "---\n"
			}
		}
		g.apply(text)
		time.Sleep(settled)
	}
	for _, order := range orders {
		name := groups[order[0]][0] + ", " + groups[order[1]][0] + ", " + groups[order[2]][0]
		filter, routes := slices.Index(order[:], 2), slices.Index(order[:], 1)
		g.refusesOnlyIf(filter < routes, kit.Plain(address, domain), "apply "+name, func(*testing.T) {
			for _, group := range order {
				set(group, true)
			}
			g.WaitForLane(t, "external-api", 4*time.Second)
			time.Sleep(settled)
		})
		g.refusesOnlyIf(routes < filter, kit.Plain(address, domain), "remove "+name, func(*testing.T) {
			for _, group := range order {
				set(group, false)
			}
		})
	}
}

// refusesOnlyIf holds that nothing fails under a change, or, where the filter is there before the routes or stays when they go, and so sends
// requests to a rule whose cluster Envoy has not yet, or no more, that nothing fails but for this, and but while Envoy goes over.
func (g *Gateway) refusesOnlyIf(warned bool, load kit.Load, name string, change func(t *testing.T)) {
	if warned && !load.Watched {
		load.Tolerated = func(failure string, sent time.Time) bool {
			return (failure == "503 " || failure == "503 no healthy upstream") && g.changing(sent)
		}
	}
	since := len(g.envoy.Lines())
	load.Under(g.t, name, change)
	time.Sleep(settled) // it writes its log once a second
	for reason, count := range g.refused(since) {
		g.t.Logf("%d × 503: %s", count, reason)
		if !strings.HasPrefix(reason, "NC cluster_not_found") && !strings.HasPrefix(reason, "UH no_healthy_upstream") {
			g.t.Errorf("%d × 503 for another reason: %s", count, reason)
		}
	}
}
