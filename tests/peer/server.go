package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/net/http2"
)

// tunnel is what a server prints for each CONNECT.
type tunnel struct {
	ClientID  string `json:"client_id"`
	Authority string `json:"authority"`
	Peer      string `json:"peer"`
	Error     string `json:"error,omitempty"`
}

func server(args []string) error {
	fs := flag.NewFlagSet("server", flag.ExitOnError)
	certs := addCertFlags(fs)
	listen := fs.String("listen", ":15008", "where to accept")
	allow := fs.String("allow", "", "the only client id that is let in; any if empty")
	to := fs.String("to", "", "connect here instead of to the authority")
	_ = fs.Parse(args)

	roots, err := certs.roots()
	if err != nil {
		return err
	}
	leaf, err := certs.leaf()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	h2 := &http2.Server{}
	for {
		raw, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go serve(h2, raw, leaf, roots, *allow, *to)
	}
}

func serve(h2 *http2.Server, raw net.Conn, leaf *tls.Certificate, roots *x509.CertPool, allow, to string) {
	defer raw.Close()
	var clientID string
	conn := tls.Server(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*leaf},
		ClientAuth:            tls.RequireAnyClientCert,
		VerifyPeerCertificate: verifier(roots, allow, &clientID),
	})
	if err := conn.Handshake(); err != nil {
		printJSON(tunnel{Peer: raw.RemoteAddr().String(), Error: err.Error()})
		return
	}
	h2.ServeConn(conn, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		record := tunnel{ClientID: clientID, Authority: r.Host, Peer: raw.RemoteAddr().String()}
		if err := carry(w, r, to); err != nil {
			record.Error = err.Error()
		}
		printJSON(record)
	})})
}

func carry(w http.ResponseWriter, r *http.Request, to string) error {
	if r.Method != http.MethodConnect {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return fmt.Errorf("%s is not CONNECT", r.Method)
	}
	if to == "" {
		to = r.Host
	}
	app, err := net.Dial("tcp", to)
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return err
	}
	defer app.Close()
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	if err := flush.Flush(); err != nil {
		return err
	}
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := io.Copy(app, r.Body); err != nil {
			log.New(os.Stderr, "", 0).Println("towards the application:", err)
		}
		_ = app.(*net.TCPConn).CloseWrite()
	})
	buffer := make([]byte, 32<<10)
	for {
		n, err := app.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return err
			}
			_ = flush.Flush()
		}
		if err != nil {
			break
		}
	}
	both.Wait()
	return nil
}
