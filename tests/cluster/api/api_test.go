package api

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestAManifestsDocumentsAreReadInTheirOrderAndEmptyOnesLeftOut(t *testing.T) {
	objects, err := Objects([]byte("# a comment\n---\nkind: A\n---\n\n---\n{kind: B}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 2 || objects[0].GetKind() != "A" || objects[1].GetKind() != "B" {
		t.Errorf("%v", objects)
	}
}

func TestARolloutIsDoneOnlyWhenNoOldPodIsLeft(t *testing.T) {
	three := int32(3)
	for name, test := range map[string]struct {
		status appsv1.DeploymentStatus
		done   bool
	}{
		"done": {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 3, AvailableReplicas: 3},
			true},
		"not seen yet": {appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 3, UpdatedReplicas: 3,
			AvailableReplicas: 3}, false},
		"an old one is left": {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 4, UpdatedReplicas: 3,
			AvailableReplicas: 3}, false},
		"one is not available": {appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 3,
			AvailableReplicas: 2}, false},
	} {
		found := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 2},
			Spec: appsv1.DeploymentSpec{Replicas: &three}, Status: test.status}
		if err := deploymentDone(found); (err == nil) != test.done {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADaemonSetWithoutPodsIsNotDone(t *testing.T) {
	if err := daemonSetDone(&appsv1.DaemonSet{}); err == nil {
		t.Error("it is")
	}
}

func TestAConditionIsTrueOnlyIfItSaysSo(t *testing.T) {
	object := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": []any{
		map[string]any{"type": "Ready", "status": "True"}, map[string]any{"type": "Happy", "status": "False"},
	}}}}
	for kind, want := range map[string]bool{"Ready": true, "Happy": false, "Absent": false} {
		if got := Condition(object, kind); got != want {
			t.Errorf("%s: %v", kind, got)
		}
	}
}
