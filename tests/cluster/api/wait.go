package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Wait calls a function until it returns no error or ctx is done; the last error then says what was missing.
func Wait(ctx context.Context, what string, check func(context.Context) error) error {
	last := errors.New("not looked at yet")
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, last)
		case <-time.After(poll):
		}
	}
}

// WaitNodes waits until a number of nodes are Ready.
func (c *Client) WaitNodes(ctx context.Context, count int) error {
	return Wait(ctx, fmt.Sprintf("%d nodes to be Ready", count), func(ctx context.Context) error {
		nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		var missing []string
		for _, node := range nodes.Items {
			for _, condition := range node.Status.Conditions {
				if condition.Type != corev1.NodeReady {
					continue
				}
				if condition.Status == corev1.ConditionTrue {
					ready++
				} else {
					missing = append(missing, node.Name+": "+condition.Message)
				}
			}
		}
		if ready < count {
			return fmt.Errorf("%d of %d; %s", ready, count, strings.Join(missing, "; "))
		}
		return nil
	})
}

// WaitRollout waits until a Deployment or DaemonSet runs as it is written, and no pod of an older form is left.
func (c *Client) WaitRollout(ctx context.Context, kind, namespace, name string) error {
	return Wait(ctx, fmt.Sprintf("the rollout of %s %s/%s", kind, namespace, name), func(ctx context.Context) error {
		switch kind {
		case "Deployment":
			found, err := c.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return deploymentDone(found)
		case "DaemonSet":
			found, err := c.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return daemonSetDone(found)
		default:
			return fmt.Errorf("%s has no rollout", kind)
		}
	})
}

func deploymentDone(found *appsv1.Deployment) error {
	wanted, status := *found.Spec.Replicas, found.Status
	if status.ObservedGeneration < found.Generation || status.UpdatedReplicas != wanted ||
		status.AvailableReplicas != wanted || status.Replicas != wanted {
		return fmt.Errorf("%d of %d pods are new, %d available, %d in all", status.UpdatedReplicas, wanted,
			status.AvailableReplicas, status.Replicas)
	}
	return nil
}

func daemonSetDone(found *appsv1.DaemonSet) error {
	status := found.Status
	if status.ObservedGeneration < found.Generation || status.UpdatedNumberScheduled != status.DesiredNumberScheduled ||
		status.NumberAvailable != status.DesiredNumberScheduled || status.DesiredNumberScheduled == 0 {
		return fmt.Errorf("%d of %d pods are new, %d available", status.UpdatedNumberScheduled,
			status.DesiredNumberScheduled, status.NumberAvailable)
	}
	return nil
}

// WaitPods waits until pods match a selector and each of them is Ready, and returns them.
func (c *Client) WaitPods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	var found []corev1.Pod
	err := Wait(ctx, fmt.Sprintf("pods %s of %s to be Ready", selector, namespace), func(ctx context.Context) error {
		pods, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		found = nil
		for _, pod := range pods.Items {
			if pod.DeletionTimestamp != nil {
				continue
			}
			if !Ready(&pod) {
				return fmt.Errorf("%s is not Ready: %s", pod.Name, why(&pod))
			}
			found = append(found, pod)
		}
		if len(found) == 0 {
			return errors.New("there are none")
		}
		return nil
	})
	return found, err
}

// Condition says whether an object's condition of a type is True.
func Condition(object *unstructured.Unstructured, kind string) bool {
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, entry := range conditions {
		condition, ok := entry.(map[string]any)
		if ok && condition["type"] == kind {
			return condition["status"] == "True"
		}
	}
	return false
}

// Ready says whether a pod is Ready.
func Ready(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func why(pod *corev1.Pod) string {
	reasons := []string{string(pod.Status.Phase)}
	for _, condition := range pod.Status.Conditions {
		if condition.Status != corev1.ConditionTrue && condition.Message != "" {
			reasons = append(reasons, condition.Message)
		}
	}
	for _, container := range pod.Status.ContainerStatuses {
		if waiting := container.State.Waiting; waiting != nil {
			reasons = append(reasons, container.Name+": "+waiting.Reason+" "+waiting.Message)
		}
	}
	return strings.Join(reasons, ", ")
}

func isNotFound(err error) bool { return apierrors.IsNotFound(err) }

func parseKind(kind string) schema.GroupKind {
	name, group, _ := strings.Cut(kind, ".")
	return schema.GroupKind{Group: group, Kind: name}
}
