package kit

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// vector is one of tests/vectors/client_ip.json; its README says what the keys mean.
type vector struct {
	Name    string
	Why     string
	Config  json.RawMessage
	Peer    *string
	Headers [][2]string
	Expect  struct {
		Status  string
		Headers [][2]string
	}
}

// believed are the headers of which the vectors speak: those that applications believe.
var believed = []string{
	"x-forwarded-for", "x-real-ip", "forwarded", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip", "fastly-client-ip",
}

// vectors are those for the configuration in the manifests, with an IPv4 peer that has a port, as it is of a real connection.
func vectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(t), "tests/vectors/client_ip.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all, chosen []vector
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		if string(v.Config) != `{"trusted_proxies": ["10.0.0.0/8"]}` || v.Peer == nil {
			continue
		}
		host, port, err := net.SplitHostPort(*v.Peer)
		if err == nil && port != "0" && net.ParseIP(host).To4() != nil && !strings.Contains(host, ":") {
			chosen = append(chosen, v)
		}
	}
	return chosen
}

// VectorsWrong sends the requests of the vectors from addresses that are really those of the peers. It says how many it sent, and where
// the application gets something else.
func VectorsWrong(t testing.TB, address, host string) (int, []string) {
	t.Helper()
	chosen := vectors(t)
	var wrong []string
	for _, v := range chosen {
		peer, _, _ := net.SplitHostPort(*v.Peer)
		addAddress(t, peer)
		received, err := received(address, host, peer, v.Headers)
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%s: %v", v.Name, err))
			continue
		}
		var found []string
		for _, header := range received {
			name := strings.ToLower(header[0])
			if slices.Contains(believed, strings.ReplaceAll(name, "_", "-")) {
				found = append(found, name+": "+header[1])
			}
		}
		var wanted []string
		for _, header := range v.Expect.Headers {
			wanted = append(wanted, header[0]+": "+header[1])
		}
		slices.Sort(found)
		if !slices.Equal(found, wanted) {
			wrong = append(wrong, fmt.Sprintf("%s (%s): the application gets %q, not %q", v.Name, v.Why, found, wanted))
		}
	}
	return len(chosen), wrong
}

// addAddress gives the network namespace an address of its own.
func addAddress(t testing.TB, address string) {
	t.Helper()
	if output, err := Command("ip", "addr", "replace", address+"/32", "dev", "lo"); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
}

// ChainWrong is where an application gets something wrong when there are two proxies in front, both trusted, and what Envoy says of the peer.
func ChainWrong(t testing.TB, address, host string) []string {
	t.Helper()
	addAddress(t, "10.0.0.1")
	received, err := received(address, host, "10.0.0.1", [][2]string{
		{"x-forwarded-for", "192.0.2.66, 203.0.113.7, 10.0.0.2"}, {"x-envoy-external-address", "192.0.2.66"},
		{"x-idleguard-lane", "shop=900ms"}, {"x_envoy_external_address", "192.0.2.66"},
	})
	if err != nil {
		return []string{err.Error()}
	}
	var wrong []string
	for name, wanted := range map[string][]string{
		"x-forwarded-for":          {"203.0.113.7, 10.0.0.2, 10.0.0.1"},
		"x-real-ip":                {"203.0.113.7"},
		"x-envoy-external-address": {"203.0.113.7"},
		"x_envoy_external_address": nil,
		"x-idleguard-lane":         nil,
	} {
		if found := Values(received, name); !slices.Equal(found, wanted) {
			wrong = append(wrong, fmt.Sprintf("the application gets %s: %q, not %q", name, found, wanted))
		}
	}
	return wrong
}

// CheckProxyProtocol is what the application gets of a client that the PROXY protocol names, from a load balancer that is nobody to
// trust itself.
func CheckProxyProtocol(t testing.TB, address, host string) {
	t.Helper()
	for client, wanted := range map[string]string{
		// Nobody trusts the client: it is the client, whatever it says.
		"203.0.113.9": "203.0.113.9",
		// A trusted proxy behind the load balancer.
		"10.0.0.7": "198.51.100.1, 10.0.0.7",
	} {
		headers, err := receivedOf(address, fmt.Sprintf("PROXY TCP4 %s 192.0.2.1 40000 80\r\n", client), host, "", [][2]string{{"x-forwarded-for", "192.0.2.66, 198.51.100.1"}})
		if err != nil {
			t.Fatal(err)
		}
		if found := Values(headers, "x-forwarded-for"); !slices.Equal(found, []string{wanted}) {
			t.Errorf("%s by the PROXY protocol: the application gets %q, not %q", client, found, wanted)
		}
	}
}
