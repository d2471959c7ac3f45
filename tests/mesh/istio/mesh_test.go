package istio

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"
	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/mesh"
	kubelib "istio.io/istio/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"idleguard/tests/mesh/kit"
)

// Mesh is Istio's discovery.
type Mesh struct {
	*xds.FakeDiscoveryServer
	t     *testing.T
	front *kit.Front
	stop  func()
	// How many times it was waited for a proxy.
	applied int
}

// generation is a test as far as one discovery server is concerned: what is to be cleaned up is so when that ends.
type generation struct {
	*testing.T
	cleanups []func()
}

// Cleanup is testing.T's, but for the end.
func (g *generation) Cleanup(cleanup func()) { g.cleanups = append(g.cleanups, cleanup) }

func (g *generation) end() {
	for len(g.cleanups) > 0 {
		last := g.cleanups[len(g.cleanups)-1]
		g.cleanups = g.cleanups[:len(g.cleanups)-1]
		last()
	}
}

// startMesh starts discovery with these resources.
func startMesh(t *testing.T, resources string) *Mesh {
	t.Helper()
	m := &Mesh{t: t, front: kit.StartFront(t), stop: func() {}}
	t.Cleanup(func() { m.stop() })
	m.start(resources)
	return m
}

// start starts a discovery server, which is asked once it knows everything.
func (m *Mesh) start(resources string) {
	m.t.Helper()
	settings := mesh.DefaultMeshConfig()
	settings.RootNamespace = "istio-system"
	settings.EnableAutoMtls = wrapperspb.Bool(false) // there is no authority for certificates here
	var address string
	this := &generation{T: m.t}
	m.stop = this.end
	m.FakeDiscoveryServer = xds.NewFakeDiscoveryServer(this, xds.FakeOptions{
		MeshConfig: settings,
		// As istiod has it: what changes within this time is pushed together.
		DebounceTime: 100 * time.Millisecond,
		ListenerBuilder: func() (net.Listener, error) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				address = listener.Addr().String()
			}
			return listener, err
		},
	})
	m.apply(resources)
	time.Sleep(time.Second)
	m.front.Set(address)
}

// restart takes the control plane away for this long, and starts another one, which knows these resources.
func (m *Mesh) restart(away time.Duration, resources string) {
	m.t.Helper()
	m.front.Set("")
	m.stop()
	time.Sleep(away)
	m.start(resources)
}

