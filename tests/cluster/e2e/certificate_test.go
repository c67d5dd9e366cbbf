package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"weft.dev/tests/cluster/cluster"
)

// foreignCertificate asks the CA for certificates with the token of node1's proxy: for a service account of a pod
// on that node, and for one whose only pod is on the other.
func (s shop) foreignCertificate(t *testing.T) {
	for node, name := range map[string]string{"node1": "near", "node2": "far"} {
		s.apply(t, strings.NewReplacer("ACCOUNT", name, "NODE", node).Replace(s.text(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: ACCOUNT, namespace: NS}
---
apiVersion: v1
kind: Pod
metadata: {name: ACCOUNT, namespace: NS}
spec:
  nodeName: NODE
  serviceAccountName: ACCOUNT
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: IMAGE, args: [server, --http, "8080"]}]
`)))
	}
	token := s.proxyToken(t, "node1", "weft.dev")
	ca := s.ca(t)
	identity := func(account string) string {
		return fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", s.namespace, account)
	}
	s.eventually(t, "a certificate for a pod of the node", func() error {
		return ca.sign(s.ctx, token, identity("near"))
	})
	for what, err := range map[string]error{
		"a pod of another node":    ca.sign(s.ctx, token, identity("far")),
		"an account without a pod": ca.sign(s.ctx, token, identity("nobody")),
		"another trust domain": ca.sign(s.ctx, token,
			strings.Replace(identity("near"), "cluster.local", "example.com", 1)),
		"a token for another audience": ca.sign(s.ctx, s.proxyToken(t, "node1", "elsewhere.example.com"),
			identity("near")),
		"no token": ca.sign(s.ctx, "", identity("near")),
	} {
		if err == nil {
			t.Errorf("a certificate was signed for %s", what)
		} else if !strings.Contains(err.Error(), "grpc-status 7") && !strings.Contains(err.Error(), "grpc-status 16") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// proxyToken is a token as the kubelet of a node would project it into the node's proxy.
func (f fixture) proxyToken(t *testing.T, node, audience string) string {
	t.Helper()
	pods, err := f.CoreV1().Pods(cluster.Namespace).List(f.ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=weft-proxy", FieldSelector: "spec.nodeName=" + node})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("no proxy on %s: %v", node, err)
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{audience},
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1",
			Name: pods.Items[0].Name, UID: pods.Items[0].UID},
	}}
	made, err := f.CoreV1().ServiceAccounts(cluster.Namespace).CreateToken(f.ctx, "weft-proxy", request,
		metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made.Status.Token
}

// authority speaks to a controller's CA.
type authority struct {
	address string
	client  *http.Client
}

// ca forwards a port to a controller.
func (f fixture) ca(t *testing.T) authority {
	t.Helper()
	pods, err := f.WaitPods(f.ctx, cluster.Namespace, "app.kubernetes.io/name=weft-controller")
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := f.CoreV1().ConfigMaps(cluster.Namespace).Get(f.ctx, "weft-trust-bundle", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(bundle.Data["root-cert.pem"])) {
		t.Fatalf("no certificate in the trust bundle: %v", bundle.Data)
	}
	transport, upgrader, err := spdy.RoundTripperFor(f.Config)
	if err != nil {
		t.Fatal(err)
	}
	url := f.CoreV1().RESTClient().Post().Resource("pods").Namespace(cluster.Namespace).Name(pods[0].Name).
		SubResource("portforward").URL()
	stop, ready := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop) })
	forwarder, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", url),
		[]string{"0:15010"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("the port is not forwarded")
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	const name = "weft-controller.weft-system.svc"
	return authority{
		address: net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[0].Local)),
		client: &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
			RootCAs: roots, ServerName: name, NextProtos: []string{"h2"}}}},
	}
}

// sign asks for a certificate (Istio's CSR protocol); the error says with which gRPC status it was refused.
func (a authority) sign(ctx context.Context, token, identity string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	metadata, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": identity})
	if err != nil {
		return err
	}
	fields, err := proto.Marshal(metadata)
	if err != nil {
		return err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	message := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), csr)
	message = protowire.AppendBytes(protowire.AppendTag(message, 4, protowire.BytesType), fields)
	framed := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost,
		"https://"+a.address+"/istio.v1.auth.IstioCertificateService/CreateCertificate", bytes.NewReader(framed))
	if err != nil {
		return err
	}
	request.Header.Set("content-type", "application/grpc")
	request.Header.Set("te", "trailers")
	if token != "" {
		request.Header.Set("authorization", "Bearer "+token)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	// Refused at once, the status is among the headers.
	status := response.Trailer.Get("grpc-status") + response.Header.Get("grpc-status")
	if status != "0" {
		return fmt.Errorf("grpc-status %s: %s", status,
			response.Trailer.Get("grpc-message")+response.Header.Get("grpc-message"))
	}
	if !bytes.Contains(answer, []byte("BEGIN CERTIFICATE")) {
		return errors.New("there is no certificate in the answer")
	}
	return nil
}
