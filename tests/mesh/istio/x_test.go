package istio

import (
	"testing"
	_ "istio.io/istio/pilot/test/xds"
	_ "github.com/google/go-containerregistry/pkg/registry"
)
func TestX(t *testing.T){}
