// Package pki makes what the components of a Kubernetes prove themselves with: two certificate authorities, a
// certificate a component, kubeconfigs, and the key that signs service account tokens.
//
// In: a folder and who needs what. Out: files. What is there already stays, so that a cluster that is brought
// up again keeps its identities.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// lifetime is that of the authorities and of all they sign: longer than a test cluster lives.
const lifetime = 365 * 24 * time.Hour

// Authority signs certificates.
type Authority struct {
	Dir  string
	name string
	cert *x509.Certificate
	key  crypto.Signer
}

// Certificate says what to sign.
type Certificate struct {
	File         string // without .crt and .key
	CommonName   string
	Organization string
	Hosts        []string // names and addresses; a certificate with any is a server's, else a client's
}

// NewAuthority reads the authority dir/name.crt and .key, or makes it.
func NewAuthority(dir, name string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &Authority{Dir: dir, name: name}
	if pair, err := readPair(a.Path(name)); err == nil {
		a.cert, a.key = pair.cert, pair.key
		return a, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "weft-cluster-" + name},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	a.key, a.cert = key, template
	cert, err := a.sign(template, key, name)
	a.cert = cert
	return a, err
}

// Path is the path of one of the authority's files.
func (a *Authority) Path(file string) string { return filepath.Join(a.Dir, file) }

// CertificatePEM is the authority's own certificate.
func (a *Authority) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Sign makes a key and a certificate, unless there is one already.
func (a *Authority) Sign(wanted Certificate) error {
	if _, err := readPair(a.Path(wanted.File)); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: wanted.CommonName},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if wanted.Organization != "" {
		template.Subject.Organization = []string{wanted.Organization}
	}
	for _, host := range wanted.Hosts {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if address := net.ParseIP(host); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	_, err = a.sign(template, key, wanted.File)
	return err
}

func (a *Authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey, file string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = time.Now().Add(lifetime)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", file, err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	// The key first: a pair with a certificate is whole.
	if err := writePEM(a.Path(file+".key"), "EC PRIVATE KEY", keyDER, 0o600); err != nil {
		return nil, err
	}
	if err := writePEM(a.Path(file+".crt"), "CERTIFICATE", der, 0o644); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// TokenKey makes the key pair that signs service account tokens: file.key and file.pub.
func (a *Authority) TokenKey(file string) error {
	if _, err := os.Stat(a.Path(file + ".pub")); err == nil {
		return nil
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	private := x509.MarshalPKCS1PrivateKey(key)
	if err := writePEM(a.Path(file+".key"), "RSA PRIVATE KEY", private, 0o600); err != nil {
		return err
	}
	return writePEM(a.Path(file+".pub"), "PUBLIC KEY", public, 0o644)
}

type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func readPair(file string) (*pair, error) {
	cert, err := readPEM(file + ".crt")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		return nil, fmt.Errorf("%s.crt: %w", file, err)
	}
	if time.Until(parsed.NotAfter) < 24*time.Hour {
		return nil, fmt.Errorf("%s.crt ends %s; run `make cluster-down` and begin anew", file, parsed.NotAfter)
	}
	der, err := readPEM(file + ".key")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s.key: %w", file, err)
	}
	return &pair{cert: parsed, key: key}, nil
}

func readPEM(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no PEM file; run `make cluster-down` and begin anew", file)
	}
	return block.Bytes, nil
}

// writePEM replaces a file as a whole: one that was interrupted leaves none.
func writePEM(file, kind string, der []byte, mode fs.FileMode) error {
	temporary := file + ".new"
	if err := os.WriteFile(temporary, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return err
	}
	return os.Rename(temporary, file)
}
