// Package envoygateway runs Envoy Gateway itself on the manifests of deploy/envoy-gateway, without a cluster.
package envoygateway

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

func TestMain(m *testing.M) { kit.Main(m) }

// operators is what is there before idleguard comes. Standalone, a service is a Backend.
const operators = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: eg }
spec: { controllerName: gateway.envoyproxy.io/gatewayclass-controller }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: eg, namespace: default }
spec:
  gatewayClassName: eg
  infrastructure: { parametersRef: { group: gateway.envoyproxy.io, kind: EnvoyProxy, name: idleguard } }
  listeners: [{ name: http, protocol: HTTP, port: 8888 }]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: api, namespace: default }
spec: { endpoints: [{ ip: { address: 127.0.0.1, port: LB_PORT } }] }
`

// host lets Envoy Gateway start an Envoy that is there, and is a part of every EnvoyProxy.
const host = "  provider: { type: Host, host: { envoyVersion: 9.9.9 } }\n"

// plainRoute is the operator's own route, which deploy/envoy-gateway copies.
const plainRoute = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: default }
spec:
  parentRefs: [{ name: eg }]
  rules:
  - name: base
    matches: [{ path: { type: PathPrefix, value: / } }]
    backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: api }]
`

// wasmCluster makes the way to Envoy Gateway's own server of modules work without a cluster, where its name does not resolve and its
// certificate is another authority's.
const wasmCluster = `
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata: { name: standalone, namespace: default }
spec:
  targetRef: { group: gateway.networking.k8s.io, kind: Gateway, name: eg }
  type: JSONPatch
  jsonPatches:
  - type: type.googleapis.com/envoy.config.cluster.v3.Cluster
    name: wasm_cluster
    operation: { op: replace, path: /load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address/address, value: 127.0.0.1 }
  - type: type.googleapis.com/envoy.config.cluster.v3.Cluster
    name: wasm_cluster
    operation:
      op: replace
      path: /transport_socket/typed_config/common_tls_context/tls_certificate_sds_secret_configs/0
      value: { name: xds_certificate, sds_config: { resource_api_version: V3, path_config_source: { path: CONFIG_HOME/certs/envoy/xds-certificate.json } } }
`

const configuration = `
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyGateway
gateway: { controllerName: gateway.envoyproxy.io/gatewayclass-controller }
provider:
  type: Custom
  custom:
    resource: { type: File, file: { paths: [HOME/resources.yaml] } }
    infrastructure:
      type: Host
      host: { configHome: HOME/config, dataHome: HOME/data, stateHome: HOME/state, runtimeDir: HOME/run }
extensionApis: { enableEnvoyPatchPolicy: true, enableBackend: true }
logging: { level: { default: info } }
`

// envoy is what Envoy Gateway starts as Envoy: what it says goes to a file.
const envoy = `#!/bin/sh
exec ENVOY "$@" >HOME/envoy.log 2>&1
`

const address = "127.0.0.1:8888"

// Gateway is a running Envoy Gateway with the Envoy that it started.
type Gateway struct {
	kit.Admin
	t    *testing.T
	home string
	// How many times resources were applied.
	applied int
	*kit.Process
}