// apply creates resources, or changes those that are there.
func (m *Mesh) apply(resources string) {
	m.t.Helper()
	for _, document := range kit.Documents(resources) {
		if object, ok := kubernetes(document); ok {
			if err := m.applyKubernetes(object); err != nil {
				m.t.Fatalf("%v in\n%s", err, document)
			}
			continue
		}
		for _, wanted := range m.parse(document) {
			store := m.Store()
			if old := store.Get(wanted.GroupVersionKind, wanted.Name, wanted.Namespace); old != nil {
				wanted.ResourceVersion = old.ResourceVersion
				if _, err := store.Update(wanted); err != nil {
					m.t.Fatal(err)
				}
			} else if _, err := store.Create(wanted); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

// remove deletes resources.
func (m *Mesh) remove(resources string) {
	m.t.Helper()
	for _, document := range kit.Documents(resources) {
		if object, ok := kubernetes(document); ok {
			if err := m.removeKubernetes(object); err != nil {
				m.t.Fatal(err)
			}
			continue
		}
		for _, unwanted := range m.parse(document) {
			if err := m.Store().Delete(unwanted.GroupVersionKind, unwanted.Name, unwanted.Namespace, nil); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

// parse reads Istio's resources, as strictly as Istio's webhook does.
func (m *Mesh) parse(document string) []config.Config {
	m.t.Helper()
	configs, others, err := crd.ParseInputs(document)
	if err != nil || len(others) != 0 || len(configs) == 0 {
		m.t.Fatalf("%v, %d, %d in\n%s", err, len(configs), len(others), document)
	}
	for i := range configs {
		configs[i].Domain = "cluster.local"
	}
	return configs
}

// kubernetes is the object in a document, if it is one of Kubernetes or of the Gateway API.
func kubernetes(document string) (any, bool) {
	if !strings.Contains(document, "apiVersion: v1\n") && !strings.Contains(document, "apiVersion: discovery.k8s.io/") &&
		!strings.Contains(document, "apiVersion: gateway.networking.k8s.io/") {
		return nil, false
	}
	object, _, err := kubelib.IstioCodec.UniversalDeserializer().Decode([]byte(document), nil, nil)
	return object, err == nil
}

func (m *Mesh) applyKubernetes(object any) error {
	kube, api, ctx := m.KubeClient().Kube(), m.KubeClient().GatewayAPI().GatewayV1(), context.Background()
	var err error
	switch object := object.(type) {
	case *corev1.Service:
		if _, err = kube.CoreV1().Services(object.Namespace).Create(ctx, object, metav1.CreateOptions{}); err != nil {
			_, err = kube.CoreV1().Services(object.Namespace).Update(ctx, object, metav1.UpdateOptions{})
		}
	case *corev1.Pod:
		_, err = kube.CoreV1().Pods(object.Namespace).Create(ctx, object, metav1.CreateOptions{})
	case *discoveryv1.EndpointSlice:
		_, err = kube.DiscoveryV1().EndpointSlices(object.Namespace).Create(ctx, object, metav1.CreateOptions{})
	case *gateway.GatewayClass:
		_, err = api.GatewayClasses().Create(ctx, object, metav1.CreateOptions{})
	case *gateway.Gateway:
		_, err = api.Gateways(object.Namespace).Create(ctx, object, metav1.CreateOptions{})
	case *gateway.HTTPRoute:
		if _, err = api.HTTPRoutes(object.Namespace).Create(ctx, object, metav1.CreateOptions{}); err != nil {
			_, err = api.HTTPRoutes(object.Namespace).Update(ctx, object, metav1.UpdateOptions{})
		}
	default:
		err = fmt.Errorf("%T is not known here", object)
	}
	return err
}

func (m *Mesh) removeKubernetes(object any) error {
	kube, api, ctx, options := m.KubeClient().Kube(), m.KubeClient().GatewayAPI().GatewayV1(), context.Background(), metav1.DeleteOptions{}
	switch object := object.(type) {
	case *corev1.Service:
		return kube.CoreV1().Services(object.Namespace).Delete(ctx, object.Name, options)
	case *gateway.HTTPRoute:
		return api.HTTPRoutes(object.Namespace).Delete(ctx, object.Name, options)
	}
	return fmt.Errorf("%T is not removed here", object)
}

// Proxy is an Envoy under Istio's agent.
type Proxy struct {
	kit.Admin
	*kit.Process
}

// startProxy starts the agent as "router" or "sidecar", with the labels of its workload.
func (m *Mesh) startProxy(kind, namespace string, labels map[string]string) *Proxy {
	t := m.t
	t.Helper()
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/istio").Output()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	proxyConfig, err := json.Marshal(map[string]any{
		"discoveryAddress": m.front.Address, "controlPlaneAuthPolicy": "NONE", "concurrency": 2,
		"binaryPath": kit.Envoy(t), "configPath": filepath.Join(home, "proxy"),
		"terminationDrainDuration": "1s",
	})
	if err != nil {
		t.Fatal(err)
	}
	labelText, err := json.Marshal(labels)
	if err != nil {
		t.Fatal(err)
	}
	environment := []string{
		"POD_NAME=proxy", "POD_NAMESPACE=" + namespace, "INSTANCE_IP=127.0.0.1", "ISTIO_META_CLUSTER_ID=Kubernetes",
		"ISTIO_METAJSON_LABELS=" + string(labelText), "FILE_MOUNTED_CERTS=true", "CA_PROVIDER=none",
		"WASM_INSECURE_REGISTRIES=*", "PROXY_CONFIG=" + string(proxyConfig), "HOME=" + home,
	}
	process := kit.Start(t, home, environment, kit.Program(t, "PILOT_AGENT", ".run/mesh/pilot-agent"), "proxy", kind,
		"--domain", namespace+".svc.cluster.local",
		"--templateFile", filepath.Join(strings.TrimSpace(string(module)), "tools/packaging/common/envoy_bootstrap.json"))
	proxy := &Proxy{kit.Admin{URL: "http://127.0.0.1:15000"}, process}
	kit.Eventually(t, kit.Patience, func() string {
		if _, err := proxy.Get("/ready"); err != nil {
			return err.Error()
		}
		return ""
	})
	return proxy
}
