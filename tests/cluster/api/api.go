// Package api is a small client of a Kubernetes API for tests: manifests in, conditions waited for, programs
// run in pods. It works with any cluster that a kubeconfig leads to.
package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// Client is a client of one cluster.
type Client struct {
	kubernetes.Interface
	Dynamic dynamic.Interface
	Config  *rest.Config
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

// fieldManager is the name under which manifests are applied.
const fieldManager = "weft-cluster"

// poll is how often a condition is looked at.
const poll = 100 * time.Millisecond

// Open connects to the cluster of a kubeconfig file; empty is where kubectl would look.
func Open(kubeconfig string) (*Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 100, 200
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	untyped, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(typed.Discovery()))
	return &Client{Interface: typed, Dynamic: untyped, Config: config, mapper: mapper}, nil
}

// Objects reads the objects of a manifest: YAML or JSON, several documents.
func Objects(manifest []byte) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	var objects []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}

// Apply applies a manifest's objects in their order.
func (c *Client) Apply(ctx context.Context, manifest string) error {
	objects, err := Objects([]byte(manifest))
	if err != nil {
		return err
	}
	for _, object := range objects {
		resource, err := c.resource(object)
		if err == nil {
			_, err = resource.Apply(ctx, object.GetName(), object,
				metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		}
		if err != nil {
			return fmt.Errorf("apply %s: %w", describe(object), err)
		}
	}
	return nil
}

// ApplyFile applies a file.
func (c *Client) ApplyFile(ctx context.Context, name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return c.Apply(ctx, string(text))
}

// Delete deletes a manifest's objects and waits until they are gone. What is not there is no error.
func (c *Client) Delete(ctx context.Context, manifest string) error {
	objects, err := Objects([]byte(manifest))
	if err != nil {
		return err
	}
	for _, object := range objects {
		resource, err := c.resource(object)
		if err != nil {
			return fmt.Errorf("delete %s: %w", describe(object), err)
		}
		foreground := metav1.DeletePropagationForeground
		err = resource.Delete(ctx, object.GetName(), metav1.DeleteOptions{PropagationPolicy: &foreground})
		if err != nil && !isNotFound(err) {
			return fmt.Errorf("delete %s: %w", describe(object), err)
		}
	}
	for _, object := range objects {
		resource, err := c.resource(object)
		if err != nil {
			return err
		}
		err = Wait(ctx, describe(object)+" to be gone", func(ctx context.Context) error {
			_, err := resource.Get(ctx, object.GetName(), metav1.GetOptions{})
			if isNotFound(err) {
				return nil
			}
			return errors.Join(errors.New("it is still there"), err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Get reads an object by what kubectl would call it: Get(ctx, "HTTPRoute.gateway.networking.k8s.io", ns, name).
func (c *Client) Get(ctx context.Context, kind, namespace, name string) (*unstructured.Unstructured, error) {
	resource, err := c.Kind(kind, namespace)
	if err != nil {
		return nil, err
	}
	return resource.Get(ctx, name, metav1.GetOptions{})
}

// Patch changes an object by a JSON merge patch.
func (c *Client) Patch(ctx context.Context, kind, namespace, name, patch string) error {
	resource, err := c.Kind(kind, namespace)
	if err != nil {
		return err
	}
	_, err = resource.Patch(ctx, name, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("patch %s %s/%s: %w", kind, namespace, name, err)
	}
	return nil
}

// Serves says whether the cluster has an API group.
func (c *Client) Serves(group string) (bool, error) {
	groups, err := c.Discovery().ServerGroups()
	if err != nil {
		return false, err
	}
	for _, served := range groups.Groups {
		if served.Name == group {
			return true, nil
		}
	}
	return false, nil
}

// Kind is the interface for the objects of a kind, as Pod or HTTPRoute.gateway.networking.k8s.io.
func (c *Client) Kind(kind, namespace string) (dynamic.ResourceInterface, error) {
	group := parseKind(kind)
	mapping, err := c.mapper.RESTMapping(group)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // it may have been defined meanwhile
		mapping, err = c.mapper.RESTMapping(group)
	}
	if err != nil {
		return nil, err
	}
	return c.of(mapping, namespace), nil
}

func (c *Client) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return nil, err
	}
	namespace := object.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return c.of(mapping, namespace), nil
}

func (c *Client) of(mapping *meta.RESTMapping, namespace string) dynamic.ResourceInterface {
	resource := c.Dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return resource.Namespace(namespace)
	}
	return resource
}

func describe(object *unstructured.Unstructured) string {
	return fmt.Sprintf("%s %s/%s", object.GetKind(), object.GetNamespace(), object.GetName())
}