// startGateway starts Envoy Gateway with these resources, and waits for its Envoy.
func startGateway(t *testing.T, resources string) *Gateway {
	t.Helper()
	g := &Gateway{t: t, home: t.TempDir()}
	binary := filepath.Join(g.home, "data/envoy-versions/9.9.9/bin")
	if err := os.MkdirAll(binary, 0o755); err != nil {
		t.Fatal(err)
	}
	started := strings.NewReplacer("HOME", g.home, "ENVOY", kit.Envoy(t)).Replace(envoy)
	if err := os.WriteFile(filepath.Join(binary, "envoy"), []byte(started), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.tell)
	program := kit.Program(t, "ENVOY_GATEWAY", ".run/mesh/envoy-gateway")
	if output, err := kit.Command(program, "certgen", "--local", "--config-home", filepath.Join(g.home, "config")); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	for _, file := range []string{"ca.crt", "tls.crt", "tls.key"} {
		text, err := os.ReadFile(filepath.Join(g.home, "config/certs/envoy", file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join("/certs", file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.apply(resources)
	configured := filepath.Join(g.home, "envoy-gateway.yaml")
	if err := os.WriteFile(configured, []byte(strings.ReplaceAll(configuration, "HOME", g.home)), 0o600); err != nil {
		t.Fatal(err)
	}
	g.Process = kit.Start(g.t, g.home, nil, program, "server", "--config-path", configured)
	g.findAdmin()
	kit.WaitForPort(t, address)
	return g
}

// said is what Envoy wrote: its log, and a line of JSON for each request.
func (g *Gateway) said() string {
	text, err := os.ReadFile(filepath.Join(g.home, "envoy.log"))
	if err != nil {
		g.t.Error(err)
	}
	return string(text)
}

// refused is why Envoy itself answered 503, and how often, since it had written this much.
func (g *Gateway) refused(since int) map[string]int {
	reasons := map[string]int{}
	for line := range strings.Lines(g.said()[since:]) {
		var request struct {
			Code    int    `json:"response_code"`
			Flags   string `json:"response_flags"`
			Details string `json:"response_code_details"`
			Cluster string `json:"upstream_cluster"`
		}
		if json.Unmarshal([]byte(line), &request) == nil && request.Code == 503 {
			reasons[request.Flags+" "+request.Details+" "+request.Cluster]++
		}
	}
	return reasons
}

// tell shows the end of Envoy's log if the test has failed.
func (g *Gateway) tell() {
	if !g.t.Failed() {
		return
	}
	var lines []string
	for line := range strings.Lines(g.said()) {
		if strings.HasPrefix(line, "[") {
			lines = append(lines, line)
		}
	}
	g.t.Logf("Envoy: %s", strings.Join(lines[max(0, len(lines)-30):], ""))
}

// findAdmin reads where the Envoy's admin interface is from the file that it is told to write.
func (g *Gateway) findAdmin() {
	g.t.Helper()
	kit.Eventually(g.t, 60*time.Second, func() string {
		missing := "Envoy does not say where its admin interface is"
		_ = filepath.WalkDir(g.home, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasPrefix(filepath.Base(path), "admin-address") {
				if text, err := os.ReadFile(path); err == nil && len(text) > 0 {
					g.Admin = kit.Admin{URL: "http://" + strings.TrimSpace(string(text))}
					missing = ""
				}
			}
			return nil
		})
		return missing
	})
}

// marker is a route for nobody, by whose name it is seen that Envoy has what was applied.
const marker = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: marker, namespace: default }
spec:
  parentRefs: [{ name: eg }]
  hostnames: [NAME]
  rules: [{ backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: api }] }]
