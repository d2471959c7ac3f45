// Package envoygateway runs Envoy Gateway itself on the manifests of deploy/envoy-gateway, without a cluster.
package envoygateway

import (
	"encoding/json"
	"fmt"
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

// envoy is what Envoy Gateway starts as Envoy: it only says how. Envoy itself is the test's, so that it outlives its control plane, as it does
// in a cluster.
const envoy = `#!/bin/sh
printf '%s\000' "$@" >HOME/new-arguments
mv HOME/new-arguments HOME/arguments
exec sleep 3600
`

const address = "127.0.0.1:8888"

// Gateway is a running Envoy Gateway with its Envoy.
type Gateway struct {
	kit.Admin
	t    *testing.T
	home string
	// How many times resources were applied, and when: from writing them until Envoy had them.
	applied int
	changes []change
	control *kit.Process
	envoy   *kit.Process
}

type change struct{ from, to time.Time }

// changing is whether a request of this time was sent while Envoy went over to what was applied. A worker may hear of it a moment after
// Envoy's admin interface says so.
func (g *Gateway) changing(sent time.Time) bool {
	return slices.ContainsFunc(g.changes, func(c change) bool { return sent.After(c.from) && sent.Before(c.to.Add(time.Second)) })
}

// startGateway starts Envoy Gateway with these resources, and waits for its Envoy.
func startGateway(t *testing.T, resources string) *Gateway {
	t.Helper()
	g := &Gateway{t: t, home: t.TempDir()}
	binary := filepath.Join(g.home, "data/envoy-versions/9.9.9/bin")
	if err := os.MkdirAll(binary, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(binary, "envoy"), []byte(strings.ReplaceAll(envoy, "HOME", g.home)), 0o755); err != nil {
		t.Fatal(err)
	}
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
	if err := os.WriteFile(filepath.Join(g.home, "envoy-gateway.yaml"), []byte(strings.ReplaceAll(configuration, "HOME", g.home)), 0o600); err != nil {
		t.Fatal(err)
	}
	g.apply(resources)
	g.startControlPlane()
	g.startEnvoy()
	kit.WaitForPort(t, address)
	return g
}

func (g *Gateway) startControlPlane() {
	g.t.Helper()
	g.control = kit.Start(g.t, g.home, nil, kit.Program(g.t, "ENVOY_GATEWAY", ".run/mesh/envoy-gateway"),
		"server", "--config-path", filepath.Join(g.home, "envoy-gateway.yaml"))
}

// restart takes the control plane away for this long, and starts it again, with these resources.
func (g *Gateway) restart(away time.Duration, resources string) {
	g.t.Helper()
	g.control.Stop()
	g.control = nil
	time.Sleep(away)
	g.apply(resources)
	g.startControlPlane()
}

// startEnvoy starts it as Envoy Gateway said, and waits until it says where its admin interface is.
func (g *Gateway) startEnvoy() {
	g.t.Helper()
	var arguments []string
	kit.Eventually(g.t, kit.Patience, func() string {
		if g.control.Ended() {
			g.t.Fatal("Envoy Gateway has ended")
		}
		text, err := os.ReadFile(filepath.Join(g.home, "arguments"))
		if err != nil {
			return "Envoy Gateway starts no Envoy"
		}
		arguments = strings.Split(strings.TrimSuffix(string(text), "\000"), "\000")
		return ""
	})
	g.t.Cleanup(g.tell)
	g.envoy = kit.Start(g.t, g.home, nil, kit.Envoy(g.t), arguments...)
	at := slices.Index(arguments, "--admin-address-path")
	if at < 0 || at+1 == len(arguments) {
		g.t.Fatalf("no --admin-address-path in %q", arguments)
	}
	kit.Eventually(g.t, kit.Patience, func() string {
		if g.envoy.Ended() {
			g.t.Fatal("Envoy has ended")
		}
		text, err := os.ReadFile(arguments[at+1])
		if err != nil || len(text) == 0 {
			return "Envoy does not say where its admin interface is"
		}
		g.Admin = kit.Admin{URL: "http://" + strings.TrimSpace(string(text))}
		return ""
	})
}

// refused is why Envoy itself answered 503, and how often, since it had said this many lines: its log, and one of JSON for each request.
func (g *Gateway) refused(since int) map[string]int {
	reasons := map[string]int{}
	for _, line := range g.envoy.Lines()[since:] {
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
	for _, line := range g.envoy.Lines() {
		if strings.HasPrefix(line, "[") && !strings.Contains(line, "[envoy_bug]") {
			lines = append(lines, line)
		}
	}
	g.t.Logf("Envoy: %s", strings.Join(lines[max(0, len(lines)-30):], "\n"))
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

// apply writes all resources anew, at once, and waits until Envoy has them if there is a control plane to tell it.
func (g *Gateway) apply(resources string) {
	g.t.Helper()
	g.applied++
	name := fmt.Sprintf("applied-%d.example.com", g.applied)
	from := time.Now()
	g.write(resources + "---\n" + strings.ReplaceAll(marker, "NAME", name))
	if g.control == nil {
		return
	}
	g.Applied(g.t, name)
	g.Warm(g.t)
	g.changes = append(g.changes, change{from, time.Now()})
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
	g.WaitForLane(t, "external-api", 900*time.Millisecond)
	setup.Holds(t)
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
	g.WaitForLane(t, "external-api", 4*time.Second)
	kit.CheckProxyProtocol(t, address, domain)
}
