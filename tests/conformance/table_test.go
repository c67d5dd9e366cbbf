package conformance

import (
	"strings"
	"testing"

	"sigs.k8s.io/gateway-api/conformance/tests"
)

func TestEveryTestOfAMeshIsSupported(t *testing.T) {
	// By gamma: 23 in the suite of 1.7.0. Another version of the suite wants another look at what is claimed.
	if got := len(meshTests()); got != 23 {
		t.Errorf("the suite has %d tests of a mesh, not 23", got)
	}
}

func TestProfilesCountATestAsTheSuiteDoes(t *testing.T) {
	want := map[string]string{
		"MeshBasic":                                 "MESH-HTTP core, MESH-GRPC core",
		"MeshGRPCRouteWeight":                       "MESH-GRPC core",
		"MeshHTTPRouteMatching":                     "MESH-HTTP core",
		"MeshHTTPRouteRewritePath":                  "MESH-HTTP extended",
		"MeshPorts":                                 "no profile",
		"MeshHTTPRoute308Redirect":                  "no profile",
		"MeshHTTPRouteBackendRequestHeaderModifier": "MESH-HTTP extended",
	}
	for _, test := range tests.ConformanceTests {
		if expected, ok := want[test.ShortName]; ok {
			if got := counted(test); got != expected {
				t.Errorf("%s: got %q, want %q", test.ShortName, got, expected)
			}
			delete(want, test.ShortName)
		}
	}
	if len(want) > 0 {
		t.Errorf("the suite has no tests %v", want)
	}
}

func TestTheTableNamesEachTestOnceWithItsOutcome(t *testing.T) {
	var out strings.Builder
	table := newTable(&out)
	table.rows = []row{{name: "B", result: failed, counted: "no profile"}, {name: "A", result: passed}}
	table.print(true)
	text := out.String()
	if strings.Index(text, "\nA ") > strings.Index(text, "\nB ") || !strings.Contains(text, "1 of 23") ||
		!strings.Contains(text, "1 failed, 0 skipped") {
		t.Error(text)
	}
}