`

// apply writes all resources anew, at once, and waits until Envoy has them.
func (g *Gateway) apply(resources string) {
	g.t.Helper()
	g.applied++
	name := fmt.Sprintf("applied-%d.example.com", g.applied)
	g.write(resources + "---\n" + strings.ReplaceAll(marker, "NAME", name))
	if g.Process == nil {
		return
	}
	g.Applied(g.t, name)
}

func (g *Gateway) write(resources string) {
	g.t.Helper()
	resources = strings.ReplaceAll(resources+"---\n"+wasmCluster, "CONFIG_HOME", filepath.Join(g.home, "config"))
	written := filepath.Join(g.home, "new")
	if err := os.WriteFile(written, []byte(resources), 0o600); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(written, filepath.Join(g.home, "resources.yaml")); err != nil {
		g.t.Fatal(err)
	}
}

// manifests are those of deploy/envoy-gateway, with what standalone is different. Envoy Gateway refuses names with underscores unless it is
// told otherwise; here it is, so that the forged ones reach idleguard.
func manifests(t *testing.T, settings ...string) string {
	t.Helper()
	return kit.Replaced(t, kit.Render(t, "envoy-gateway", settings...),
		"  - backendRefs:\n    - name: api\n      port: 80\n", "  - backendRefs:\n    - { group: gateway.envoyproxy.io, kind: Backend, name: api }\n",
		"spec:\n  headers:\n    earlyRequestHeaders:\n", "spec:\n  headers:\n    withUnderscoresAction: Allow\n    earlyRequestHeaders:\n",
		"kind: EnvoyProxy\nmetadata:\n  name: idleguard\n  namespace: default\nspec:\n",
		"kind: EnvoyProxy\nmetadata:\n  name: idleguard\n  namespace: default\nspec:\n"+host)
}

// image is that of the manifests, as they are shipped.
const image = "registry.example.com/idleguard:0.2.0"

const domain = "www.example.com"

func TestEnvoyGateway(t *testing.T) {
	registry := kit.StartRegistry(t)
	lb := kit.StartLB(t, "silent-rst:4s")
	resources := strings.ReplaceAll(operators, "LB_PORT", lb.Port())
	all := manifests(t, "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, registry.Push("0.2.0"))
	// Proxies with another bootstrap are other proxies: theirs is there from the beginning.
	g := startGateway(t, resources+"---\n"+kit.OfKind(all, "EnvoyProxy")+"---\n"+plainRoute)
	setup := kit.Setup{Admin: g.Admin, LB: lb, Address: address, Host: domain, Destination: "external-api", ClientIP: true, Labelled: true}
	setup.FailsWithout(t)
	g.apply(resources + "---\n" + all)
	g.WaitForLane(t, "external-api", 900*time.Millisecond, 60*time.Second)
	setup.Holds(t)
}

// Mistakes in the manifests are found.
func TestBrokenManifestsAreFound(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s")
	resources := strings.ReplaceAll(operators, "LB_PORT", lb.Port()) + "---\n"
	all := manifests(t, "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, kit.StartRegistry(t).Push("0.2.0"))
	g := startGateway(t, resources+all)
	g.WaitForLane(t, "external-api", 900*time.Millisecond, 60*time.Second)
	setup := kit.Setup{Admin: g.Admin, LB: lb, Address: address, Host: domain, Destination: "external-api", ClientIP: true, Labelled: true}
	setup.Finds(t, all, []kit.Break{
		{Name: "another header", From: "      - name: x-idleguard-lane\n", To: "      - name: x-other-lane\n"},
		{Name: "a misspelt lane in a policy", From: "    sectionName: idle-900ms\n", To: "    sectionName: idle-900s\n"},
		{Name: "a misspelt lane in the plugin", From: "            httproute/default/api/rule/3: 900ms\n", To: "            httproute/default/api/rules/3: 900ms\n"},
		{Name: "no skip_xff_append", From: "/skip_xff_append\n      value: true\n", To: "/skip_xff_append\n      value: false\n"},
	}, func(manifests string) { g.apply(resources + manifests) })
}

// proxyProtocol has the Gateway expect it.
const proxyProtocol = "spec:\n  proxyProtocol: {}\n"

func TestProxyProtocol(t *testing.T) {
	registry := kit.StartRegistry(t)
	lb := kit.StartLB(t, "stable")
	resources := strings.ReplaceAll(operators, "LB_PORT", lb.Port())
	g := startGateway(t, resources+"---\n"+kit.Replaced(t, manifests(t, image, registry.Push("0.2.0")),
		"kind: ClientTrafficPolicy\nmetadata:\n  name: idleguard\n  namespace: default\nspec:\n",
		"kind: ClientTrafficPolicy\nmetadata:\n  name: idleguard\n  namespace: default\n"+proxyProtocol))
	g.WaitForLane(t, "external-api", 4*time.Second, 60*time.Second)
	kit.CheckProxyProtocol(t, address, domain)
}

// settled is a moment for the filter, which its workers hear of one after the other.
const settled = 2 * time.Second

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

// At 200 requests a second nothing fails while something changes, and no client ever chooses its address.
func TestChangesUnderTraffic(t *testing.T) {
	registry := kit.StartRegistry(t)
	lb := kit.StartLB(t, "silent-rst:5s")
	resources := strings.ReplaceAll(operators, "LB_PORT", lb.Port()) + "---\n"
	first := registry.Push("0.2.0")
	with := func(lbIdleTimeout, pushed string) string {
		return manifests(t, "lbIdleTimeout: learn", "lbIdleTimeout: "+lbIdleTimeout, image, pushed)
	}
	g := startGateway(t, resources+with("5s", first))
	lane := func(idleTimeout time.Duration) { g.WaitForLane(t, "external-api", idleTimeout, 60*time.Second) }
	lane(4 * time.Second)
	load := kit.Forged(address, domain)

	load.Under(t, "the timeout is changed", func(*testing.T) {
		g.apply(resources + with("2s", first))
		lane(900 * time.Millisecond)
		time.Sleep(settled)
		g.apply(resources + with("5s", first))
		lane(4 * time.Second)
	})
	load.Under(t, "a lane is added and removed", func(t *testing.T) {
		before, after := with("3s", first), added(t, with("3s", first))
		withoutFilter := func(all string) string { return kit.NotOfKind(all, "EnvoyExtensionPolicy") + "---\n" }
		g.apply(resources + withoutFilter(after) + kit.OfKind(before, "EnvoyExtensionPolicy"))
		g.Warm(t)
		g.apply(resources + after)
		lane(2 * time.Second)
		time.Sleep(settled)
		g.apply(resources + withoutFilter(after) + kit.OfKind(with("5s", first), "EnvoyExtensionPolicy"))
		lane(4 * time.Second)
		time.Sleep(settled)
		g.apply(resources + with("5s", first))
	})
	load.Under(t, "a new version of the module", func(t *testing.T) {
		g.apply(resources + with("5s", registry.PushModule(kit.OtherModule(t), "0.2.1")))
		time.Sleep(3 * settled)
		lane(4 * time.Second)
	})
	// It answers everything by itself then: a policy that it can't translate makes the route fail closed, as `failOpen: false` says.
	load.Denied = "500 "
	// It takes the filter out of the listener a moment before the routes answer 500: a weakness of such a change, which docs/envoy-gateway.md names.
	load.Tolerated = []string{"the client chose its address"}
	load.Under(t, "a module that can't be loaded", func(t *testing.T) {
		g.apply(resources + with("5s", registry.PushModule([]byte("no module"), "broken")))
		time.Sleep(3 * settled)
		g.apply(resources + with("5s", first))
		kit.WaitForAnswer(t, address, domain)
	})
	load.Under(t, "an image that is not there", func(t *testing.T) {
		g.apply(resources + with("5s", strings.ReplaceAll(first, "0.2.0", "none")))
		time.Sleep(3 * settled)
		g.apply(resources + with("5s", first))
		kit.WaitForAnswer(t, address, domain)
	})
	load.Denied, load.Tolerated = "", nil
	load.Under(t, "the registry is gone", func(*testing.T) {
		registry.Close()
		g.apply(resources + with("2s", first))
		lane(900 * time.Millisecond)
		g.apply(resources + with("5s", first))
		lane(4 * time.Second)
	})
}

// Resources come and go in every order.
func TestOrdersUnderTraffic(t *testing.T) {
	registry := kit.StartRegistry(t)
	// It drops nothing: what a change leaves behind on the operator's own cluster would go stale there, as it does without idleguard.
	lb := kit.StartLB(t, "stable")
	resources := strings.ReplaceAll(operators, "LB_PORT", lb.Port()) + "---\n"
	all := manifests(t, "lbIdleTimeout: learn", "lbIdleTimeout: 5s", image, registry.Push("0.2.0"))
	resources += kit.OfKind(all, "EnvoyProxy") + "---\n"
	g := startGateway(t, resources+plainRoute)
	groups := [3][]string{
		{"BackendTrafficPolicy", "ClientTrafficPolicy"}, {"HTTPRoute"}, {"EnvoyExtensionPolicy", "EnvoyPatchPolicy"},
	}
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
	load := kit.Plain(address, domain)
	for _, order := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		name := groups[order[0]][0] + ", " + groups[order[1]][0] + ", " + groups[order[2]][0]
		// Where the filter is there before the routes, or stays when they go, it sends requests to a rule whose cluster Envoy has not
		// yet, or no more: the orders that deploy/ warns of.
		load.Tolerated = nil
		if slices.Index(order[:], 2) < slices.Index(order[:], 1) {
			load.Tolerated = []string{"503 "}
		}
		since := len(g.said())
		load.Under(t, "apply "+name, func(t *testing.T) {
			for _, group := range order {
				set(group, true)
			}
			g.WaitForLane(t, "external-api", 4*time.Second, 60*time.Second)
			time.Sleep(settled)
		})
		g.onlyWithoutCluster(since)
		load.Tolerated = nil
		if slices.Index(order[:], 1) < slices.Index(order[:], 2) {
			load.Tolerated = []string{"503 ", "503 no healthy upstream"}
		}
		since = len(g.said())
		load.Under(t, "remove "+name, func(*testing.T) {
			for _, group := range order {
				set(group, false)
			}
		})
		g.onlyWithoutCluster(since)
	}
}

// onlyWithoutCluster holds that Envoy refused requests for no other reason than a cluster which it has not yet, or no more.
func (g *Gateway) onlyWithoutCluster(since int) {
	g.t.Helper()
	time.Sleep(settled) // it writes its log once a second
	for reason, count := range g.refused(since) {
		g.t.Logf("%d × 503: %s", count, reason)
		if !strings.HasPrefix(reason, "NC cluster_not_found") && !strings.HasPrefix(reason, "UH no_healthy_upstream") {
			g.t.Errorf("%d × 503 for another reason: %s", count, reason)
		}
	}
}
