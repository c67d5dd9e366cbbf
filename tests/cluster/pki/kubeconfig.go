package pki

import (
	"os"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Kubeconfig writes file.kubeconfig for the client certificate file.crt, which Sign made. It holds everything
// itself, so that it may be copied.
func (a *Authority) Kubeconfig(file, server string) error {
	cert, err := os.ReadFile(a.Path(file + ".crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(a.Path(file + ".key"))
	if err != nil {
		return err
	}
	const name = "weft-cluster"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: a.CertificatePEM()}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return clientcmd.WriteToFile(*config, a.Path(file+".kubeconfig"))
}
