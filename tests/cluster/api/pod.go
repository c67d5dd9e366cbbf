package api

import (
	"bytes"
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// Exec runs a program in a pod's first container and returns what it wrote. What it wrote to its error output is
// part of the error.
func (c *Client) Exec(ctx context.Context, namespace, pod string, argv ...string) (string, error) {
	request := c.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).
		SubResource("exec").VersionedParams(&corev1.PodExecOptions{Command: argv, Stdout: true, Stderr: true},
		scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", request.URL().String())
	if err != nil {
		return "", err
	}
	var out, trouble bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &trouble})
	if err != nil {
		return out.String(), fmt.Errorf("%v in %s/%s: %w: %s", argv, namespace, pod, err, trouble.String())
	}
	return out.String(), nil
}

// Logs returns what a container has written; container may be empty if there is one.
func (c *Client) Logs(ctx context.Context, namespace, pod, container string) (string, error) {
	options := &corev1.PodLogOptions{Container: container}
	text, err := c.CoreV1().Pods(namespace).GetLogs(pod, options).DoRaw(ctx)
	if err != nil {
		return "", fmt.Errorf("logs of %s/%s: %w", namespace, pod, err)
	}
	return string(text), nil
}
