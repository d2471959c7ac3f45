package kit

import (
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry is an OCI registry in this process.
type Registry struct {
	*httptest.Server
	t testing.TB
}

// StartRegistry starts one, empty.
func StartRegistry(t testing.TB) *Registry {
	r := &Registry{httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)))), t}
	t.Cleanup(r.Close)
	return r
}

// Push pushes the image of `make image`, and says where it is, without a scheme.
func (r *Registry) Push(tag string) string {
	r.t.Helper()
	path := os.Getenv("IDLEGUARD_IMAGE")
	if path == "" {
		path = filepath.Join(Root(r.t), "idleguard-image")
	}
	return r.PushFrom(path, tag)
}

// PushModule pushes an image that holds these bytes as its module, and says where it is.
func (r *Registry) PushModule(module []byte, tag string) string {
	r.t.Helper()
	reference := strings.TrimPrefix(r.URL, "http://") + "/idleguard:" + tag
	image, err := crane.Image(map[string][]byte{"plugin.wasm": module})
	if err != nil {
		r.t.Fatal(err)
	}
	to, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Write(to, image); err != nil {
		r.t.Fatal(err)
	}
	return reference
}

// OtherModule is the filter with other bytes: one more custom section, which nobody reads.
func OtherModule(t testing.TB) []byte {
	t.Helper()
	module, err := os.ReadFile(Program(t, "IDLEGUARD_WASM", "idleguard.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return append(module, 0, 6, 5, 'o', 't', 'h', 'e', 'r')
}

// PushFrom pushes the ordinary image of an OCI layout.
func (r *Registry) PushFrom(path, tag string) string {
	r.t.Helper()
	reference := strings.TrimPrefix(r.URL, "http://") + "/idleguard:" + tag
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		r.t.Fatalf("%s: %v (make image writes it)", path, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, descriptor := range manifest.Manifests {
		if descriptor.Annotations["org.opencontainers.image.ref.name"] != "compat" {
			continue
		}
		image, err := index.Image(descriptor.Digest)
		if err != nil {
			r.t.Fatal(err)
		}
		to, err := name.ParseReference(reference, name.Insecure)
		if err != nil {
			r.t.Fatal(err)
		}
		if err := remote.Write(to, image); err != nil {
			r.t.Fatal(err)
		}
		return reference
	}
	r.t.Fatalf("%s: no image named compat", path)
	return ""
}

// WaitForPort waits until somebody listens there.
func WaitForPort(t testing.TB, address string) {
	t.Helper()
	Eventually(t, Patience, func() string {
		connection, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err.Error()
		}
		_ = connection.Close()
		return ""
	})
}
