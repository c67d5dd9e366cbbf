package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"strings"
	"time"
)

// certFlags describe the leaf to present, good or bad.
type certFlags struct {
	caCert, caKey *string
	ids           *string
	age           *time.Duration
	lifetime      *time.Duration
	isCA          *bool
	none          *bool
}

func addCertFlags(fs *flag.FlagSet) certFlags {
	return certFlags{
		caCert:   fs.String("ca-cert", "", "PEM of the root that signs"),
		caKey:    fs.String("ca-key", "", "PEM of its key; without it a new root of the same name signs"),
		ids:      fs.String("id", "", "URI SANs of the leaf, comma separated"),
		age:      fs.Duration("age", time.Minute, "how long ago the leaf became valid"),
		lifetime: fs.Duration("lifetime", time.Hour, "how long it is valid"),
		isCA:     fs.Bool("is-ca", false, "make the leaf a CA certificate"),
		none:     fs.Bool("no-certificate", false, "present no certificate"),
	}
}

func (f certFlags) roots() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	pemBytes, err := os.ReadFile(*f.caCert)
	if err != nil {
		return nil, err
	}
	if !pool.AppendCertsFromPEM(pemBytes) {
		return nil, fmt.Errorf("%s holds no certificate", *f.caCert)
	}
	return pool, nil
}

func (f certFlags) leaf() (*tls.Certificate, error) {
	issuer, signer, err := f.issuer()
	if err != nil {
		return nil, err
	}
	var uris []*url.URL
	for id := range strings.SplitSeq(*f.ids, ",") {
		if id == "" {
			continue
		}
		u, err := url.Parse(id)
		if err != nil {
			return nil, err
		}
		uris = append(uris, u)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	start := time.Now().Add(-*f.age)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		NotBefore:             start,
		NotAfter:              start.Add(*f.lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  uris,
	}
	if *f.isCA {
		template.IsCA = true
		template.KeyUsage |= x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// issuer is the named root with its key or, without a key, a stranger that bears the same name.
func (f certFlags) issuer() (*x509.Certificate, any, error) {
	pemBytes, err := os.ReadFile(*f.caCert)
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(pemBytes)
	if block == nil {
		return nil, nil, fmt.Errorf("%s is not PEM", *f.caCert)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	if *f.caKey == "" {
		return strangerNamedLike(root)
	}
	keyPEM, err := os.ReadFile(*f.caKey)
	if err != nil {
		return nil, nil, err
	}
	keyBlock, _ := pem.Decode(keyPEM)
	if keyBlock == nil {
		return nil, nil, fmt.Errorf("%s is not PEM", *f.caKey)
	}
	if key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes); err == nil {
		return root, key, nil
	}
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, errors.New("the CA's key is neither PKCS#8 nor SEC 1")
	}
	return root, key, nil
}

func strangerNamedLike(root *x509.Certificate) (*x509.Certificate, any, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: root.Subject.CommonName, Organization: root.Subject.Organization},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func sign(args []string) error {
	fs := flag.NewFlagSet("sign", flag.ExitOnError)
	flags := addCertFlags(fs)
	outCert := fs.String("out-cert", "", "where the leaf goes")
	outKey := fs.String("out-key", "", "where its key goes")
	_ = fs.Parse(args)
	leaf, err := flags.leaf()
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	if err := os.WriteFile(*outCert, certPEM, 0o644); err != nil {
		return err
	}
	return os.WriteFile(*outKey, keyPEM, 0o600)
}

// verifier checks the chain and takes the peer's only URI SAN; want "" accepts any.
func verifier(roots *x509.CertPool, want string, got *string) func([][]byte, [][]*x509.Certificate) error {
	return func(raw [][]byte, _ [][]*x509.Certificate) error {
		if len(raw) == 0 {
			return errors.New("the peer presented no certificate")
		}
		leaf, err := x509.ParseCertificate(raw[0])
		if err != nil {
			return err
		}
		intermediates := x509.NewCertPool()
		for _, der := range raw[1:] {
			if c, err := x509.ParseCertificate(der); err == nil {
				intermediates.AddCert(c)
			}
		}
		_, err = leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if err != nil {
			return err
		}
		if len(leaf.URIs) != 1 {
			return fmt.Errorf("the peer has %d URI SANs, not one", len(leaf.URIs))
		}
		*got = leaf.URIs[0].String()
		if want != "" && *got != want {
			return fmt.Errorf("the peer is %s, not %s", *got, want)
		}
		return nil
	}
}
