// Package conformance runs the Gateway API's mesh conformance suite against the cluster of the current
// kubeconfig: every test of a mesh, its manifests and its time-outs as they are.
//
// In: flags, which `make conformance` sets. Out: the suite's report, under the name that its project asks for,
// and a table of every test, for the report counts only those that a profile does.
package conformance

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/consts"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// reports is a flag of our own, for the file's name depends on the channel that is installed.
var reports = flag.String("reports", "", "folder for the report; empty: none is written")

// provisional are features that tests of a mesh ask for though no profile of a mesh has them: those tests run,
// and are counted nowhere but in our table.
var provisional = []features.FeatureName{
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
}

// implementation is who claims the report; its version comes from the flag --version.
var implementation = confv1.Implementation{
	Organization: "weft-mesh",
	Project:      "weft",
	URL:          "https://github.com/weft-mesh/weft",
	Contact:      []string{"https://github.com/weft-mesh/weft/issues/new"},
}

// mode is the suite's name for "as it is installed".
const mode = "default"

func TestConformance(t *testing.T) {
	options := conformance.DefaultOptions(t)
	options.ConformanceProfiles = []suite.ConformanceProfileName{
		suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName,
	}
	options.SupportedFeatures = append(features.SetsToNamesSet(features.MeshExtendedFeatures).UnsortedList(),
		provisional...)
	options.NamespaceLabels = map[string]string{"weft.dev/mesh": "enabled"}
	options.Mode = mode
	implementation.Version = options.Implementation.Version
	options.Implementation = implementation
	if *reports != "" {
		options.ReportOutputPath = filepath.Join(*reports, reportName(t, options))
	}
	table := newTable(os.Stderr)
	options.Hook = func(t *testing.T, test suite.ConformanceTest, _ *suite.ConformanceTestSuite) {
		table.add(t, test)
	}
	// Last: cleanups run in reverse, and the report is written by one of the suite's.
	t.Cleanup(func() {
		table.print(options.RunTest == "")
		if options.ReportOutputPath != "" {
			fmt.Fprintln(os.Stderr, "report:", options.ReportOutputPath)
		}
	})
	conformance.RunConformanceWithOptions(t, options)
	if options.RunTest == "" {
		table.complain(t)
	}
}

// reportName is the file name that the Gateway API project asks for in conformance/reports/README.md.
func reportName(t *testing.T, options suite.ConformanceOptions) string {
	var installed apiextensionsv1.CustomResourceDefinition
	key := client.ObjectKey{Name: "httproutes.gateway.networking.k8s.io"}
	if err := options.Client.Get(context.Background(), key, &installed); err != nil {
		t.Fatalf("the Gateway API is not installed: %v", err)
	}
	return fmt.Sprintf("%s-%s-%s-report.yaml", installed.Annotations[consts.ChannelAnnotation],
		options.Implementation.Version, options.Mode)
}
