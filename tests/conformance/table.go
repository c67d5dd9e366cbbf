package conformance

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// row is the outcome of one test of a mesh.
type row struct {
	name, result, counted string
	took                  time.Duration
}

const (
	passed  = "passed"
	failed  = "FAILED"
	skipped = "skipped"
)

// table collects the outcome of every test of a mesh, whether or not a profile counts it.
type table struct {
	out   io.Writer
	mutex sync.Mutex
	rows  []row
	last  time.Time
}

func newTable(out io.Writer) *table { return &table{out: out, last: time.Now()} }

// add takes a test's outcome when it has ended. Tests of gateways are none of our business.
func (l *table) add(t *testing.T, test suite.ConformanceTest) {
	if !ofMesh(test) {
		return
	}
	result := passed
	switch {
	case t.Failed():
		result = failed
	case t.Skipped():
		result = skipped
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	now := time.Now()
	l.rows = append(l.rows, row{test.ShortName, result, counted(test), now.Sub(l.last)})
	l.last = now
	if result != skipped {
		fmt.Fprintf(l.out, "  %-7s %s\n", result, test.ShortName)
	}
}

// print writes the table and its sum; of the tests that did not run, only with all.
func (l *table) print(all bool) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	writer := tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(writer, "\nTEST\tRESULT\tTIME\tCOUNTED IN")
	sum := map[string]int{}
	slices.SortFunc(l.rows, func(a, b row) int { return strings.Compare(a.name, b.name) })
	for _, r := range l.rows {
		sum[r.result]++
		if r.result == skipped && !all {
			continue
		}
		fmt.Fprintf(writer, "%s\t%s\t%s\t%s\n", r.name, r.result, r.took.Round(100*time.Millisecond), r.counted)
	}
	writer.Flush()
	fmt.Fprintf(l.out, "\n%d of %d tests of a mesh passed, %d failed, %d skipped\n", sum[passed], len(meshTests()),
		sum[failed], sum[skipped])
}

// complain fails a test that left out any of the suite's tests of a mesh: the suite itself skips in silence.
func (l *table) complain(t *testing.T) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	ran := map[string]bool{}
	for _, r := range l.rows {
		ran[r.name] = r.result != skipped
	}
	for _, name := range meshTests() {
		if !ran[name] {
			t.Errorf("%s was not run", name)
		}
	}
}

func meshTests() []string {
	var names []string
	for _, test := range tests.ConformanceTests {
		if ofMesh(test) {
			names = append(names, test.ShortName)
		}
	}
	return names
}

func ofMesh(test suite.ConformanceTest) bool {
	return slices.Contains(test.Features, features.SupportMesh)
}

// counted says in which profiles' sums a test is, by the suite's own rule: a profile counts tests all of whose
// features it has, as extended if any of them is.
func counted(test suite.ConformanceTest) string {
	var in []string
	for _, profile := range []suite.ConformanceProfile{suite.MeshHTTPConformanceProfile,
		suite.MeshGRPCConformanceProfile} {
		level := "core"
		for _, feature := range test.Features {
			switch {
			case profile.CoreFeatures.Has(feature):
			case profile.ExtendedFeatures.Has(feature) && level != "":
				level = "extended"
			default:
				level = ""
			}
		}
		if level != "" {
			in = append(in, string(profile.Name)+" "+level)
		}
	}
	if len(in) == 0 {
		return "no profile"
	}
	return strings.Join(in, ", ")
}
