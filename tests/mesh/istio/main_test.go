// Package istio runs Istio's own discovery and its own agent on the manifests of deploy/istio, without a cluster.
package istio

import (
	"testing"

	"istio.io/istio/pkg/log"

	"idleguard/tests/mesh/kit"
)

// What only Istio's own build of Envoy has is switched off; Istio reads its features before main.
func TestMain(m *testing.M) {
	for _, scope := range log.Scopes() {
		scope.SetOutputLevel(log.ErrorLevel)
	}
	kit.Main(m, "PILOT_ENABLE_METADATA_EXCHANGE=false", "PILOT_ENABLE_ALPN_FILTER=false")
}
