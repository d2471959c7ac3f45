package envoygateway

import (
	"strings"
	"testing"
	"time"

	"idleguard/tests/mesh/kit"
)

// Mistakes in the manifests are found.
func TestBrokenManifestsAreFound(t *testing.T) {
	lb := kit.StartLB(t, "silent-rst:4s")
	resources := strings.ReplaceAll(operators, "LB_PORT", lb.Port()) + "---\n"
	all := manifests(t, "lbIdleTimeout: learn", "lbIdleTimeout: 4s", image, kit.StartRegistry(t).Push("0.2.0"))
	g := startGateway(t, resources+all)
	g.WaitForLane(t, "external-api", 900*time.Millisecond)
	setup := kit.Setup{Admin: g.Admin, LB: lb, Address: address, Host: domain, Destination: "external-api", ClientIP: true, Labelled: true}
	setup.Finds(t, all, []kit.Break{
		{Name: "another header", From: "      - name: x-idleguard-lane\n", To: "      - name: x-other-lane\n"},
		{Name: "a misspelt lane in a policy", From: "    sectionName: idle-900ms\n", To: "    sectionName: idle-900s\n"},
		{Name: "a misspelt lane in the plugin", From: "            httproute/default/api/rule/3: 900ms\n", To: "            httproute/default/api/rules/3: 900ms\n"},
		{Name: "no skip_xff_append", From: "/skip_xff_append\n      value: true\n", To: "/skip_xff_append\n      value: false\n"},
	}, func(manifests string) { g.apply(resources + manifests) })
}
