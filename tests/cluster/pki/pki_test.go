package pki

import (
	"crypto/x509"
	"os"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

func TestServersAndClientsAreVerifiedByTheAuthorityForWhatTheyAre(t *testing.T) {
	ca, err := NewAuthority(t.TempDir(), "ca")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for _, wanted := range []struct {
		Certificate
		usage x509.ExtKeyUsage
		host  string
	}{
		{Certificate{File: "client", CommonName: "someone", Organization: "group"}, x509.ExtKeyUsageClientAuth, ""},
		{Certificate{File: "server", CommonName: "server", Hosts: []string{"a.example", "10.0.0.1"}},
			x509.ExtKeyUsageServerAuth, "10.0.0.1"},
	} {
		if err := ca.Sign(wanted.Certificate); err != nil {
			t.Fatal(err)
		}
		made, err := readPair(ca.Path(wanted.File))
		if err != nil {
			t.Fatal(err)
		}
		options := x509.VerifyOptions{Roots: roots, DNSName: wanted.host, KeyUsages: []x509.ExtKeyUsage{wanted.usage}}
		if _, err := made.cert.Verify(options); err != nil {
			t.Errorf("%s: %v", wanted.File, err)
		}
	}
}

func TestWhatIsThereStaysAsItIs(t *testing.T) {
	dir := t.TempDir()
	var kept []string
	for range 2 {
		ca, err := NewAuthority(dir, "ca")
		if err != nil {
			t.Fatal(err)
		}
		if err := ca.Sign(Certificate{File: "client", CommonName: "someone"}); err != nil {
			t.Fatal(err)
		}
		if err := ca.TokenKey("sa"); err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, file := range []string{"ca.crt", "ca.key", "client.crt", "client.key", "sa.key", "sa.pub"} {
			content, err := os.ReadFile(ca.Path(file))
			if err != nil {
				t.Fatal(err)
			}
			all += string(content)
		}
		kept = append(kept, all)
	}
	if kept[0] != kept[1] {
		t.Error("the second time made other files")
	}
}

func TestAKubeconfigHoldsAllThatAClientNeeds(t *testing.T) {
	ca, err := NewAuthority(t.TempDir(), "ca")
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Sign(Certificate{File: "admin", CommonName: "admin"}); err != nil {
		t.Fatal(err)
	}
	if err := ca.Kubeconfig("admin", "https://10.0.0.1:6443"); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", ca.Path("admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://10.0.0.1:6443" || len(config.CertData) == 0 || len(config.KeyData) == 0 ||
		len(config.CAData) == 0 {
		t.Errorf("%+v", config)
	}
}
